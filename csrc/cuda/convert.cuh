// Conversions between a map's type and the type that its sums are kept in.
#pragma once

#include <type_traits>

#include "cuda/platform.cuh"

namespace semckd {

// fp64 for fp64 maps, fp32 for all others
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void cast(double x, double& y) { y = x; }
__device__ __forceinline__ void cast(float x, float& y) { y = x; }
__device__ __forceinline__ void cast(float x, __half& y) { y = __float2half_rn(x); }
__device__ __forceinline__ void cast(float x, __nv_bfloat16& y) { y = __float2bfloat16_rn(x); }

}  // namespace semckd
