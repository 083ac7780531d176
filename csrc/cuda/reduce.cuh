// Sums over a warp, a block and a grid, in an order that depends on nothing but the sizes.
#pragma once

#include "cuda/platform.cuh"

namespace semckd {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum in every lane.
template <class R>
__device__ __forceinline__ R warp_sum(R x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

template <class R>
__device__ __forceinline__ R warp_max(R x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const R other = __shfl_xor_sync(kAllLanes, x, distance);
    x = other > x ? other : x;
  }
  return x;
}

// The sum over all threads of the block; valid in thread 0. May be called repeatedly.
template <int THREADS, class R>
__device__ __forceinline__ R block_sum(R x) {
  static_assert(THREADS % kWarp == 0 && THREADS / kWarp <= kWarp);
  __shared__ R warp_sums[THREADS / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  x = warp_sum(x);
  // an earlier call's first warp may still be reading
  __syncthreads();
  if (lane == 0) warp_sums[warp] = x;
  __syncthreads();
  return warp == 0 ? warp_sum(lane < THREADS / kWarp ? warp_sums[lane] : R(0)) : R(0);
}

// Whether this block is the last of `blocks` to call; what thread 0 of the others wrote before is then visible to
// all threads of this one. The ticket must be zero before the first call, and is zero again after the last.
__device__ __forceinline__ bool last_to_arrive(unsigned* ticket, unsigned blocks) {
  __shared__ bool is_last;
  // an earlier call's answer may still be being read
  __syncthreads();
  if (threadIdx.x == 0) {
    // the first fence publishes our results before the ticket is drawn, the second keeps reads of theirs behind it
    __threadfence();
    const bool drew_last = atomicInc(ticket, blocks - 1) == blocks - 1;
    __threadfence();
    is_last = drew_last;
  }
  __syncthreads();
  return is_last;
}

}  // namespace semckd
