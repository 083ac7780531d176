// The matrix-product micro-kernels of the CPU criterion: one for products of rows, one for sums over rows.
//
// Operands lie packed and padded in scratch memory, so there are no tails in here:
//   A panels   see LeftFactor. Padding channels are zero.
//   B panels   [column panel][k][kPanel], see packing.h.
// R is float, or double for double maps. Tile sizes follow from the register file: `kRows` x 2 vectors of sums, two
// vectors of B and one broadcast element of A.
// Included only by files compiled once per instruction set, so everything has internal linkage; see isa/isa.h.
#pragma once

#include <cstdint>

#include "cpu/isa/vec.h"

namespace semckd {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kRows = 6;  // 12 of 16
#endif

// columns of a packed panel
template <class R>
constexpr int kPanel = 2 * kLanes<R>;

template <class R>
constexpr int64_t padded(int64_t channels) {
  return (channels + kPanel<R> - 1) / kPanel<R> * kPanel<R>;
}

#define SEMCKD_INLINE inline __attribute__((always_inline))

// x in all lanes, by a load that spreads it. Subtracting zero changes nothing, so compilers leave it out; adding x to
// zero would turn -0 into 0, so they must add, which costs a product 10%.
template <class R>
SEMCKD_INLINE AccVec<R> splat(R x) {
  return x - AccVec<R>{};
}

// Asks for a panel's rows of sums: blocks of them come round so rarely that they are in no near cache by then.
template <int MR, class R>
SEMCKD_INLINE void prefetch_rows(const R* C, int64_t c_stride) {
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
    __builtin_prefetch(C + r * c_stride);
    __builtin_prefetch(C + r * c_stride + kPanel<R> / 2);
  }
}

// The left factor of a product: channel k of row r is data[k / kPanel * panel_stride + r * row_stride + k % kPanel];
// plain row-major rows have panel_stride = kPanel.
template <class T>
struct LeftFactor {
  const T* data;
  int64_t panel_stride, row_stride;

  LeftFactor from_row(int64_t r) const { return {data + r * row_stride, panel_stride, row_stride}; }
};

// Where the rows of a product go: added to what is there, or in its place.
template <class R>
struct ProductRows {
  R* data;
  int64_t stride;
  bool accumulate;

  ProductRows from_row(int64_t r) const { return {data + r * stride, stride, accumulate}; }
};

