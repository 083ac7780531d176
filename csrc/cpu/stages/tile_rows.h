// What happens to a tile row by row: maps in and out of it, with the conversions and pointwise steps on the way, and
// sums of its columns. Products are in stage_kernels.cpp. Included only by files compiled once per instruction set,
// so everything has internal linkage; see isa/isa.h.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemm_bf16.h"
#include "cpu/gemm/packing.h"
#include "cpu/isa/vec.h"
#include "cpu/stages/stage_kernels.h"

namespace semckd {
namespace {

// `count` elements, a whole vector where that is known; zeros behind them
template <class M>
SEMCKD_INLINE AccVec<M> load_up_to(const M* p, int64_t count) {
  return count == kLanes<AccType<M>> ? load(p) : load_first<M, AccVec<M>>(p, count);
}
template <class M>
SEMCKD_INLINE void store_vector(M* p, AccVec<M> v) {
  store(p, v);
}
#if defined(__AVX512BF16__)
SEMCKD_INLINE void store_vector(BFloat16* p, F32s v) { store_rounded(p, v); }
#endif
template <class M>
SEMCKD_INLINE void store_up_to(M* p, AccVec<M> v, int64_t count) {
  if (count == kLanes<AccType<M>>) {
    store_vector(p, v);
  } else {
    store_first(p, v, count);
  }
}

// load_up_to() of a map that is read from its beginning to its end, some way ahead of which lines are asked for:
// hardware stops at every page
template <class M>
SEMCKD_INLINE AccVec<M> load_stream(const M* p, int64_t count) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 2048);
  return load_up_to(p, count);
}

// body(channel, count) for every vector of a row
template <class R, class Body>
SEMCKD_INLINE void for_each_vector(int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<R> <= channels; c += kLanes<R>) body(c, kLanes<R>);
  if (c < channels) body(c, channels - c);
}
#define SEMCKD_BODY(...) [&](__VA_ARGS__) __attribute__((always_inline))

// NaN is kept, as torch's ReLU keeps it: it is not less than or equal to zero
template <class V>
SEMCKD_INLINE V zero_unless_positive(V sign, V value) {
  return sign <= V{} ? V{} : value;
}

template <class R>
SEMCKD_INLINE int64_t round_up_to_group(int64_t channels) {
  return (channels + kGroup<R> - 1) / kGroup<R> * kGroup<R>;
}

// tile[row][channel] = value(row's first element of the map, channel, count), zeros in the padding
template <class M, class Value>
SEMCKD_INLINE void fill_tile(RowSpan rows, int64_t channels, AccType<M>* tile, int64_t stride, const Value& value) {
  using R = AccType<M>;
  for (int64_t r = 0; r < rows.count; ++r) {
    R* row = tile + r * stride;
    const int64_t first = (rows.first + r) * channels;
    for_each_vector<R>(
        channels, SEMCKD_BODY(int64_t c, int64_t count) {
          // a whole vector is stored, so that what lies behind `count` must be zero
          AccVec<M> v = value(first + c, c, count);
          if (count < kLanes<R>) v = load_first<R, AccVec<M>>(reinterpret_cast<const R*>(&v), count);
          store(row + c, v);
        });
    const int64_t filled = (channels + kLanes<R> - 1) / kLanes<R> * kLanes<R>;
    if (filled % kGroup<R> != 0) store(row + filled, AccVec<M>{});
  }
}

template <class M>
void load_tile(const void* x_ptr, RowSpan rows, int64_t channels, AccType<M>* tile, int64_t stride) {
  const M* x = static_cast<const M*>(x_ptr);
  fill_tile<M>(
      rows, channels, tile, stride,
      SEMCKD_BODY(int64_t e, int64_t, int64_t count) { return load_stream(x + e, count); });
}

template <class M>
void load_transposed(const void* x_ptr, RowSpan features, int64_t B, int64_t N, AccType<M>* tile, int64_t stride) {
  using R = AccType<M>;
  constexpr int64_t kLanes = semckd::kLanes<R>;
  const M* x = static_cast<const M*>(x_ptr) + features.first;
  for (int64_t b0 = 0; b0 < round_up_to_group<R>(B); b0 += kSquare)
    for (int64_t i0 = 0; i0 < features.count; i0 += kSquare) {
      // [sample][feature]; zeros where there is none
      R square[kSquare][kSquare];
      for (int64_t b = 0; b < kSquare; ++b)
        for (int64_t i = 0; i < kSquare; i += kLanes) {
          const int64_t left = b0 + b < B ? features.count - i0 - i : 0;
          const M* from = x + (b0 + b) * N + i0 + i;
          store(&square[b][i], left >= kLanes ? load(from) : load_first<M, AccVec<M>>(from, left > 0 ? left : 0));
          // the same feature of the next tile: rows lie too far apart for hardware to prefetch them
          if (b0 + b < B) __builtin_prefetch(from + kTileRows<R>);
        }
      R rows[kSquare][kSquare];
      transpose_square(&square[0][0], kSquare, &rows[0][0], kSquare);
      for (int64_t i = 0; i < kSquare && i0 + i < features.count; ++i)
        for (int64_t b = 0; b < kSquare; b += kLanes) store(tile + (i0 + i) * stride + b0 + b, load(&rows[i][b]));
    }
}

