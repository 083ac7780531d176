// Kernels that the emulation itself is tested with: each primitive used right, and misuses that must be reported.
#include <cstdlib>

#include "platform.cuh"

namespace {

using semckd::launch;

// Each of 64 threads writes what every primitive gave it to its own row of `out` [8, 64]; two sums follow.
__global__ void primitives(int* out) {
  constexpr int kThreads = 64;
  int* dynamic = static_cast<int*>(cuda_emulation::dynamic_shared());
  __shared__ unsigned votes[2];
  const int thread = threadIdx.x, lane = thread % 32;
  dynamic[thread] = thread;
  __syncthreads();
  out[thread] = dynamic[kThreads - 1 - thread];
  const unsigned ballot = __ballot_sync(~0u, lane % 3 == 0);
  if (lane == 0) votes[thread / 32] = ballot;
  __syncthreads();
  out[kThreads + thread] = votes[1] == ballot;
  out[2 * kThreads + thread] = __shfl_down_sync(~0u, thread, 4, 8);
  out[3 * kThreads + thread] = __shfl_up_sync(~0u, thread, 1);
  out[4 * kThreads + thread] = __shfl_sync(~0u, thread, 5, 16);
  out[5 * kThreads + thread] = lane < 8 ? __shfl_xor_sync(0xffu, thread, 1) : -1;
  out[6 * kThreads + thread] = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane < 31);
  __syncwarp();
  dynamic[thread] = lane;
  __syncwarp();
  // a neighbour of the same warp: ordered by the warp's barrier alone
  out[7 * kThreads + thread] = dynamic[thread ^ 1];
  atomicAdd(&out[8 * kThreads], 1);
  atomicMax(&out[8 * kThreads + 1], thread);
}

__global__ void divergent_barrier(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void deadlock(int*) {
  if (threadIdx.x < 5) {
    __shfl_sync(~0u, 1, 0);
  } else {
    __syncthreads();
  }
}

__global__ void exited_lane(int*) {
  if (threadIdx.x == 3) return;
  __shfl_sync(~0u, 1, 0);
}

__global__ void caller_not_in_mask(int*) { __shfl_sync(0xffu, 1, 0); }

__global__ void source_not_in_mask(int*) {
  if (threadIdx.x < 8) __shfl_sync(0xffu, 1, 9);
}

__global__ void shared_overrun(int* out) {
  __shared__ int row[32];
  row[threadIdx.x] = 0;
  __syncthreads();
  volatile int past_the_end = 32;
  if (threadIdx.x == 0) out[0] = row[past_the_end];
}

__global__ void misaligned_load(int* out) {
  out[0] = *reinterpret_cast<const int*>(reinterpret_cast<const char*>(out) + 2);
}

__global__ void uninitialised_device_read(int* out) { out[0] = out[1 + threadIdx.x]; }

// Blocks that write the same word, each without knowing of the others.
__global__ void blocks_race(int* out) {
  if (threadIdx.x == 0) out[0] = static_cast<int>(blockIdx.x);
}

// In place, by the path that other threads' stores do not reach; whether it goes wrong on a device is chance.
__global__ void read_only_load(int* out) { out[threadIdx.x] = __ldg(out + threadIdx.x) + 1; }

__global__ void read_only_load_after_store(int* out) {
  out[threadIdx.x] = 1;
  out[32 + threadIdx.x] = __ldg(out + threadIdx.x);
}

struct Case {
  void (*kernel)(int*);
  unsigned blocks;
  unsigned threads;
};
constexpr Case kCases[] = {
    {primitives, 1, 64},     {divergent_barrier, 1, 64},  {deadlock, 1, 32},
    {exited_lane, 1, 32},    {caller_not_in_mask, 1, 32}, {source_not_in_mask, 1, 32},
    {shared_overrun, 1, 32}, {misaligned_load, 1, 1},     {uninitialised_device_read, 1, 1},
    {blocks_race, 2, 32},    {read_only_load, 1, 32},     {read_only_load_after_store, 1, 32},
};

}  // namespace

// `out` holds 514 words. Dynamic shared memory is the emulation's own: no launcher of the product asks for any yet.
extern "C" int emulation_selftest(int number, int* out) {
  const Case& chosen = kCases[number];
  cudaLaunchConfig_t config{};
  config.gridDim = chosen.blocks;
  config.blockDim = chosen.threads;
  config.dynamicSmemBytes = 64 * sizeof(int);
  return cudaLaunchKernelEx(&config, chosen.kernel, out);
}
