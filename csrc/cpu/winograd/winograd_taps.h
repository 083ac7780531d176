// Blocks of a 3x3 weight or its gradient, brought from its order of memory into vectors of columns and back.
//
// A weight has two orders that are usual, contiguous and channels_last, each seen as it is or turned (winograd.cpp):
// for whole blocks of these there are transposes in registers (bench/LOG.md says what they save).
// Included only by winograd_kernels.cpp, so everything has internal linkage.
#pragma once

#include "cpu/gemm/packing.h"
#include "cpu/winograd/winograd_maps.h"

namespace semckd {
namespace {

// [tap][row][column of a step]
template <class R, int kBlockRows>
using Taps = R[9][kBlockRows][kStep<R>];

#if defined(__AVX512F__)
// Sixteen floats, or some of them; those `ahead`, of the next block of rows, are asked for. Where hardly two vectors of
// a block lie close together, hardware prefetches none of them.
constexpr __mmask16 kAll = 0xffff, kNine = 0x1ff;
SEMCKD_INLINE __m512 load_prefetched(const float* p, int64_t ahead, __mmask16 lanes = kAll) {
  __builtin_prefetch(p + ahead);
  return _mm512_maskz_loadu_ps(lanes, p);
}

// Writes `count` floats past the caches: a gradient is read much later, and a line that is stored to would first be
// read. To be followed by a fence.
SEMCKD_INLINE void stream(float* to, const float* from, int64_t count) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(__m512) != 0) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
}
inline void fence_streams() { _mm_sfence(); }

// The usual orders of memory, for whole blocks: whether this was one.
inline bool gather_fast(const KernelView& weight, const float* source, Taps<float, kKernelRows>& taps) {
  if (weight.row == 9 && weight.x == 1 && weight.y == 3) {
    // a column's rows and taps lie in one run
    for (int half = 0; half < 32; half += 16)
      for (int n = 0; n < 9 * kKernelRows; n += 16)
        transpose_16x16<16>(
            [&](int j) SEMCKD_INLINE_LAMBDA { return _mm512_loadu_ps(source + (half + j) * weight.column + n); },
            [&](int e, __m512 v) SEMCKD_INLINE_LAMBDA { _mm512_storeu_ps(&taps[(n + e) % 9][(n + e) / 9][half], v); });
    return true;
  }
  if (weight.column == 9 && weight.x == -1 && weight.y == -3) {
    // nine taps a row and column, the last first
    for (int i = 0; i < kKernelRows; ++i)
      for (int half = 0; half < 32; half += 16) {
        const float* first = source + i * weight.row + half * 9 - 8;
        transpose_16x16<9>(
            [&](int j) SEMCKD_INLINE_LAMBDA { return load_prefetched(first + 9 * j, kKernelRows * weight.row, kNine); },
            [&](int e, __m512 v) SEMCKD_INLINE_LAMBDA { _mm512_storeu_ps(&taps[8 - e][i][half], v); });
      }
    return true;
  }
  if (weight.row == 1) {
    // channels_last: rows side by side
    for (int tap = 0; tap < 9; ++tap)
      for (int half = 0; half < 32; half += 16) {
        const float* first = source + weight.tap(tap) + half * weight.column;
        transpose_16x16<16>(
            [&](int j) SEMCKD_INLINE_LAMBDA { return load_prefetched(first + j * weight.column, kKernelRows); },
            [&](int e, __m512 v) SEMCKD_INLINE_LAMBDA { _mm512_storeu_ps(&taps[tap][e][half], v); });
      }
    return true;
  }
  if (weight.column == 1) {
    for (int tap = 0; tap < 9; ++tap)
      for (int i = 0; i < kKernelRows; ++i)
        for (int half = 0; half < 32; half += 16) {
          const float* first = source + weight.tap(tap) + i * weight.row + half;
          _mm512_storeu_ps(&taps[tap][i][half], load_prefetched(first, kKernelRows * weight.row));
        }
    return true;
  }
  return false;
}

inline bool scatter_fast(const KernelView& weight, const Taps<float, 1>& taps, float* target) {
  if (weight.column == 9 && weight.x == 1 && weight.y == 3) {
    float run[9 * 32];
    for (int half = 0; half < 32; half += 16)
      transpose_16x16<16>(
          [&](int tap) SEMCKD_INLINE_LAMBDA { return tap < 9 ? _mm512_loadu_ps(&taps[tap][0][half]) : __m512{}; },
          [&](int j, __m512 v) SEMCKD_INLINE_LAMBDA { _mm512_mask_storeu_ps(run + (half + j) * 9, kNine, v); });
    stream(target, run, 9 * 32);
    return true;
  }
  if (weight.column == 1) {
    for (int tap = 0; tap < 9; ++tap) stream(target + weight.tap(tap), taps[tap][0], 32);
    return true;
  }
  return false;
}
#else
inline void fence_streams() {}
#endif
template <class R>
bool gather_fast(const KernelView&, const R*, Taps<R, kKernelRows>&) {
  return false;
}
template <class R>
bool scatter_fast(const KernelView&, const Taps<R, 1>&, R*) {
  return false;
}

// a block of the weight; zeros behind its last channels
template <class R>
void gather_taps(const KernelView& weight, int64_t row, int64_t column, Taps<R, kKernelRows>& taps) {
  const int64_t rows = weight.rows - row < kKernelRows ? weight.rows - row : kKernelRows;
  const int64_t columns = weight.columns - column < kStep<R> ? weight.columns - column : kStep<R>;
  const R* source = static_cast<const R*>(weight.data) + row * weight.row + column * weight.column;
  const bool whole = rows == kKernelRows && columns == kStep<R>;
  if (whole && gather_fast(weight, source, taps)) return;
  if (!whole) std::memset(taps, 0, sizeof taps);
  const auto gather = [&](int64_t i, int64_t j) SEMCKD_INLINE_LAMBDA {
    const R* w = source + i * weight.row + j * weight.column;
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) taps[tap][i][j] = w[weight.tap(tap)];
  };
  // in the order of memory
  const bool rows_are_close = weight.row * weight.row < weight.column * weight.column;
  if (rows_are_close) {
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t i = 0; i < rows; ++i) gather(i, j);
  } else {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) gather(i, j);
  }
}

// `columns` taps of one row into their place
template <class R>
void scatter_taps(const KernelView& weight, const Taps<R, 1>& taps, int64_t columns, R* target) {
  if (columns == kStep<R> && scatter_fast(weight, taps, target)) return;
  for (int64_t j = 0; j < columns; ++j, target += weight.column)
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) target[weight.tap(tap)] = taps[tap][0][j];
}

}  // namespace
}  // namespace semckd
