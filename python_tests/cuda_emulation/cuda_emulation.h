// CUDA C++ for a host compiler: the keywords, built-in variables and intrinsics that kernels in csrc/cuda use.
//
// csrc/cuda/platform.cuh includes this file in place of CUDA's headers when SEMCKD_CUDA_EMULATION is defined. Every
// CUDA thread is a fiber of one OS thread (scheduler.cpp). Types such as __half and uint4 are CUDA's own. An intrinsic
// that is missing here is a compile error, to be mended by adding it.
#pragma once

#ifdef __CUDACC__
#error "cuda_emulation.h is for host compilers"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
// at block scope this implies static; the scheduler swaps the module's thread-local memory with each block
#define __shared__ thread_local
#define __constant__ static const
#define __grid_constant__
#define __launch_bounds__(...)

#define CUDA_EMULATION_WHERE ::cuda_emulation::Where where = {__builtin_FILE(), __builtin_LINE()}

// variables of the running thread, rewritten whenever the scheduler switches
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_emulation {

template <class T>
uint64_t to_bits(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &v, sizeof(T));
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

template <class T>
T shuffle(unsigned mask, T v, int source_lane, Where where) {
  return from_bits<T>(warp_collective(Collective::kShuffle, mask, to_bits(v), source_lane, where));
}

// Lanes whose partner lies outside their group of `width` read themselves.
inline int within_group(int lane, int source, int width) { return source / width == lane / width ? source : lane; }

// One OS thread runs everything, so a plain update is atomic.
template <class T, class F>
__attribute__((no_sanitize("thread"))) T atomic_update(T* p, F next, Where where) {
  before_atomic(p, sizeof(T), where);
  const T old = *p;
  *p = next(old);
  after_atomic(p);
  return old;
}

// forces the module's thread-local block into existence
inline thread_local char tls_anchor;

}  // namespace cuda_emulation

// --- synchronisation -----------------------------------------------------------------------------------------------
inline void __syncthreads(CUDA_EMULATION_WHERE) { cuda_emulation::block_barrier(where); }
inline void __syncwarp(unsigned mask = ~0u, CUDA_EMULATION_WHERE) {
  cuda_emulation::warp_collective(cuda_emulation::Collective::kSyncWarp, mask, 0, 0, where);
}
inline void __threadfence_block() { cuda_emulation::fence(); }
inline void __threadfence() { cuda_emulation::fence(); }

// --- warp collectives ----------------------------------------------------------------------------------------------
template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, CUDA_EMULATION_WHERE) {
  const int lane = cuda_emulation::lane_id();
  return cuda_emulation::shuffle(mask, v, lane / width * width + source % width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, CUDA_EMULATION_WHERE) {
  const int lane = cuda_emulation::lane_id(), source = lane ^ bits;
  // unlike the other shuffles this one may reach groups of lower lanes
  return cuda_emulation::shuffle(mask, v, source / width > lane / width ? lane : source, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned distance, int width = 32, CUDA_EMULATION_WHERE) {
  const int lane = cuda_emulation::lane_id();
  return cuda_emulation::shuffle(mask, v, cuda_emulation::within_group(lane, lane + static_cast<int>(distance), width),
                                 where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned distance, int width = 32, CUDA_EMULATION_WHERE) {
  const int lane = cuda_emulation::lane_id(), source = lane - static_cast<int>(distance);
  return cuda_emulation::shuffle(mask, v, source < 0 ? lane : cuda_emulation::within_group(lane, source, width), where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATION_WHERE) {
  using cuda_emulation::Collective;
  return static_cast<unsigned>(cuda_emulation::warp_collective(Collective::kBallot, mask, predicate != 0, 0, where));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_EMULATION_WHERE) {
  using cuda_emulation::Collective;
  return static_cast<int>(cuda_emulation::warp_collective(Collective::kAny, mask, predicate != 0, 0, where));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_EMULATION_WHERE) {
  using cuda_emulation::Collective;
  return static_cast<int>(cuda_emulation::warp_collective(Collective::kAll, mask, predicate != 0, 0, where));
}

// --- atomics (relaxed) ---------------------------------------------------------------------------------------------
template <class T>
T atomicAdd(T* p, std::common_type_t<T> v, CUDA_EMULATION_WHERE) {
  return cuda_emulation::atomic_update(p, [v](T old) { return static_cast<T>(old + v); }, where);
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> v, CUDA_EMULATION_WHERE) {
  return cuda_emulation::atomic_update(p, [v](T old) { return std::max(old, v); }, where);
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> v, CUDA_EMULATION_WHERE) {
  return cuda_emulation::atomic_update(p, [v](T) { return v; }, where);
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v, CUDA_EMULATION_WHERE) {
  return cuda_emulation::atomic_update(p, [expected, v](T old) { return old == expected ? v : old; }, where);
}
inline unsigned atomicInc(unsigned* p, unsigned limit, CUDA_EMULATION_WHERE) {
  return cuda_emulation::atomic_update(p, [limit](unsigned old) { return old >= limit ? 0u : old + 1; }, where);
}

// --- loads and arithmetic ------------------------------------------------------------------------------------------
template <class T>
inline __attribute__((always_inline)) T __ldg(const T* p) {
  cuda_emulation::before_read_only_load(p, sizeof(T));
  return *p;
}
using std::max;
using std::min;

// --- launch --------------------------------------------------------------------------------------------------------
template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
  struct Closure {
    void (*kernel)(P...);
    std::tuple<P...> args;
  } closure{kernel, std::tuple<P...>(static_cast<P>(args)...)};
  const auto body = [](void* p) {
    auto* call = static_cast<Closure*>(p);
    std::apply(call->kernel, call->args);
  };
  cuda_emulation::tls_anchor = 0;
  return cuda_emulation::run(
      {config->gridDim, config->blockDim, config->dynamicSmemBytes, (sizeof(P) + ... + size_t(0))},
      reinterpret_cast<const void*>(kernel), body, &closure);
}