// Sixteen elements as they are, in a type that transpose_square takes: halves as the integers that they are.
SEMCKD_INLINE void load_bits(const float* p, float* to) { std::memcpy(to, p, kSquare * sizeof *to); }
SEMCKD_INLINE void load_bits(const double* p, double* to) { std::memcpy(to, p, kSquare * sizeof *to); }
template <class M>
SEMCKD_INLINE void load_bits(const M* p, float* to) {
  for (int64_t i = 0; i < kSquare; i += kLanes<float>) store_as(to + i, widen(load_as<U16s>(p + i)));
}
SEMCKD_INLINE void store_bits(float* p, const float* from) { std::memcpy(p, from, kSquare * sizeof *p); }
SEMCKD_INLINE void store_bits(double* p, const double* from) { std::memcpy(p, from, kSquare * sizeof *p); }
template <class M>
SEMCKD_INLINE void store_bits(M* p, const float* from) {
  for (int64_t i = 0; i < kSquare; i += kLanes<float>) store_as(p + i, narrow(load_as<U32s>(from + i)));
}

template <class M>
void transpose(const void* x_ptr, void* out_ptr, int64_t b, int64_t m, int64_t n, int64_t n0) {
  using R = AccType<M>;
  const M* x = static_cast<const M*>(x_ptr) + b * m * n + n0;
  M* out = static_cast<M*>(out_ptr) + (b * n + n0) * m;
  int64_t i0 = 0;
  if (n - n0 >= kSquare)
    for (; i0 + kSquare <= m; i0 += kSquare) {
      R square[kSquare][kSquare], turned[kSquare][kSquare];
      for (int64_t i = 0; i < kSquare; ++i) load_bits(x + (i0 + i) * n, square[i]);
      transpose_square(&square[0][0], kSquare, &turned[0][0], kSquare);
      for (int64_t j = 0; j < kSquare; ++j) store_bits(out + j * m + i0, turned[j]);
    }
  for (int64_t i = i0; i < m; ++i)
    for (int64_t j = 0; j < kSquare && n0 + j < n; ++j) out[j * m + i] = x[i * n + j];
}

template <class M>
void load_centred(const void* x_ptr, RowSpan rows, int64_t channels, const AccType<M>* mean, AccType<M>* tile,
                  int64_t stride) {
  const M* x = static_cast<const M*>(x_ptr);
  fill_tile<M>(
      rows, channels, tile, stride, SEMCKD_BODY(int64_t e, int64_t c, int64_t count) {
        return load_stream(x + e, count) - load_up_to(mean + c, count);
      });
}

template <class M>
void load_normalised(const void* z_ptr, RowSpan rows, int64_t channels, const AccType<M>* mean, const AccType<M>* scale,
                     const AccType<M>* beta, AccType<M>* tile, int64_t stride) {
  const M* z = static_cast<const M*>(z_ptr);
  fill_tile<M>(
      rows, channels, tile, stride, SEMCKD_BODY(int64_t e, int64_t c, int64_t count) {
        const AccVec<M> v = (load_stream(z + e, count) - load_up_to(mean + c, count)) * load_up_to(scale + c, count) +
                            load_up_to(beta + c, count);
        return zero_unless_positive(v, v);
      });
}

template <class M>
void load_masked(const void* d_ptr, const void* h_ptr, RowSpan rows, int64_t channels, AccType<M>* tile,
                 int64_t stride) {
  const M *d = static_cast<const M*>(d_ptr), *h = static_cast<const M*>(h_ptr);
  fill_tile<M>(
      rows, channels, tile, stride, SEMCKD_BODY(int64_t e, int64_t, int64_t count) {
        return zero_unless_positive(load_stream(h + e, count), load_stream(d + e, count));
      });
}

template <class V>
SEMCKD_INLINE void add_lanes(V v, int64_t count, double* sum) {
  for (int64_t lane = 0; lane < count; ++lane) sum[lane] += v[lane];
}

