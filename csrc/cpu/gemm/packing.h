// Matrices brought into the order that products read: transposes in registers, and panels. Included only by files
// compiled once per instruction set, so everything has internal linkage.
#pragma once

#include "cpu/gemm/gemm.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace semckd {
namespace {

#if defined(__AVX512F__)
// store(e, v) for e < kUsed: v is lane e of the sixteen vectors load(j)
template <int kUsed, class Load, class Store>
SEMCKD_INLINE void transpose_16x16(const Load& load, const Store& store) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) a[j] = load(j);
#pragma GCC unroll 8
  for (int j = 0; j < 16; j += 2) {
    b[j] = _mm512_unpacklo_ps(a[j], a[j + 1]);
    b[j + 1] = _mm512_unpackhi_ps(a[j], a[j + 1]);
  }
  const auto pairs = [](__m512 x, __m512 y, bool high) __attribute__((always_inline)) {
    const __m512d u = _mm512_castps_pd(x), v = _mm512_castps_pd(y);
    return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(u, v) : _mm512_unpacklo_pd(u, v));
  };
  // a[4q + e]: lanes e, e + 4, ... of vectors 4q to 4q + 3
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = pairs(b[i / 4 * 4 + i % 4 / 2], b[i / 4 * 4 + 2 + i % 4 / 2], i % 2);
#pragma GCC unroll 4
  for (int e = 0; e < 4; ++e) {
    const __m512 low = _mm512_shuffle_f32x4(a[e], a[4 + e], 0x88), high = _mm512_shuffle_f32x4(a[e], a[4 + e], 0xdd);
    const __m512 low2 = _mm512_shuffle_f32x4(a[8 + e], a[12 + e], 0x88);
    const __m512 high2 = _mm512_shuffle_f32x4(a[8 + e], a[12 + e], 0xdd);
    if (e < kUsed) store(e, _mm512_shuffle_f32x4(low, low2, 0x88));
    if (8 + e < kUsed) store(8 + e, _mm512_shuffle_f32x4(low, low2, 0xdd));
    if (4 + e < kUsed) store(4 + e, _mm512_shuffle_f32x4(high, high2, 0x88));
    if (12 + e < kUsed) store(12 + e, _mm512_shuffle_f32x4(high, high2, 0xdd));
  }
}
#endif

// to[j][i] = from[i][j] for a square of sixteen
constexpr int64_t kSquare = 16;
template <class R>
SEMCKD_INLINE void transpose_square(const R* from, int64_t from_stride, R* to, int64_t to_stride) {
  for (int64_t i = 0; i < kSquare; ++i)
    for (int64_t j = 0; j < kSquare; ++j) to[j * to_stride + i] = from[i * from_stride + j];
}
#if defined(__AVX512F__)
SEMCKD_INLINE void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  transpose_16x16<16>([&](int i) __attribute__((always_inline)) { return _mm512_loadu_ps(from + i * from_stride); },
                      [&](int j, __m512 v) __attribute__((always_inline)) { _mm512_storeu_ps(to + j * to_stride, v); });
}
#endif

// B panels of the matrix whose element (k, n) is source[k * k_stride + n * n_stride]; zeros where k >= K or n >= N.
// Columns fill padded(N) / kPanel panels of padded(K) * kPanel elements.
template <class R>
void pack_panels(const R* source, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N, R* panels) {
  constexpr int64_t kWidth = kPanel<R>, kBlock = kWidth < kSquare ? kWidth : kSquare;
  for (int64_t n0 = 0; n0 < N; n0 += kWidth)
    for (int64_t k0 = 0; k0 < padded<R>(K); k0 += kBlock, panels += kBlock * kWidth) {
      const R* block = source + k0 * k_stride + n0 * n_stride;
      const bool is_whole = k0 + kBlock <= K && n0 + kWidth <= N;
      if (is_whole && n_stride == 1) {
        for (int64_t k = 0; k < kBlock; ++k) std::memcpy(panels + k * kWidth, block + k * k_stride, kWidth * sizeof(R));
      } else if (is_whole && k_stride == 1 && kWidth % kSquare == 0) {
        for (int64_t n = 0; n < kWidth; n += kSquare)
          transpose_square(block + n * n_stride, n_stride, panels + n, kWidth);
      } else {
        for (int64_t k = 0; k < kBlock; ++k)
          for (int64_t n = 0; n < kWidth; ++n)
            panels[k * kWidth + n] = k0 + k < K && n0 + n < N ? block[k * k_stride + n * n_stride] : R(0);
      }
    }
}

}  // namespace
}  // namespace semckd
