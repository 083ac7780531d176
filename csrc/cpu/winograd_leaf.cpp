// Reference  python_tests/plain_stages.py: conv3x3, conv3x3_backward
// Math       winograd_transforms.h; d_z = a*d_h2 + b*z + c
// Shapes     rows [B, h, w, K]; weight [K, K, 3, 3]; 16 positions of a transformed 4x4 tile
// Fused      d_z; zero padding of the maps; every type conversion; mean and variance of the result
// Traffic    input: a pixel is read four times (from cache but the first), 16 operands are written a tile and channel;
//            products: arithmetic bound; output: 16 sums read, 4 pixels written a tile and channel
// Mapping    64-byte vectors of channels in the transforms, gemm.h's register tiles in the products
// Order      a product sums over channels in ascending order; moments over the tiles of a chunk, tile by tile
// Limits     any sizes; channels beyond K are zeros in scratch. No standard library templates in here, see leaf.cpp.
// Measured   winograd.cpp
#include "winograd_leaf.h"

#include "gemm.h"
#include "gemm_bf16.h"
#include "winograd_maps.h"
#include "winograd_transforms.h"

namespace semckd {
namespace {

// tiles summed in registers before they are added to memory: both operands' panels stay in the first-level cache
constexpr int64_t kSumTiles = 128;

// --- products, by the type of the operands ------------------------------------------------------------------------

template <class R>
void multiply(const R* A, int64_t panel_stride, int64_t rows, int64_t K, const R* B, R* C) {
  product(A, panel_stride, kPanel<R>, rows, K, B, C, kPanel<R>, false);
}
template <class R>
void add_row_sum(const R* A, const R* B, int64_t rows, R* C) {
  row_sum_block(A, kPanel<R>, B, kPanel<R>, rows, C, kPanel<R>);
}

#if defined(__AVX512BF16__)
inline void multiply(const BFloat16* A, int64_t panel_stride, int64_t rows, int64_t K, const BFloat16* B, float* C) {
  product(A, panel_stride, kBf16Panel, rows, K, B, C, kBf16Panel);
}
inline void add_row_sum(const BFloat16* A, const BFloat16* B, int64_t rows, float* C) {
  row_sum_block(A, B, rows + rows % 2, C, kBf16Panel);
}
#endif

// --- forward and data gradient ------------------------------------------------------------------------------------

template <class T, class Operand, class Map>
void transform_input_of(const TileGrid& grid, const Map& map, TileRange tiles, const OperandLayout& layout,
                        Operand* V) {
  using R = WideType<T>;
  Walker at(grid, tiles.begin);
  for (int64_t t = 0; t < tiles.count; ++t, at.next()) {
    const Square<4> square(at, 1);
    for_each_vector<R>(grid.K, layout.channels, [&](auto full, int64_t c, int64_t count) SEMCKD_INLINE_LAMBDA {
      WideVec<T> d[16], v[16];
      load_square(typename Map::template Channels<decltype(full)::value>(map, c, count), square, d);
      transform_input(d, v);
#pragma GCC unroll 16
      for (int k = 0; k < kPositions; ++k) put(V + k * layout.position_stride(), layout.panel_stride(), t, c, v[k]);
    });
  }
}

template <class T, class Operand>
void transform_input(const TileGrid& grid, const MapSource& source, TileRange tiles, const OperandLayout& layout,
                     void* V) {
  auto* operands = static_cast<Operand*>(V);
  if (source.z) return transform_input_of<T, Operand>(grid, CombinedMap<T>(source), tiles, layout, operands);
  transform_input_of<T, Operand>(grid, PlainMap<T>(source), tiles, layout, operands);
}

template <class T, class Vec>
SEMCKD_INLINE void write_vector(T* p, Vec v) {
  store(p, v);
}
#if defined(__AVX512BF16__)
SEMCKD_INLINE void write_vector(BFloat16* p, F32x16 v) { store_rounded(p, v); }
#endif

// A sum that carries along what rounding took from it: of hundreds of values as exact as of a few.
template <class Vec>
struct CompensatedSum {
  Vec value{}, excess{};

