// The transforms of Winograd's F(2x2, 3x3), one channel a lane.
//
// A 3x3 convolution of a 4x4 tile d with a kernel g, and its two adjoints, as 16 products each:
//   y   = A^T [ (G g G^T) * (B^T d B) ] A     a 2x2 tile of the result
//   d_g = G^T [ (B^T d B) * (A d_y A^T) ] G   summed over tiles before the outer transform
// Tiles are row-major: 16 vectors for 4x4, 9 for 3x3, 4 for 2x2. V is any vector of floats or doubles.
// Each two-dimensional transform is the one-dimensional one over columns, then over rows.
// Included only by winograd_leaf.cpp, so everything has internal linkage.
#pragma once

#include "gemm.h"

namespace semckd {
namespace {

// B^T x: rows 0 and 3 take differences two apart, so a constant cancels in all of them but row 1
template <class V>
SEMCKD_INLINE void times_bt(V x0, V x1, V x2, V x3, V* y, int stride) {
  y[0] = x0 - x2;
  y[stride] = x1 + x2;
  y[2 * stride] = x2 - x1;
  y[3 * stride] = x1 - x3;
}

// A^T x
template <class V>
SEMCKD_INLINE void times_at(V x0, V x1, V x2, V x3, V* y, int stride) {
  y[0] = x0 + x1 + x2;
  y[stride] = x1 - x2 - x3;
}

// A x
template <class V>
SEMCKD_INLINE void times_a(V x0, V x1, V* y, int stride) {
  y[0] = x0;
  y[stride] = x0 + x1;
  y[2 * stride] = x0 - x1;
  y[3 * stride] = -x1;
}

// G x
template <class V>
SEMCKD_INLINE void times_g(V x0, V x1, V x2, V* y, int stride) {
  const V half = V{} + 0.5f;
  y[0] = x0;
  y[stride] = half * (x0 + x2 + x1);
  y[2 * stride] = half * (x0 + x2 - x1);
  y[3 * stride] = x2;
}

// G^T x
template <class V>
SEMCKD_INLINE void times_gt(V x0, V x1, V x2, V x3, V* y, int stride) {
  const V half = V{} + 0.5f, even = half * (x1 + x2);
  y[0] = x0 + even;
  y[stride] = half * (x1 - x2);
  y[2 * stride] = even + x3;
}

// B^T d B
template <class V>
SEMCKD_INLINE void transform_input(const V (&d)[16], V (&v)[16]) {
  V t[16];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) times_bt(d[j], d[4 + j], d[8 + j], d[12 + j], t + j, 4);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) times_bt(t[i], t[i + 1], t[i + 2], t[i + 3], v + i, 1);
}

// A^T m A
template <class V>
SEMCKD_INLINE void transform_output(const V (&m)[16], V (&y)[4]) {
  V t[8];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) times_at(m[j], m[4 + j], m[8 + j], m[12 + j], t + j, 4);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) times_at(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3], y + 2 * i, 1);
}

// A d_y A^T, the adjoint of transform_output
template <class V>
SEMCKD_INLINE void transform_output_gradient(const V (&d_y)[4], V (&m)[16]) {
  V t[8];
#pragma GCC unroll 2
  for (int j = 0; j < 2; ++j) times_a(d_y[j], d_y[2 + j], t + j, 2);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) times_a(t[2 * i], t[2 * i + 1], m + 4 * i, 1);
}

// G g G^T
template <class V>
SEMCKD_INLINE void transform_kernel(const V (&g)[9], V (&u)[16]) {
  V t[12];
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) times_g(g[j], g[3 + j], g[6 + j], t + j, 3);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) times_g(t[3 * i], t[3 * i + 1], t[3 * i + 2], u + 4 * i, 1);
}

// G^T u G, the adjoint of transform_kernel
template <class V>
SEMCKD_INLINE void transform_kernel_gradient(const V (&u)[16], V (&g)[9]) {
  V t[12];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) times_gt(u[j], u[4 + j], u[8 + j], u[12 + j], t + j, 4);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) times_gt(t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3], g + 3 * i, 1);
}

}  // namespace
}  // namespace semckd
