// Reference  python_tests/helpers/plain_stages.py: conv3x3, conv3x3_backward
// Math       winograd_transforms.h; d_z = a*d_h2 + b*z + c
// Shapes     rows [B, h, w, K]; weight [K, K, 3, 3]; tiles of MxM pixels, M = 4 or 2, at (M + 2)^2 positions
// Fused      d_z; zero padding of the maps; every type conversion; mean and variance of the result
// Traffic    input: a pixel is read (M + 2)^2 / M^2 times (from cache but the first), a tile and channel written as
//            (M + 2)^2 operands; products: arithmetic bound; output: (M + 2)^2 sums read, M^2 pixels written
// Mapping    vectors of channels in the transforms, gemm.h's register tiles in the products
// Order      a product sums over channels in ascending order, in short chains (gemm.h, chained_product); moments over
//            the tiles of a chunk, tile by tile
// Limits     any sizes; channels beyond K are zeros in scratch. No standard library templates in here, see kernels.cpp.
// Measured   winograd.cpp
#include "cpu/winograd/winograd_kernels.h"

#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemm_bf16.h"
#include "cpu/winograd/winograd_maps.h"
#include "cpu/winograd/winograd_taps.h"
#include "cpu/winograd/winograd_transforms.h"

namespace semckd {
namespace {

// tiles summed in registers before they are added to memory: both operands' panels stay in the first-level cache
constexpr int64_t kSumTiles = 128;

// up to here, sums of half a panel of channels are more exact than of a whole one; beyond, they are too many
constexpr int64_t kFewChannels = 128;

// --- products, by the type of the operands ------------------------------------------------------------------------

// C[r][0..kPanel) (+)= sum_k A[r][k] B[k][0..kPanel) over `depth` channels of K
template <class R>
void multiply(const R* A, int64_t panel_stride, int64_t rows, int64_t depth, int64_t K, const R* B, R* C,
              bool accumulate) {
  const auto product = K <= kFewChannels ? chained_product<16, R> : chained_product<32, R>;
  product(LeftFactor<R>{A, panel_stride, kPanel<R>}, rows, depth, B, ProductRows<R>{C, kPanel<R>, accumulate});
}
template <class R>
void sum_rows(const R* A, const R* B, int64_t rows, R* C, bool accumulate, const R* next) {
  row_sum_block(A, kPanel<R>, B, kPanel<R>, rows, ProductRows<R>{C, kPanel<R>, accumulate}, next);
}

#if defined(__AVX512BF16__)
inline void multiply(const BFloat16* A, int64_t panel_stride, int64_t rows, int64_t depth, int64_t K, const BFloat16* B,
                     float* C, bool accumulate) {
  product({A, panel_stride, kBf16Panel}, rows, depth, B, {C, kBf16Panel, accumulate});
}
inline void sum_rows(const BFloat16* A, const BFloat16* B, int64_t rows, float* C, bool accumulate, const BFloat16*) {
  row_sum_block(A, B, rows + rows % 2, {C, kBf16Panel, accumulate});
}
#endif

// --- forward and data gradient ------------------------------------------------------------------------------------

template <int M>
using Inner = Square<M, 0>;
template <int M>
using Outer = Square<M, 1>;

template <class T, class Operand, int M, class Map>
void transform_input_of(const TileGrid& grid, const Map& map, TileRange tiles, const OperandLayout& layout,
                        Operand* V) {
  using R = AccType<T>;
  constexpr int N = M + 2;
  Walker at(grid, tiles.begin);
  Outer<M> next(at);
  for (int64_t t = 0; t < tiles.count; ++t) {
    const Outer<M> square = next;
    at.next();
    next = Outer<M>(at);
    for_each_vector<R>(grid.K, layout.channels, [&](auto full, int64_t c, int64_t count) SEMCKD_INLINE_LAMBDA {
      using Channels = typename Map::template Channels<decltype(full)::value>;
      const Channels channels(map, c, count);
      prefetch<2>(channels, next);
      const int64_t position = optimization_barrier(layout.position_stride());
      transform_2d<N, N, AccVec<T>>(Lines<M>::template bt<AccVec<T>>, Pixels<Channels, Outer<M>>{channels, square},
                                    [&](int i, int j, AccVec<T> v) SEMCKD_INLINE_LAMBDA {
                                      put(V + (i * N + j) * position, layout.panel_stride(), t, c, v);
                                    });
    });
  }
}

template <class T, class Operand, int M>
void transform_input(const TileGrid& grid, const MapSource& source, TileRange tiles, const OperandLayout& layout,
                     void* V) {
  auto* operands = static_cast<Operand*>(V);
  if (source.z) return transform_input_of<T, Operand, M>(grid, CombinedMap<T>(source), tiles, layout, operands);
  transform_input_of<T, Operand, M>(grid, PlainMap<T>(source), tiles, layout, operands);
}

template <class T, class Vec>
SEMCKD_INLINE void write_vector(T* p, Vec v) {
  store(p, v);
}
#if defined(__AVX512BF16__)
SEMCKD_INLINE void write_vector(BFloat16* p, F32s v) { store_rounded(p, v); }
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

// Of a step's products, the lanes from `lane` on: `count` channels of the result from c on.
template <class R>
struct StepLanes {
  const R* products;
  int64_t panel_stride, position_stride;
  int64_t lane, c, count;
};

// The tiles' pixels of these channels, from the products of their step; and the moments of those pixels.
template <class T, int M>
void write_tiles(const TileGrid& grid, TileRange tiles, const StepLanes<AccType<T>>& step, T* out, Moments* moments) {
  const AccType<T>* products = step.products;
  const int64_t panel_stride = step.panel_stride, position_stride = step.position_stride;
  const int64_t lane = step.lane, c = step.c, count = step.count;
  using Vec = AccVec<T>;
  constexpr int N = M + 2;
  // deviations from a value of the chunk itself: no cancellation where the mean is large
  Vec shift{};
  CompensatedSum<Vec> sum, squares;
  int64_t pixels = 0;
  Walker at(grid, tiles.begin);
  for (int64_t t = 0; t < tiles.count; ++t, at.next()) {
    const Inner<M> square(at);
    Vec tile_sum{}, tile_squares{};
    const int64_t position = optimization_barrier(position_stride);
    const auto load = [&](int i, int j) SEMCKD_INLINE_LAMBDA {
      return get<Vec>(products + (i * N + j) * position, panel_stride, t, lane);
    };
    transform_2d<N, M, Vec>(Lines<M>::template at<Vec>, load, [&](int i, int j, Vec y) SEMCKD_INLINE_LAMBDA {
      // a tile's first pixel is never outside
      if (t == 0 && i == 0 && j == 0) shift = y;
      if (square.offset[i][j] < 0) return;
      T* pixel = out + square.offset[i][j] + c;
      if (count == kLanes<AccType<T>>) {
        write_vector(pixel, y);
      } else {
        store_first(pixel, y, count);
      }
      const Vec deviation = y - shift;
      tile_sum += deviation;
      tile_squares += deviation * deviation;
      ++pixels;
    });
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

// how the products of a step lie
template <class R, int M>
OperandLayout products_of(int64_t tiles) {
  return OperandLayout::of(tiles, kStep<R>, kPanel<R>, sizeof(R), (M + 2) * (M + 2));
}

template <class T, class Operand, int M>
void multiply_step(const OperandLayout& layout, int64_t tiles, const void* V_ptr, const KernelRows& U_rows,
                   void* products_ptr, bool accumulate) {
  using R = AccType<T>;
  constexpr int kPositions = (M + 2) * (M + 2);
  const auto* V = static_cast<const Operand*>(V_ptr) + U_rows.first / kPanel<R> * layout.panel_stride();
  const auto* U = static_cast<const Operand*>(U_rows.data);
  auto* products = static_cast<R*>(products_ptr);
  const OperandLayout sums = products_of<R, M>(layout.tiles);
  for (int64_t panel = 0; panel < kStep<R> / kPanel<R>; ++panel)
    for (int64_t k = 0; k < kPositions; ++k, U += U_rows.position_stride)
      multiply(V + k * layout.position_stride(), layout.panel_stride(), tiles, U_rows.rows, layout.channels, U,
               products + k * sums.position_stride() + panel * sums.panel_stride(), accumulate);
}

template <class T, int M>
void write_step(const TileGrid& grid, TileRange tiles, const OperandLayout& layout, const void* products_ptr,
                int64_t column, void* out, Moments* moments) {
  using R = AccType<T>;
  const auto* products = static_cast<const R*>(products_ptr);
  const OperandLayout sums = products_of<R, M>(layout.tiles);
  for (int64_t lane = 0; lane < kStep<R> && column + lane < grid.K; lane += kLanes<R>) {
    const int64_t left = grid.K - column - lane;
    write_tiles<T, M>(grid, tiles,
                      {products, sums.panel_stride(), sums.position_stride(), lane, column + lane,
                       left < kLanes<R> ? left : kLanes<R>},
                      static_cast<T*>(out), moments);
  }
}

// As write_tiles, without moments: relu(result + bias + residual).
template <class T, int M>
void finish_tiles(const TileGrid& grid, TileRange tiles, const StepLanes<AccType<T>>& step, const Epilogue& epilogue,
                  T* out) {
  const AccType<T>* products = step.products;
  const int64_t panel_stride = step.panel_stride, position_stride = step.position_stride;
  const int64_t lane = step.lane, c = step.c, count = step.count;
  using R = AccType<T>;
  using Vec = AccVec<T>;
  constexpr int N = M + 2;
  const bool is_full = count == kLanes<R>;
  const Vec bias = epilogue.bias ? load_first<R, Vec>(static_cast<const R*>(epilogue.bias) + c, count) : Vec{};
  const auto* residual = static_cast<const T*>(epilogue.residual);
  Walker at(grid, tiles.begin);
  Inner<M> next(at);
  for (int64_t t = 0; t < tiles.count; ++t) {
    const Inner<M> square = next;
    at.next();
    next = Inner<M>(at);
    // pixels lie too far apart for hardware to prefetch them
#pragma GCC unroll 4
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < M; ++j) {
        if (residual) __builtin_prefetch(residual + next.offset[i][j] + c);
        __builtin_prefetch(out + next.offset[i][j] + c, 1);
      }
    const int64_t position = optimization_barrier(position_stride);
    const auto load_product = [&](int i, int j) SEMCKD_INLINE_LAMBDA {
      return get<Vec>(products + (i * N + j) * position, panel_stride, t, lane);
    };
    transform_2d<N, M, Vec>(Lines<M>::template at<Vec>, load_product, [&](int i, int j, Vec y) SEMCKD_INLINE_LAMBDA {
      const int64_t offset = square.offset[i][j];
      if (offset < 0) return;
      y += bias;
      if (residual) {
        const T* added = residual + offset + c;
        y += is_full ? load(added) : load_first<T, Vec>(added, count);
      }
      // NaN stays
      if (epilogue.relu) y = y < 0 ? Vec{} : y;
      T* pixel = out + offset + c;
      if (is_full) {
        write_vector(pixel, y);
      } else {
        store_first(pixel, y, count);
      }
    });
  }
}

template <class T, int M>
void finish_step(const TileGrid& grid, TileRange tiles, const OperandLayout& layout, const void* products_ptr,
                 int64_t column, const Epilogue& epilogue, void* out) {
  using R = AccType<T>;
  const auto* products = static_cast<const R*>(products_ptr);
  const OperandLayout sums = products_of<R, M>(layout.tiles);
  for (int64_t lane = 0; lane < kStep<R> && column + lane < grid.K; lane += kLanes<R>) {
    const int64_t left = grid.K - column - lane;
    finish_tiles<T, M>(grid, tiles,
                       {products, sums.panel_stride(), sums.position_stride(), lane, column + lane,
                        left < kLanes<R> ? left : kLanes<R>},
                       epilogue, static_cast<T*>(out));
  }
}

// --- the weight, and its gradient ---------------------------------------------------------------------------------

// Rows whose operands are written together: bf16 products take them in pairs.
template <class Operand>
constexpr int kRowsTogether = sizeof(Operand) == sizeof(BFloat16) ? 2 : 1;

// Transforms kRowsTogether rows from `row` on into panels(k) of every position k, lanes from c on; load(r, i, j) is the
// input of row + r.
template <class Operand, int kIn, int kOut, class Vec, class Line, class Load, class Panels>
SEMCKD_INLINE void transform_rows(const Line& line, const Load& load, const Panels& panels, int64_t panel_stride,
                                  int64_t row, int64_t c) {
  if constexpr (kRowsTogether<Operand> == 1) {
    transform_2d<kIn, kOut, Vec>(
        line, [&](int i, int j) SEMCKD_INLINE_LAMBDA { return load(0, i, j); },
        [&](int i, int j, Vec v) SEMCKD_INLINE_LAMBDA { put(panels(i * kOut + j), panel_stride, row, c, v); });
  } else {
    Vec both[2][kOut * kOut];
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r)
      transform_2d<kIn, kOut, Vec>(
          line, [&](int i, int j) SEMCKD_INLINE_LAMBDA { return load(r, i, j); },
          [&](int i, int j, Vec v) SEMCKD_INLINE_LAMBDA { both[r][i * kOut + j] = v; });
#pragma GCC unroll 16
    for (int k = 0; k < kOut * kOut; ++k) put_pair(panels(k), panel_stride, row, c, both[0][k], both[1][k]);
  }
}

template <class T, class Operand, int M>
void transform_kernel(const KernelView& weight, int64_t row, int64_t column, const KernelRows& U_rows) {
  using R = AccType<T>;
  using Vec = AccVec<T>;
  constexpr int N = M + 2, kPositions = N * N;
  Taps<R, kKernelRows> taps;
  gather_taps<R>(weight, row, column, taps);
  auto* U = static_cast<Operand*>(U_rows.data);
  const int64_t first = row - U_rows.first;
  for (int64_t i = 0; i < kKernelRows && first + i < U_rows.rows; i += kRowsTogether<Operand>)
    for (int64_t lane = 0; lane < kStep<R>; lane += kLanes<R>) {
      const int64_t position = optimization_barrier(U_rows.position_stride);
      transform_rows<Operand, 3, N, Vec>(
          Lines<M>::template g<Vec>,
          [&](int64_t r, int y, int x) SEMCKD_INLINE_LAMBDA { return load(&taps[3 * y + x][i + r][lane]); },
          [&](int k) SEMCKD_INLINE_LAMBDA { return U + k * position; }, kPositions * position, first + i, lane);
    }
}

template <class T, class Operand, int M>
void transform_pairs(const TileGrid& grid, const MapSource& h_source, const MapSource& d_z_source, TileRange tiles,
                     const OperandLayout& layout, int64_t first, void* V_ptr, void* Z_ptr) {
  using R = AccType<T>;
  using Vec = AccVec<T>;
  constexpr int N = M + 2, kTogether = kRowsTogether<Operand>;
  const PlainMap<T> h(h_source);
  const CombinedMap<T> d_z(d_z_source);
  auto *V = static_cast<Operand*>(V_ptr), *Z = static_cast<Operand*>(Z_ptr);
  Walker at(grid, tiles.begin);
  struct Squares {
    Outer<M> outer[kTogether];
    Inner<M> inner[kTogether];
  };
  const auto squares_from = [&](int64_t t) {
    Squares squares;
    for (int r = 0; r < kTogether; ++r, at.next()) {
      // without a second tile every pixel is outside: a row of zeros
      squares.outer[r] = t + r < tiles.count ? Outer<M>(at) : Outer<M>::outside();
      squares.inner[r] = t + r < tiles.count ? Inner<M>(at) : Inner<M>::outside();
    }
    return squares;
  };
  Squares next = squares_from(0);
  for (int64_t t = 0; t < tiles.count; t += kTogether) {
    const Squares squares = next;
    next = squares_from(t + kTogether);
    for_each_vector<R>(grid.K, layout.channels, [&](auto full, int64_t c, int64_t count) SEMCKD_INLINE_LAMBDA {
      constexpr bool kFull = decltype(full)::value;
      using Plain = typename PlainMap<T>::template Channels<kFull>;
      using Combined = typename CombinedMap<T>::template Channels<kFull>;
      const Plain h_channels(h, c, count);
      const Combined d_channels(d_z, c, count);
      for (int r = 0; r < kTogether; ++r) {
        prefetch<2>(h_channels, next.outer[r]);
        prefetch<0>(d_channels, next.inner[r]);
      }
      const int64_t position = optimization_barrier(layout.position_stride());
      transform_rows<Operand, N, N, Vec>(
          Lines<M>::template bt<Vec>,
          [&](int64_t r, int i, int j)
              SEMCKD_INLINE_LAMBDA { return Pixels<Plain, Outer<M>>{h_channels, squares.outer[r]}(i, j); },
          [&](int k) SEMCKD_INLINE_LAMBDA { return V + k * position; }, layout.panel_stride(), first + t, c);
      transform_rows<Operand, M, N, Vec>(
          Lines<M>::template a<Vec>,
          [&](int64_t r, int i, int j)
              SEMCKD_INLINE_LAMBDA { return Pixels<Combined, Inner<M>>{d_channels, squares.inner[r]}(i, j); },
          [&](int k) SEMCKD_INLINE_LAMBDA { return Z + k * position; }, layout.panel_stride(), first + t, c);
    });
  }
}

template <class T, class Operand>
void sum_products(const OperandLayout& layout, int64_t tiles, int64_t position, int64_t row, const void* Z_ptr,
                  const void* V_ptr, bool accumulate, const GradientBlock& dU) {
  using R = AccType<T>;
  constexpr int64_t kWidth = kPanel<R>;
  const auto* Z = static_cast<const Operand*>(Z_ptr) + position * layout.position_stride();
  const auto* V = static_cast<const Operand*>(V_ptr) + position * layout.position_stride();
  auto* sums = static_cast<R*>(dU.data) + position * dU.position_stride;
  for (int64_t m = row; m < row + kStep<R>; m += kWidth)
    for (int64_t c = 0; c < dU.columns; c += kWidth) {
      const Operand* a = Z + m / kWidth * layout.panel_stride();
      const Operand* b = V + (dU.first_column + c) / kWidth * layout.panel_stride();
      R* block = sums + c * dU.rows + (m - dU.first_row) * kWidth;
      // panels that are longer than the near cache come from far: the next is asked for while this one is summed
      const Operand* next = tiles > kSumTiles ? b + layout.panel_stride() : nullptr;
      int64_t t = 0;
      // at least once: dU of no tiles is zero
      do {
        sum_rows(a + t * kWidth, b + t * kWidth, tiles - t < kSumTiles ? tiles - t : kSumTiles, block,
                 accumulate || t > 0, next ? next + t * kWidth : nullptr);
      } while ((t += kSumTiles) < tiles);
    }
}

template <class T, int M>
void finish_gradient(const GradientBlock& dU, int64_t slots, int64_t row, int64_t rows, int64_t column,
                     const KernelView& d_weight) {
  using R = AccType<T>;
  using Vec = AccVec<T>;
  constexpr int N = M + 2, kPositions = N * N;
  const auto* sums = static_cast<const R*>(dU.data) + (column - dU.first_column) * dU.rows;
  const int64_t left = d_weight.columns - column, columns = left < kStep<R> ? left : kStep<R>;
  for (int64_t m = row; m < row + rows && m < d_weight.rows; ++m) {
    Taps<R, 1> taps;
    for (int64_t lane = 0; lane < kStep<R>; lane += kLanes<R>) {
      const int64_t position = optimization_barrier(dU.position_stride);
      const auto sum_of_slots = [&](int i, int j) SEMCKD_INLINE_LAMBDA {
        Vec u{};
        for (int64_t slot = 0; slot < slots; ++slot)
          u += get<Vec>(sums + (slot * kPositions + i * N + j) * position, dU.rows * kPanel<R>, m - dU.first_row, lane);
        return u;
      };
      transform_2d<N, 3, Vec>(Lines<M>::template gt<Vec>, sum_of_slots,
                              [&](int y, int x, Vec g) SEMCKD_INLINE_LAMBDA { store(&taps[3 * y + x][0][lane], g); });
    }
    scatter_taps<R>(d_weight, taps, columns,
                    static_cast<R*>(d_weight.data) + m * d_weight.row + column * d_weight.column);
  }
  fence_streams();
}

template <class T, class Operand, int M>
constexpr WinogradKernel kernel_of() {
  using R = AccType<T>;
  return {M,
          kPanel<R>,
          kStep<R>,
          sizeof(Operand),
          sizeof(R),
          transform_kernel<T, Operand, M>,
          transform_input<T, Operand, M>,
          multiply_step<T, Operand, M>,
          write_step<T, M>,
          finish_step<T, M>,
          transform_pairs<T, Operand, M>,
          sum_products<T, Operand>,
          finish_gradient<T, M>};
}

#if defined(__AVX512BF16__)
using Bf16Operand = BFloat16;
#else
using Bf16Operand = float;
#endif

}  // namespace

static_assert(kDTypes == 4, "both tables below have an entry for each DType");
extern const WinogradKernels SEMCKD_FOR_ISA(winograd_kernels) = {
    {kernel_of<float, float, 2>(), kernel_of<Half, float, 2>(), kernel_of<BFloat16, Bf16Operand, 2>(),
     kernel_of<double, double, 2>()},
    {kernel_of<float, float, 4>(), kernel_of<Half, float, 4>(), kernel_of<BFloat16, float, 4>(),
     kernel_of<double, double, 4>()},
    kernel_of<BFloat16, float, 2>()};

}  // namespace semckd