  void add(Vec x) {
    x -= excess;
    const Vec next = value + x;
    excess = (next - value) - x;
    value = next;
  }
};

// The tiles' pixels, `count` channels from c on, from the products M of their step; and the moments of those pixels.
template <class T>
void write_tiles(const TileGrid& grid, TileRange tiles, const WideType<T>* M, int64_t panel_stride,
                 int64_t position_stride, int64_t lane, int64_t c, int64_t count, T* out, Moments* moments) {
  using Vec = WideVec<T>;
  // deviations from a value of the chunk itself: no cancellation where the mean is large
  Vec shift{};
  CompensatedSum<Vec> sum, squares;
  int64_t pixels = 0;
  Walker at(grid, tiles.begin);
  for (int64_t t = 0; t < tiles.count; ++t, at.next()) {
    const Square<2> square(at, 0);
    Vec m[16], y[4];
#pragma GCC unroll 16
    for (int k = 0; k < kPositions; ++k) m[k] = get<Vec>(M + k * position_stride, panel_stride, t, lane);
    transform_output(m, y);
    if (t == 0) shift = y[0];
    Vec tile_sum{}, tile_squares{};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      if (square.offset[i] < 0) continue;
      T* pixel = out + square.offset[i] + c;
      if (count == kLanes<WideType<T>>) {
        write_vector(pixel, y[i]);
      } else {
        store_first(pixel, y[i], count);
      }
      const Vec deviation = y[i] - shift;
      tile_sum += deviation;
      tile_squares += deviation * deviation;
      ++pixels;
    }
    sum.add(tile_sum);
    squares.add(tile_squares);
  }
  if (!moments) return;
  const double n = static_cast<double>(pixels);
  for (int64_t i = 0; i < count; ++i) {
    const double s = sum.value[i];
    moments[c + i] = {n, shift[i] + s / n, squares.value[i] - s * s / n};
  }
}

template <class T, class Operand>
void convolve_step(const TileGrid& grid, TileRange tiles, const OperandLayout& layout, const void* V_ptr,
                   const void* U_ptr, int64_t column, void* M_ptr, void* out, Moments* moments) {
  using R = WideType<T>;
  const auto* V = static_cast<const Operand*>(V_ptr);
  const auto* U = static_cast<const Operand*>(U_ptr) + column * kPositions * layout.channels;
  auto* M = static_cast<R*>(M_ptr);
  const OperandLayout sums = OperandLayout::of(layout.tiles, kStep<R>, kPanel<R>, sizeof(R));
  for (int64_t panel = 0; panel < kStep<R> / kPanel<R>; ++panel)
    for (int64_t k = 0; k < kPositions; ++k, U += layout.channels * kPanel<R>)
      multiply(V + k * layout.position_stride(), layout.panel_stride(), tiles.count, layout.channels, U,
               M + k * sums.position_stride() + panel * sums.panel_stride());
  for (int64_t lane = 0; lane < kStep<R> && column + lane < grid.K; lane += kLanes<R>) {
    const int64_t left = grid.K - column - lane;
    write_tiles(grid, tiles, M, sums.panel_stride(), sums.position_stride(), lane, column + lane,
                left < kLanes<R> ? left : kLanes<R>, static_cast<T*>(out), moments);
  }
}

// --- the weight, and its gradient ---------------------------------------------------------------------------------

// taps [9][rows][step] of a block of the weight; zeros behind channel K
template <class R>
void gather_taps(const KernelView& weight, int64_t K, int64_t row, int64_t column, R (*taps)[kKernelRows][kStep<R>]) {
  const int64_t rows = K - row < kKernelRows ? K - row : kKernelRows;
  const int64_t columns = K - column < kStep<R> ? K - column : kStep<R>;
  if (rows < kKernelRows || columns < kStep<R>) std::memset(taps, 0, sizeof(R) * 9 * kKernelRows * kStep<R>);
  const R* source = static_cast<const R*>(weight.data) + row * weight.row + column * weight.column;
  const auto gather = [&](int64_t i, int64_t j) SEMCKD_INLINE_LAMBDA {
    const R* w = source + i * weight.row + j * weight.column;
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) taps[tap][i][j] = w[tap / 3 * weight.y + tap % 3 * weight.x];
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

template <class T, class Operand>
void transform_kernel(const KernelView& weight, int64_t K, int64_t row, int64_t column, void* U_ptr) {
  using R = WideType<T>;
  using Vec = WideVec<T>;
  const int64_t channels = (K + kStep<R> - 1) / kStep<R> * kStep<R>;
  R taps[9][kKernelRows][kStep<R>];
  gather_taps(weight, K, row, column, taps);
  auto* U = static_cast<Operand*>(U_ptr) + column * kPositions * channels;
  for (int64_t i = 0; i < kKernelRows && row + i < channels; i += 2)
    for (int64_t lane = 0; lane < kStep<R>; lane += kLanes<R>) {
      Vec u[2][16];
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        Vec g[9];
#pragma GCC unroll 9
        for (int tap = 0; tap < 9; ++tap) g[tap] = load(&taps[tap][i + odd][lane]);
        transform_kernel(g, u[odd]);
      }
#pragma GCC unroll 16
      for (int k = 0; k < kPositions; ++k)
        put_pair(U + k * channels * kPanel<R>, kPositions * channels * kPanel<R>, row + i, lane, u[0][k], u[1][k]);
    }
}

template <class T, class Operand>
void transform_pairs(const TileGrid& grid, const MapSource& h_source, const MapSource& d_z_source, TileRange tiles,
                     const OperandLayout& layout, int64_t first, void* V_ptr, void* Z_ptr) {
  using R = WideType<T>;
  using Vec = WideVec<T>;
  const PlainMap<T> h(h_source);
  const CombinedMap<T> d_z(d_z_source);
  auto *V = static_cast<Operand*>(V_ptr), *Z = static_cast<Operand*>(Z_ptr);
  const int64_t ps = layout.position_stride();
  Walker at(grid, tiles.begin);
  for (int64_t t = 0; t < tiles.count; t += 2) {
    const bool has_odd = t + 1 < tiles.count;
    const Square<4> h_even(at, 1);
    const Square<2> d_even(at, 0);
    at.next();
    // without a second tile every pixel is outside: a row of zeros
    const Square<4> h_odd = has_odd ? Square<4>(at, 1) : Square<4>::outside();
    const Square<2> d_odd = has_odd ? Square<2>(at, 0) : Square<2>::outside();
    at.next();
    for_each_vector<R>(grid.K, layout.channels, [&](auto full, int64_t c, int64_t count) SEMCKD_INLINE_LAMBDA {
      constexpr bool kFull = decltype(full)::value;
      Vec even[16], odd[16], d[16], d_y[4];
      const typename PlainMap<T>::template Channels<kFull> h_channels(h, c, count);
      load_square(h_channels, h_even, d);
      transform_input(d, even);
      load_square(h_channels, h_odd, d);
      transform_input(d, odd);
#pragma GCC unroll 16
      for (int k = 0; k < kPositions; ++k) put_pair(V + k * ps, layout.panel_stride(), first + t, c, even[k], odd[k]);
      const typename CombinedMap<T>::template Channels<kFull> d_channels(d_z, c, count);
      load_square(d_channels, d_even, d_y);
      transform_output_gradient(d_y, even);
      load_square(d_channels, d_odd, d_y);
      transform_output_gradient(d_y, odd);
#pragma GCC unroll 16
      for (int k = 0; k < kPositions; ++k) put_pair(Z + k * ps, layout.panel_stride(), first + t, c, even[k], odd[k]);
    });
  }
}

template <class T, class Operand>
void sum_products(const OperandLayout& layout, int64_t tiles, int64_t position, int64_t row, const void* Z_ptr,
                  const void* V_ptr, bool accumulate, void* dU_ptr) {
  using R = WideType<T>;
  constexpr int64_t kWidth = kPanel<R>;
  const auto* Z = static_cast<const Operand*>(Z_ptr) + position * layout.position_stride();
  const auto* V = static_cast<const Operand*>(V_ptr) + position * layout.position_stride();
  auto* dU = static_cast<R*>(dU_ptr) + position * layout.channels * layout.channels;
  for (int64_t m = row; m < row + kStep<R>; m += kWidth)
    for (int64_t c = 0; c < layout.channels; c += kWidth) {
      const Operand *a = Z + m / kWidth * layout.panel_stride(), *b = V + c / kWidth * layout.panel_stride();
      R* block = dU + c * layout.channels + m * kWidth;
      if (!accumulate) std::memset(block, 0, kWidth * kWidth * sizeof(R));
      for (int64_t t = 0; t < tiles; t += kSumTiles)
        add_row_sum(a + t * kWidth, b + t * kWidth, tiles - t < kSumTiles ? tiles - t : kSumTiles, block);
    }
}

template <class T>
void finish_gradient(const void* dU_ptr, int64_t slots, int64_t K, int64_t row, int64_t rows, int64_t column,
                     const KernelView& d_weight) {
  using R = WideType<T>;
  using Vec = WideVec<T>;
  const int64_t channels = (K + kStep<R> - 1) / kStep<R> * kStep<R>;
  const auto* dU = static_cast<const R*>(dU_ptr) + column * channels;
  const int64_t columns = K - column < kStep<R> ? K - column : kStep<R>;
  for (int64_t m = row; m < row + rows && m < K; ++m) {
    R taps[9][kStep<R>];
    for (int64_t lane = 0; lane < kStep<R>; lane += kLanes<R>) {
      Vec u[16] = {}, g[9];
      for (int64_t slot = 0; slot < slots; ++slot) {
#pragma GCC unroll 16
        for (int k = 0; k < kPositions; ++k)
          u[k] += get<Vec>(dU + (slot * kPositions + k) * channels * channels, channels * kPanel<R>, m, lane);
      }
      transform_kernel_gradient(u, g);
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) store(&taps[tap][lane], g[tap]);
    }
    R* target = static_cast<R*>(d_weight.data) + m * d_weight.row + column * d_weight.column;
    for (int64_t j = 0; j < columns; ++j, target += d_weight.column)
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) target[tap / 3 * d_weight.y + tap % 3 * d_weight.x] = taps[tap][j];
  }
}

template <class T, class Operand>
constexpr WinogradKernel kernel_of() {
  using R = WideType<T>;
  return {kPanel<R>,
          kStep<R>,
          sizeof(Operand),
          sizeof(R),
          transform_kernel<T, Operand>,
          transform_input<T, Operand>,
          convolve_step<T, Operand>,
          transform_pairs<T, Operand>,
          sum_products<T, Operand>,
          finish_gradient<T>};
}

#if defined(__AVX512BF16__)
using Bf16Operand = BFloat16;
#else
using Bf16Operand = float;
#endif

}  // namespace

extern const WinogradKernels SEMCKD_AT_LEVEL(winograd_kernels) = {
    {kernel_of<float, float>(), kernel_of<Half, float>(), kernel_of<BFloat16, Bf16Operand>(),
     kernel_of<double, double>()},
    kernel_of<BFloat16, float>()};

}  // namespace semckd