template <class R>
void column_sums(const R* tile, int64_t stride, int64_t rows, int64_t channels, double* sum) {
  for_each_vector<R>(
      channels, SEMCKD_BODY(int64_t c, int64_t count) {
        AccVec<R> even{}, odd{};
        int64_t r = 0;
        for (; r + 2 <= rows; r += 2) {
          even += load(tile + r * stride + c);
          odd += load(tile + (r + 1) * stride + c);
        }
        if (r < rows) even += load(tile + r * stride + c);
        add_lanes(even + odd, count, sum + c);
      });
}

template <class R>
void column_moments(const R* tile, int64_t stride, int64_t rows, int64_t channels, int64_t seen, double* mean,
                    double* m2) {
  const double share = 1.0 / static_cast<double>(rows), merged = static_cast<double>(rows) / (seen + rows);
  for_each_vector<R>(
      channels, SEMCKD_BODY(int64_t c, int64_t count) {
        AccVec<R> sum[2] = {};
        for (int64_t r = 0; r < rows; ++r) sum[r % 2] += load(tile + r * stride + c);
        const AccVec<R> about = (sum[0] + sum[1]) * static_cast<R>(share);
        // about the tile's own mean nothing cancels; what rounding left of the deviations' sum corrects the mean
        AccVec<R> left[2] = {}, square[2] = {};
        for (int64_t r = 0; r < rows; ++r) {
          const AccVec<R> deviation = load(tile + r * stride + c) - about;
          left[r % 2] += deviation;
          square[r % 2] += deviation * deviation;
        }
        const AccVec<R> lefts = left[0] + left[1], squares = square[0] + square[1];
        for (int64_t lane = 0; lane < count; ++lane) {
          const double rest = lefts[lane];
          const double delta = about[lane] + rest * share - mean[c + lane];
          mean[c + lane] += delta * merged;
          m2[c + lane] += squares[lane] - rest * rest * share + delta * delta * merged * static_cast<double>(seen);
        }
      });
}

template <class M>
double residual(const void* y_ptr, RowSpan rows, int64_t channels, AccType<M> coef, AccType<M>* tile, int64_t stride) {
  const M* y = static_cast<const M*>(y_ptr);
  double sum = 0;
  for (int64_t r = 0; r < rows.count; ++r) {
    AccType<M>* row = tile + r * stride;
    AccVec<M> square{};
    fill_tile<M>(
        {rows.first + r, 1}, channels, row, stride, SEMCKD_BODY(int64_t e, int64_t c, int64_t count) {
          // the product's padding may be NaN
          const AccVec<M> difference = load_up_to(row + c, count) - load_stream(y + e, count);
          square += difference * difference;
          return difference * coef;
        });
    sum += sum_of_lanes(square);
  }
  return sum;
}

template <class R>
R dot(const R* a, const R* b, int64_t n) {
  AccVec<R> sum[2] = {};
  for_each_vector<R>(
      n, SEMCKD_BODY(int64_t i, int64_t count) {
        sum[i / kLanes<R> % 2] += load_up_to(a + i, count) * load_up_to(b + i, count);
      });
  return static_cast<R>(sum_of_lanes(sum[0] + sum[1]));
}

template <class R>
void combine(const R* a, const R* b, const R* c, R s, R t, R scale, int64_t n, R* out) {
  for_each_vector<R>(
      n, SEMCKD_BODY(int64_t i, int64_t count) {
        const AccVec<R> rest = load_up_to(a + i, count) - s * load_up_to(b + i, count) - t * load_up_to(c + i, count);
        store_up_to(out + i, scale * rest, count);
      });
}

template <class R>
void scale_rows(const R* tile, int64_t stride, int64_t rows, int64_t channels, const R* factor, R* to) {
  // padding is zero, and stays so but for a factor that is not finite, whose products in it nothing reads
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = r * stride; i < r * stride + round_up_to_group<R>(channels); i += kLanes<R>)
      store(to + i, factor[r] * load(tile + i));
}

template <class M>
void affine(void* d_ptr, const void* z_ptr, RowSpan rows, int64_t channels, const AccType<M>* a, const AccType<M>* b,
            const AccType<M>* c) {
  M* d = static_cast<M*>(d_ptr);
  const M* z = static_cast<const M*>(z_ptr);
  for (int64_t e = rows.first * channels; e < (rows.first + rows.count) * channels; e += channels)
    for_each_vector<AccType<M>>(
        channels, SEMCKD_BODY(int64_t i, int64_t count) {
          const AccVec<M> v = load_up_to(a + i, count) * load_up_to(d + e + i, count) +
                              load_up_to(b + i, count) * load_up_to(z + e + i, count) + load_up_to(c + i, count);
          store_up_to(d + e + i, v, count);
        });
}

}  // namespace
}  // namespace semckd
