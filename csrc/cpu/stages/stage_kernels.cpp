// Reference  python_tests/helpers/stage_interface.py, tile by tile
// Math       products of a tile's rows with a matrix, sums of outer products over its rows, and what lies between them
// Shapes     tiles of up to kTileRows rows, any channel counts
// Fused      type conversions, bias, ReLU and its mask, BatchNorm and its sums: in registers, before or after a product
// Traffic    a tile stays in the L2 cache; of maps, one read and one write
// Mapping    products in groups of kGroup columns, finished while they are in L1; rows in vectors
// Order      rows in order within a tile
// Limits     padding channels of a tile are zero and stay so: NaN beside them must not spread into sums that use them.
//            No standard library templates in here, see kernels.cpp
// Measured   in linear.cpp and projection_end.cpp; asking for lines early (prefetch) is worth 12% of linear_relu at
//            c = 64 and 3 to 5% of the end up to C = 128, and costs 2 to 7% at C = 512
#include "cpu/stages/stage_kernels.h"

#include "cpu/stages/operands.h"
#include "cpu/stages/tile_rows.h"

namespace semckd {
namespace {

// out = tile x panels, both of Operands<M>
template <class M, class R>
SEMCKD_INLINE void multiply_operands(const typename Operands<M>::Type* tile, int64_t stride, int64_t rows,
                                     int64_t channels, const typename Operands<M>::Type* panels, int64_t N, R* out,
                                     int64_t out_stride) {
  const int64_t K = padded<R>(channels);
  for (int64_t n = 0; n < N; n += kPanel<R>)
    Operands<M>::multiply(tile, stride, rows, K, panels + n * K, out + n, out_stride);
}

template <class M>
void multiply(const TileProduct& of, int64_t rows, AccType<M>* out, int64_t out_stride) {
  using Operand = typename Operands<M>::Type;
  multiply_operands<M>(static_cast<const Operand*>(of.tile), of.stride, rows, of.channels,
                       static_cast<const Operand*>(of.panels), of.N, out, out_stride);
}

// One block of a product: columns n, n + 1, ... of rows r, r + 1, ... of a tile.
template <class R>
struct Block {
  int64_t n, columns, r, rows;
  const R* out;  // [rows][kGroup]
};

// Asks for the cache lines of one row of a block early, to be written or read when the block's product is done: they
// lie a whole row of the map apart, which hardware does not prefetch, and a store that misses stops those behind it.
template <int kWrite, class M>
SEMCKD_INLINE void prefetch(const M* p) {
  const char* bytes = reinterpret_cast<const char*>(p);
  __builtin_prefetch(bytes, kWrite);
  if (kGroup<AccType<M>> * sizeof(M) > 64) __builtin_prefetch(bytes + 64, kWrite);
}

// ahead(row, column) for every row of a block and then, with its product, finish(block); all blocks of tile x panels.
template <class M, class Ahead, class Finish>
SEMCKD_INLINE void multiply_blocks(const TileProduct& of, int64_t rows, const Ahead& ahead, const Finish& finish) {
  const int64_t stride = of.stride, channels = of.channels, N = of.N;
  using R = AccType<M>;
  using Operand = typename Operands<M>::Type;
  constexpr int64_t kBlock = 12;
  const auto* tile = static_cast<const Operand*>(of.tile);
  alignas(64) R out[kBlock * kGroup<R>] = {};
  for (int64_t n = 0; n < N; n += kGroup<R>) {
    const Operand* right = static_cast<const Operand*>(of.panels) + n * padded<R>(channels);
    for (int64_t r = 0; r < rows; r += kBlock) {
      const Block<R> block{n, N - n < kGroup<R> ? N - n : kGroup<R>, r, rows - r < kBlock ? rows - r : kBlock, out};
      for (int64_t i = 0; i < block.rows; ++i) ahead(r + i, n);
      multiply_operands<M>(tile + r * stride, stride, block.rows, channels, right, block.columns, out, kGroup<R>);
      finish(block);
    }
  }
}

// body(row, column, count, product) for every vector of a block
template <class R, class Body>
SEMCKD_INLINE void for_each_product(const Block<R>& block, const Body& body) {
  for (int64_t i = 0; i < block.rows; ++i)
    for_each_vector<R>(
        block.columns, SEMCKD_BODY(int64_t c, int64_t count) {
          body(block.r + i, block.n + c, count, load(block.out + i * kGroup<R> + c));
        });
}

template <class M>
void multiply_relu(const TileProduct& of, const AccType<M>* bias, void* h_ptr, RowSpan rows) {
  using R = AccType<M>;
  const int64_t N = of.N;
  M* h = static_cast<M*>(h_ptr) + rows.first * N;
  multiply_blocks<M>(
      of, rows.count, SEMCKD_BODY(int64_t r, int64_t n) { prefetch<1>(h + r * N + n); },
      SEMCKD_BODY(const Block<R>& block) {
        for_each_product(
            block, SEMCKD_BODY(int64_t r, int64_t n, int64_t count, AccVec<M> product) {
              const AccVec<M> v = product + load_up_to(bias + n, count);
              store_up_to(h + r * N + n, zero_unless_positive(v, v), count);
            });
      });
}

template <class M>
void multiply_add(const TileProduct& of, const AccType<M>* bias, bool accumulate, AccType<M>* out, RowSpan rows) {
  using R = AccType<M>;
  const int64_t N = of.N;
  R* to = out + rows.first * N;
  multiply_blocks<M>(
      of, rows.count, SEMCKD_BODY(int64_t r, int64_t n) { prefetch<1>(to + r * N + n); },
      SEMCKD_BODY(const Block<R>& block) {
        for_each_product(
            block, SEMCKD_BODY(int64_t r, int64_t n, int64_t count, AccVec<R> v) {
              if (bias) v += load_up_to(bias + n, count);
              if (accumulate) v += load_up_to(to + r * N + n, count);
              store_up_to(to + r * N + n, v, count);
            });
      });
}

template <class M>
void multiply_masked(const TileProduct& of, TileColumns<AccType<M>> h, const void* z_ptr, const AccType<M>* mean,
                     void* d_h_ptr, RowSpan rows, GradientSums total) {
  using R = AccType<M>;
  const int64_t N = of.N;
  const M* z = static_cast<const M*>(z_ptr) + rows.first * N;
  M* d_h = static_cast<M*>(d_h_ptr) + rows.first * N;
  AccVec<M> sums[kGroup<R> / kLanes<R>] = {}, sums_z[kGroup<R> / kLanes<R>] = {};
  multiply_blocks<M>(
      of, rows.count,
      SEMCKD_BODY(int64_t r, int64_t n) {
        prefetch<1>(d_h + r * N + n);
        prefetch<0>(z + r * N + n);
      },
      SEMCKD_BODY(const Block<R>& block) {
        for_each_product(
            block, SEMCKD_BODY(int64_t r, int64_t n, int64_t count, AccVec<M> product) {
              const AccVec<M> d = zero_unless_positive(load(h.data + r * h.stride + n), product);
              const int64_t i = n % kGroup<R> / kLanes<R>;
              sums[i] += d;
              sums_z[i] += d * (load_up_to(z + r * N + n, count) - load_up_to(mean + n, count));
              store_up_to(d_h + r * N + n, d, count);
            });
        if (block.r + block.rows < rows.count) return;
        for_each_vector<R>(
            block.columns, SEMCKD_BODY(int64_t c, int64_t count) {
              const int64_t i = c / kLanes<R>;
              add_lanes(sums[i], count, total.d + block.n + c);
              add_lanes(sums_z[i], count, total.dz + block.n + c);
              sums[i] = sums_z[i] = AccVec<M>{};
            });
      });
}

template <class M>
void add_product(const AccType<M>* D, int64_t stride, int64_t B, const void* x_ptr, int64_t N, int64_t n,
                 AccType<M>* buffer, AccType<M>* d_x) {
  using R = AccType<M>;
  constexpr int64_t kWidth = kGroup<R>;
  const M* x = static_cast<const M*>(x_ptr) + n;
  const int64_t columns = N - n < kWidth ? N - n : kWidth, depth = padded<R>(B);
  R* panels = buffer + B * kWidth;
  for (int64_t b = 0; b < B; ++b) {
    prefetch<1>(d_x + b * N + n);
    for_each_vector<R>(
        columns, SEMCKD_BODY(int64_t i, int64_t count) {
          store_up_to(buffer + b * kWidth + i, load_up_to(x + b * N + i, count), count);
        });
  }
  pack_panels(buffer, kWidth, 1, B, columns, panels);
  const LeftFactor<R> left{D, kPanel<R>, stride};
  for (int64_t i = 0; i < columns; i += kPanel<R>, panels += depth * kPanel<R>) {
    if (columns - i >= kPanel<R>) {
      product(left, B, depth, panels, ProductRows<R>{d_x + n + i, N, true});
      continue;
    }
    product(left, B, depth, panels, ProductRows<R>{buffer, kWidth, false});
    for (int64_t b = 0; b < B; ++b)
      for (int64_t k = 0; k < columns - i; ++k) d_x[b * N + n + i + k] += buffer[b * kWidth + k];
  }
}

template <class M>
constexpr TileKernels<AccType<M>> kernels_of() {
  using R = AccType<M>;
  using Factors = Operands<M>;
  return {kPanel<R>,
          sizeof(typename Factors::Type),
          Factors::pack,
          load_tile<M>,
          Factors::load_tile,
          load_transposed<M>,
          transpose<M>,
          load_centred<M>,
          load_normalised<M>,
          load_masked<M>,
          column_sums<R>,
          column_moments<R>,
          Operands<R>::row_sums,
          Factors::of_tile,
          Factors::for_sums,
          Factors::operand_sums,
          multiply<M>,
          multiply_relu<M>,
          multiply_add<M>,
          multiply_masked<M>,
          add_product<M>,
          residual<M>,
          dot<R>,
          combine<R>,
          scale_rows<R>,
          affine<M>};
}

}  // namespace

static_assert(kDTypes == 4, "the tables below have an entry for each DType, fp64 apart");
extern const StageKernels SEMCKD_FOR_ISA(stage_kernels) = {
    {kernels_of<float>(), kernels_of<Half>(), kernels_of<BFloat16>()}, kernels_of<double>()};

}  // namespace semckd
