// The transforms of Winograd's F(MxM, 3x3), one channel a lane.
//
// A 3x3 convolution of an NxN tile d, N = M + 2, with a kernel g, and its adjoint, as N*N products each:
//   y   = A^T [ (G g G^T) * (B^T d B) ] A     an MxM tile of the result
//   d_g = G^T [ (B^T d B) * (A d_y A^T) ] G   summed over tiles before the outer transform
// B, G and A interpolate polynomials at N - 1 points and infinity (Lavin and Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016). V is any vector of floats or doubles.
// Included only by winograd_kernels.cpp, so everything has internal linkage.
#pragma once

#include "cpu/gemm/gemm.h"

namespace semckd {
namespace {

// The one-dimensional transforms of F(M, 3).
template <int M>
struct Lines;

// Points 0, 1, -1: 16 products for 4 pixels, 2.25 times fewer than the 36 of a direct convolution.
template <>
struct Lines<2> {
  template <class V>
  static SEMCKD_INLINE void bt(const V (&x)[4], V (&y)[4]) {
    y[0] = x[0] - x[2];
    y[1] = x[1] + x[2];
    y[2] = x[2] - x[1];
    y[3] = x[1] - x[3];
  }
  template <class V>
  static SEMCKD_INLINE void at(const V (&x)[4], V (&y)[2]) {
    y[0] = x[0] + x[1] + x[2];
    y[1] = x[1] - x[2] - x[3];
  }
  template <class V>
  static SEMCKD_INLINE void a(const V (&x)[2], V (&y)[4]) {
    y[0] = x[0];
    y[1] = x[0] + x[1];
    y[2] = x[0] - x[1];
    y[3] = -x[1];
  }
  template <class V>
  static SEMCKD_INLINE void g(const V (&x)[3], V (&y)[4]) {
    const V half = V{} + 0.5f;
    y[0] = x[0];
    y[1] = half * (x[0] + x[2] + x[1]);
    y[2] = half * (x[0] + x[2] - x[1]);
    y[3] = x[2];
  }
  template <class V>
  static SEMCKD_INLINE void gt(const V (&x)[4], V (&y)[3]) {
    const V half = V{} + 0.5f, even = half * (x[1] + x[2]);
    y[0] = x[0] + even;
    y[1] = half * (x[1] - x[2]);
    y[2] = even + x[3];
  }
};

// Points 0, +-p, +-q: 36 products for 16 pixels, 4 times fewer than the 144 of a direct convolution. Every point pair
// gives an even and an odd part. With p = 3/4 and q = 3/2 rounding costs half of what it costs with the usual 1 and 2
// (measured, 32 to 512 channels), and all entries of B and A are exact in binary.
template <>
struct Lines<4> {
  static constexpr double p = 0.625, q = 1.5, p2 = p * p, q2 = q * q;
  // 1 / prod (point - other points)
  static constexpr double at_0 = 1 / (p2 * q2), at_p = 1 / (2 * p2 * (p2 - q2)), at_q = 1 / (2 * q2 * (q2 - p2));

  template <class V>
  static SEMCKD_INLINE V scalar(double x) {
    return V{} + static_cast<decltype(V{}[0] + V{}[0])>(x);
  }
  template <class V>
  static SEMCKD_INLINE void pair(V even, V odd, V& plus, V& minus) {
    plus = even + odd;
    minus = even - odd;
  }

  template <class V>
  static SEMCKD_INLINE void bt(const V (&x)[6], V (&y)[6]) {
    const V vp2 = scalar<V>(p2), vq2 = scalar<V>(q2), sum = scalar<V>(p2 + q2), product = scalar<V>(p2 * q2);
    y[0] = product * x[0] + (x[4] - sum * x[2]);
    pair(x[4] - vq2 * x[2], scalar<V>(p) * (x[3] - vq2 * x[1]), y[1], y[2]);
    pair(x[4] - vp2 * x[2], scalar<V>(q) * (x[3] - vp2 * x[1]), y[3], y[4]);
    y[5] = product * x[1] + (x[5] - sum * x[3]);
  }
  template <class V>
  static SEMCKD_INLINE void at(const V (&x)[6], V (&y)[4]) {
    const V even_p = x[1] + x[2], odd_p = x[1] - x[2], even_q = x[3] + x[4], odd_q = x[3] - x[4];
    y[0] = x[0] + even_p + even_q;
    y[1] = scalar<V>(p) * odd_p + scalar<V>(q) * odd_q;
    y[2] = scalar<V>(p2) * even_p + scalar<V>(q2) * even_q;
    y[3] = scalar<V>(p * p2) * odd_p + (scalar<V>(q * q2) * odd_q + x[5]);
  }
  template <class V>
  static SEMCKD_INLINE void a(const V (&x)[4], V (&y)[6]) {
    y[0] = x[0];
    pair(x[0] + scalar<V>(p2) * x[2], scalar<V>(p) * x[1] + scalar<V>(p * p2) * x[3], y[1], y[2]);
    pair(x[0] + scalar<V>(q2) * x[2], scalar<V>(q) * x[1] + scalar<V>(q * q2) * x[3], y[3], y[4]);
    y[5] = x[3];
  }
  template <class V>
  static SEMCKD_INLINE void g(const V (&x)[3], V (&y)[6]) {
    y[0] = scalar<V>(at_0) * x[0];
    pair(scalar<V>(at_p) * (x[0] + scalar<V>(p2) * x[2]), scalar<V>(at_p * p) * x[1], y[1], y[2]);
    pair(scalar<V>(at_q) * (x[0] + scalar<V>(q2) * x[2]), scalar<V>(at_q * q) * x[1], y[3], y[4]);
    y[5] = x[2];
  }
  template <class V>
  static SEMCKD_INLINE void gt(const V (&x)[6], V (&y)[3]) {
    const V even_p = scalar<V>(at_p) * (x[1] + x[2]), even_q = scalar<V>(at_q) * (x[3] + x[4]);
    y[0] = scalar<V>(at_0) * x[0] + even_p + even_q;
    y[1] = scalar<V>(at_p * p) * (x[1] - x[2]) + scalar<V>(at_q * q) * (x[3] - x[4]);
    y[2] = scalar<V>(p2) * even_p + (scalar<V>(q2) * even_q + x[5]);
  }
};

// store(i, j, y) for y = L x L^T, where `line` is L and load(i, j) is x: columns first, then rows.
template <int kIn, int kOut, class V, class Line, class Load, class Store>
SEMCKD_INLINE void transform_2d(const Line& line, const Load& load, const Store& store) {
  V columns[kOut][kIn];
#pragma GCC unroll 6
  for (int j = 0; j < kIn; ++j) {
    V x[kIn], y[kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) x[i] = load(i, j);
    line(x, y);
#pragma GCC unroll 6
    for (int i = 0; i < kOut; ++i) columns[i][j] = y[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kOut; ++i) {
    V y[kOut];
    line(columns[i], y);
#pragma GCC unroll 6
    for (int j = 0; j < kOut; ++j) store(i, j, y[j]);
  }
}

}  // namespace
}  // namespace semckd
