// gemm.h's micro-kernels with bf16 operands, for processors that have vdpbf16ps: two products a lane, summed in fp32.
//
// Operands come in pairs along the sum:
//   A panels of `product`         as gemm.h's: channels 2i and 2i + 1 of a row lie side by side anyway
//   B panels of `product`         [column panel][k / 2][kPanel][2]
//   A and B of `row_sum_block`    [r / 2][kPanel][2]; the number of rows is even, padded by a row of zeros
// Included only by files compiled once per instruction set, so everything has internal linkage; see isa/isa.h.
#pragma once

#if defined(__AVX512BF16__)

#include <immintrin.h>

#include "cpu/gemm/gemm.h"
#include "cpu/isa/vec.h"

namespace semckd {
namespace {

constexpr int64_t kBf16Panel = kPanel<float>;

inline __m512bh load_pairs(const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh broadcast_pair(const BFloat16* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// sixteen channels of one row, rounded
inline void store_rounded(BFloat16* p, F32s v) { store_as(p, _mm512_cvtneps_pbh(__m512(v))); }

// sixteen channels of two rows, rounded and interleaved
inline void store_rounded_pair(BFloat16* p, F32s even, F32s odd) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(__m512(even)));
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(__m512(odd)));
  store_as(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

template <int MR>
SEMCKD_INLINE void product_tile(LeftFactor<BFloat16> A, int64_t K, const BFloat16* B, ProductRows<float> C) {
  __m512 sum[MR][2] = {};
  if (C.accumulate)
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      sum[r][0] = load_as<__m512>(C.data + r * C.stride);
      sum[r][1] = load_as<__m512>(C.data + r * C.stride + 16);
    }
  const BFloat16* a_panel = A.data;
  for (int64_t panel = 0; panel < K; panel += kBf16Panel, a_panel += A.panel_stride) {
    for (int k = 0; k < kBf16Panel; k += 2, B += 2 * kBf16Panel) {
      if (k / 2 < MR) __builtin_prefetch(a_panel + A.panel_stride + k / 2 * A.row_stride);
      const __m512bh b0 = load_pairs(B), b1 = load_pairs(B + kBf16Panel);
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        const __m512bh a = broadcast_pair(a_panel + r * A.row_stride + k);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, b0);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, b1);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
    store_as(C.data + r * C.stride, sum[r][0]);
    store_as(C.data + r * C.stride + 16, sum[r][1]);
  }
}

// C[r][0..kPanel) (+)= sum_k A[r][k] B[k][0..kPanel) for any number of rows and one panel of B; see gemm.h.
// Sums go on where they were: in pieces of K they come out as in one.
inline void product(LeftFactor<BFloat16> A, int64_t rows, int64_t K, const BFloat16* B, ProductRows<float> C) {
  int64_t r = 0;
#define SEMCKD_TILES(MR) \
  for (; r + MR <= rows; r += MR) product_tile<MR>(A.from_row(r), K, B, C.from_row(r))
  SEMCKD_TILES(kRows);
  SEMCKD_TILES(4);
  SEMCKD_TILES(1);
#undef SEMCKD_TILES
}

// C[m][0..kPanel) (+)= sum_r A[r][m] B[r][0..kPanel) for m = 0..kPanel; see gemm.h.
inline void row_sum_block(const BFloat16* A, const BFloat16* B, int64_t rows, ProductRows<float> C) {
  constexpr int MR = 8;
  for (int m = 0; m < kBf16Panel; m += MR) {
    prefetch_rows<MR>(C.data + m * C.stride, C.stride);
    __m512 sum[MR][2] = {};
    const BFloat16 *a = A + 2 * m, *b = B;
    for (int64_t r = 0; r < rows; r += 2, a += 2 * kBf16Panel, b += 2 * kBf16Panel) {
      const __m512bh b0 = load_pairs(b), b1 = load_pairs(b + kBf16Panel);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const __m512bh x = broadcast_pair(a + 2 * i);
        sum[i][0] = _mm512_dpbf16_ps(sum[i][0], x, b0);
        sum[i][1] = _mm512_dpbf16_ps(sum[i][1], x, b1);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      float* c = C.data + (m + i) * C.stride;
      store_as(c, C.accumulate ? load_as<__m512>(c) + sum[i][0] : sum[i][0]);
      store_as(c + 16, C.accumulate ? load_as<__m512>(c + 16) + sum[i][1] : sum[i][1]);
    }
  }
}

}  // namespace
}  // namespace semckd

#endif
