// Reference  semckd_kernels/stages/attention.py, similarity: G = x x^T;  d_x += D x
// Shapes     x, d_x [B, N], N = h*w*C features of a sample; G, D [B, B]
// Fused      the conversion of x, and its transpose
// Traffic    forward reads x; backward reads x and d_x and writes d_x: at B = 64 about as long as the products
// Mapping    forward: a thread takes chunks of features, tile by tile, transposed into padded scratch. Backward: a
//            thread takes groups of features
// Order      G: sums of a tile's features in registers, tiles of a chunk in order, chunks in order; d_x: over samples
// Limits     any sizes
// Measured   2026-11, EPYC (Zen 5), two threads, B = 64, N = 65536: fp32 1.2 ms (torch 3.0), backward 2.3 (4.4); bf16
//            1.2 (5.6) and 1.5 (7.0)
#include "cpu/stages/similarity.h"

#include "cpu/stages/tiles.h"

namespace semckd {
namespace {

// groups of features; fewer are not worth waking a thread
constexpr int64_t kGrain = 16;
// features summed in one chain: of small maps, longer ones are less exact than torch's product
constexpr int64_t kChain = 24;

}  // namespace

template <class R>
void similarity(DType map, int64_t B, int64_t N, const void* x, R* G) {
  const TileKernels<R>& kernels = tile_kernels<R>(map);
  const auto load = [&](RowSpan features, const Tile<R>& tile) {
    kernels.load_transposed(x, features, B, N, tile.get(), tile.stride);
  };
  upper_gram(kernels, N, B, kChain, load, G);
  mirror(G, B);
}

template <class R>
void similarity_add(DType map, int64_t B, int64_t N, const R* D, const void* x, R* d_x) {
  const TileKernels<R>& kernels = tile_kernels<R>(map);
  const int64_t stride = row_stride<R>(B);
  const Scratch<R> left(B * stride);
  acc_kernels<R>().load(D, {0, B}, B, left.get(), stride);
  parallel_for(ceil_div(N, kGroup<R>), kGrain, [&](int64_t begin, int64_t end) {
    const Scratch<R> buffer((B + round_up(B, kernels.panel)) * kGroup<R>);
    for (int64_t n = begin * kGroup<R>; n < std::min(N, end * kGroup<R>); n += kGroup<R>)
      kernels.add_product(left.get(), stride, B, x, N, n, buffer.get(), d_x);
  });
}

#define SEMCKD_INSTANTIATE(R)                                            \
  template void similarity<R>(DType, int64_t, int64_t, const void*, R*); \
  template void similarity_add<R>(DType, int64_t, int64_t, const R*, const void*, R*);
SEMCKD_INSTANTIATE(float)
SEMCKD_INSTANTIATE(double)
#undef SEMCKD_INSTANTIATE

}  // namespace semckd
