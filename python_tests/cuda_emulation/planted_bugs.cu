// A sum of squares built like the product's kernels, from their own pieces, with one bug at a time planted in it.
// The emulation must find each of them; `kNone` must pass.
#include "platform.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

using namespace semckd;

enum class Bug {
  kNone,
  kMissingSync,         // block_sum without the barrier between writing and reading the warps' sums
  kOverrun,             // the last pack of a sample is rounded up
  kMaskedOverrun,       // the same, with what was read too much thrown away: the result is right
  kUninitialisedFlag,   // only the last block sets its shared flag
  kUninitialisedTotal,  // shared accumulators that nobody zeroes
  kTicketRace,          // a ticket that is not drawn atomically
  kMissingFence,        // sums that are not published before the ticket is drawn
};

constexpr int kThreads = 64;
constexpr int kChunk = 512;
constexpr int V = 4;

template <Bug bug>
__device__ float sum_over_block(float x) {
  if (bug != Bug::kMissingSync) return block_sum<kThreads>(x);
  __shared__ float warp_sums[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  x = warp_sum(x);
  __syncthreads();
  if (lane == 0) warp_sums[warp] = x;
  return warp == 0 ? warp_sum(lane < kThreads / kWarp ? warp_sums[lane] : 0.0f) : 0.0f;
}

template <Bug bug>
__device__ bool is_last_block(unsigned* ticket) {
  if (bug != Bug::kUninitialisedFlag && bug != Bug::kTicketRace && bug != Bug::kMissingFence)
    return last_to_arrive(ticket, gridDim.x);
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    if (bug != Bug::kMissingFence) __threadfence();
    if (bug == Bug::kTicketRace) {
      const unsigned drawn = *ticket;
      *ticket = drawn + 1;
      is_last = drawn == gridDim.x - 1;
    } else if (bug == Bug::kUninitialisedFlag) {
      if (atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1) is_last = true;
    } else {
      is_last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    }
    if (bug != Bug::kMissingFence) __threadfence();
  }
  __syncthreads();
  return is_last;
}

template <Bug bug>
__global__ void sum_of_squares(const float* x, int N, float* sums, unsigned* ticket, float* out) {
  const float* chunk = x + blockIdx.x * kChunk;
  const int left = N - static_cast<int>(blockIdx.x) * kChunk, count = left < kChunk ? left : kChunk;
  const bool overruns = bug == Bug::kOverrun || bug == Bug::kMaskedOverrun;
  const int packed = (overruns ? count + V - 1 : count) / V * V;
  float sum = 0;
  for (int i = threadIdx.x * V; i < packed; i += kThreads * V) {
    const Pack<float, V> pack = load<Access::kReadOnly, V>(chunk + i);
    for (int k = 0; k < V; ++k) {
      if (bug == Bug::kMaskedOverrun && i + k >= count) continue;
      sum += pack.v[k] * pack.v[k];
    }
  }
  for (int i = packed + static_cast<int>(threadIdx.x); i < count; i += kThreads) sum += chunk[i] * chunk[i];
  sum = sum_over_block<bug>(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (!is_last_block<bug>(ticket)) return;
  float total = 0;
  if (bug == Bug::kUninitialisedTotal) {
    __shared__ float totals[kThreads];
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) totals[threadIdx.x] += sums[i];
    total = totals[threadIdx.x];
  } else {
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) total += sums[i];
  }
  total = sum_over_block<Bug::kNone>(total);
  if (threadIdx.x == 0) *out = total;
}

template <Bug bug>
int run(const float* x, int N, float* sums, unsigned* ticket, float* out) {
  const unsigned blocks = (N + kChunk - 1) / kChunk;
  return launch(sum_of_squares<bug>, blocks, kThreads, nullptr, x, N, sums, ticket, out);
}

}  // namespace

// sums: one float for every 512 elements of x; the ticket is zero.
extern "C" int emulation_planted_bug(int bug, const float* x, int N, float* sums, unsigned* ticket, float* out) {
  using Run = int (*)(const float*, int, float*, unsigned*, float*);
  constexpr Run kRuns[] = {run<Bug::kNone>,          run<Bug::kMissingSync>,       run<Bug::kOverrun>,
                           run<Bug::kMaskedOverrun>, run<Bug::kUninitialisedFlag>, run<Bug::kUninitialisedTotal>,
                           run<Bug::kTicketRace>,    run<Bug::kMissingFence>};
  return kRuns[bug](x, N, sums, ticket, out);
}