// C[r][0..kPanel) (+)= sum_k A[r][k] B[k][0..kPanel) for MR rows and `steps` steps of kDepth channels each, which lie
// A's panel_stride apart. The sum is formed first and then added. `next`, if given, is memory of which
// kDepth * next_stride elements a step are asked for.
template <int MR, int kDepth, class R>
SEMCKD_INLINE void product_tile(LeftFactor<R> A, int64_t steps, const R* B, ProductRows<R> C, const R* next = nullptr,
                                int64_t next_stride = 0) {
  using V = AccVec<R>;
  constexpr int64_t kLanes = semckd::kLanes<R>;
  V sum[MR][2] = {};
  const R* a_step = A.data;
  for (int64_t step = 0; step < steps; ++step, a_step += A.panel_stride) {
    for (int k = 0; k < kDepth; ++k, B += kPanel<R>) {
      // the next step of A: its rows lie far apart, which hardware does not prefetch
      if (k < MR) __builtin_prefetch(a_step + A.panel_stride + k * A.row_stride);
      if (next) {
        __builtin_prefetch(next);
        next += next_stride;
      }
      const V b0 = load(B), b1 = load(B + kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        const V a = splat(a_step[r * A.row_stride + k]);
        sum[r][0] += a * b0;
        sum[r][1] += a * b1;
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r) {
    R* c = C.data + r * C.stride;
    store(c, C.accumulate ? load(c) + sum[r][0] : sum[r][0]);
    store(c + kLanes, C.accumulate ? load(c + kLanes) + sum[r][1] : sum[r][1]);
  }
}

// The same for any number of rows and one panel of B.
template <class R>
void product(LeftFactor<R> A, int64_t rows, int64_t K, const R* B, ProductRows<R> C) {
  int64_t r = 0;
#define SEMCKD_TILES(MR) \
  for (; r + MR <= rows; r += MR) product_tile<MR, kPanel<R>>(A.from_row(r), K / kPanel<R>, B, C.from_row(r))
  SEMCKD_TILES(kRows);
  SEMCKD_TILES(4);
  SEMCKD_TILES(1);
#undef SEMCKD_TILES
}

// product() whose sums are formed kChain channels at a time and then added up (to C, if asked for), so that rounding
// errors hardly grow with K. A 3x3 convolution by chains of 16 takes 4 to 7% longer than by chains of 32.
template <int kChain, class R>
void chained_product(LeftFactor<R> A, int64_t rows, int64_t K, const R* B, ProductRows<R> C) {
  // a part of a panel, or panels, of which the last chain may have fewer
  constexpr bool kInPanel = kChain <= kPanel<R>;
  constexpr int kDepth = kInPanel ? kChain : kPanel<R>;
  // the next chain's B, which comes from far where B is large: each tile of rows asks for its share
  const int64_t tiles = rows / kRows + rows % kRows / 4 + rows % 4, share = kPanel<R> / (tiles > 0 ? tiles : 1);
  for (int64_t k = 0; k < K; k += kChain, B += kChain * kPanel<R>) {
    const R* next = B + kChain * kPanel<R>;
    const R* a = A.data + k / kPanel<R> * A.panel_stride + k % kPanel<R>;
    const ProductRows<R> sums{C.data, C.stride, C.accumulate || k > 0};
    const int64_t steps = kInPanel ? 1 : (K - k < kChain ? K - k : kChain) / kDepth;
    int64_t r = 0;
    // within a panel there is one step, and what lies ahead are the next rows
#define SEMCKD_TILES(MR)                                                                                          \
  for (; r + MR <= rows; r += MR, next += kChain * share)                                                         \
  product_tile<MR, kDepth>(                                                                                       \
      LeftFactor<R>{a + r * A.row_stride, kInPanel ? MR * A.row_stride : A.panel_stride, A.row_stride}, steps, B, \
      sums.from_row(r), next, share)
    SEMCKD_TILES(kRows);
    SEMCKD_TILES(4);
    SEMCKD_TILES(1);
  }
#undef SEMCKD_TILES
}

// C[m][0..kPanel) (+)= sum_r A[r][m] B[r][0..kPanel) for m = 0..kPanel: one block of a sum over rows. The rows' sum is
// formed first and then added, so that chains of additions stay short. `next`, if given, is the B of the next block, as
// many rows side by side, and asked for.
template <class R>
void row_sum_block(const R* A, int64_t a_stride, const R* B, int64_t b_stride, int64_t rows, ProductRows<R> C,
                   const R* next = nullptr) {
  using V = AccVec<R>;
  constexpr int64_t kLanes = semckd::kLanes<R>;
  constexpr int MR = kRows >= 12 ? 8 : 4;
  for (int m = 0; m < kPanel<R>; m += MR) {
    prefetch_rows<MR>(C.data + m * C.stride, C.stride);
    V sum[MR][2] = {};
    const R *a = A + m, *b = B;
    const R* ahead = next + m * rows;
    for (int64_t r = 0; r < rows; ++r, a += a_stride, b += b_stride) {
      if (next) __builtin_prefetch(ahead + r * MR, 0, 2);
      const V b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const V x = splat(a[i]);
        sum[i][0] += x * b0;
        sum[i][1] += x * b1;
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      R* c = C.data + (m + i) * C.stride;
      store(c, C.accumulate ? load(c) + sum[i][0] : sum[i][0]);
      store(c + kLanes, C.accumulate ? load(c + kLanes) + sum[i][1] : sum[i][1]);
    }
  }
}

}  // namespace
}  // namespace semckd
