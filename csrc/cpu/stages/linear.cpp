// Reference  python_tests/helpers/plain_stages.py: linear_relu, linear_relu_backward, linear_add_, moments
// Math       h = relu(W x + b);  d = d_h (h > 0), d_x (+)= W'^T d, d_W = sum_p d x^T, d_b = sum_p d
//            covariance = 1/P sum_p (x - mean)(x - mean)^T
// Shapes     x [P, c], h and d_h [P, K], W and W' [K, c]
// Fused      bias and ReLU behind the product; the mask in front of three uses of d; type conversions
// Traffic    forward c read and K written a row, backward 2K + c read and c written (twice that, if added to); at
//            K = 2c from about c = 64 on arithmetic bounds it
// Mapping    a thread takes chunks of rows, tile by tile: a tile is converted once into padded scratch, products read
//            it from the L2 cache
// Order      sums over rows: tile by tile within a chunk, chunks in order (tiles.h)
// Limits     any sizes; covariances up to the largest number of the type
// Operands   bf16 for bf16 maps, where the processor multiplies that: weights are rounded, as autocast does; x and d
//            are maps' values anyway. The covariance is of fp32 products
// Measured   2026-11-25, EPYC (Zen 4, AVX-512), one thread's CPU time on a busy machine, batch
//            64, ms (GFLOP/s); beside it torch's 1x1 convolution, channels_last, without what is fused here:
//              c, K, map          linear_relu fp32   torch   bf16        backward fp32   torch   bf16
//              64, 128, 32x32     11.8 (91)          28.0    6.2 (173)   24.8 (87)       28.5    14.9 (144)
//              128, 256, 16x16    10.9 (99)          12.3    5.4 (197)   22.8 (94)       22.6    13.3 (162)
//              256, 512, 8x8      10.2 (105)         11.2    5.2 (206)   21.1 (102)      21.5    11.7 (183)
//            torch's bf16 convolution takes 5.2 and, rounding d_x, 11.4 to 13.4
#include "cpu/stages/linear.h"

#include <cmath>

#include "cpu/stages/batch_norm.h"
#include "cpu/stages/tiles.h"

namespace semckd {

namespace {

// The covariance on and above the diagonal, of values times a power of two that takes no bits.
template <class R>
void upper_covariance(DType map, int64_t P, int64_t c, const void* x, const R* mean, R shrink, R* covariance) {
  const TileKernels<R>& kernels = tile_kernels<R>(map);
  const auto load = [&](RowSpan rows, const Tile<R>& tile) {
    kernels.load_centred(x, rows, c, mean, tile.get(), tile.stride);
    if (shrink != 1)
      for (int64_t i = 0; i < rows.count; ++i)
        for (int64_t m = 0; m < c; ++m) tile.get()[i * tile.stride + m] *= shrink;
  };
  upper_gram(kernels, P, c, kTileRows<R>, load, covariance);
  const R divisor = static_cast<R>(P) * (shrink * shrink);
  for (int64_t m = 0; m < c; ++m)
    for (int64_t n = m; n < c; ++n) covariance[m * c + n] /= divisor;
}

}  // namespace

template <class R>
void moments(DType map, int64_t P, int64_t c, const void* x, R* mean, R* covariance) {
  batch_statistics<R>(map, P, c, x, mean, nullptr);
  upper_covariance(map, P, c, x, mean, R(1), covariance);
  bool finite = true;
  for (int64_t m = 0; m < c; ++m) finite = finite && std::isfinite(covariance[m * c + m]);
  if (!finite && P > 0) {
    // values of 1e18, say: their squares fit, the sum of them does not
    const int half = static_cast<int>(std::ceil(std::log2(static_cast<double>(P)) / 2));
    upper_covariance(map, P, c, x, mean, static_cast<R>(std::ldexp(1.0, -half)), covariance);
  }
  mirror(covariance, c);
}

template <class R>
void linear_relu(DType map, int64_t P, int64_t c, int64_t K, const void* x, const R* weight, const R* bias, void* h) {
  const TileKernels<R>& kernels = tile_kernels<R>(map);
  const Packed panels(kernels, weight, 1, c, c, K);
  parallel_rows<R>(P, [&](int64_t begin, int64_t end) {
    const Tile<R> tile(c);
    for_each_tile<R>(begin, end, [&](RowSpan rows) {
      kernels.load_operands(x, rows, c, tile.get(), tile.stride);
      kernels.multiply_relu({tile.get(), tile.stride, c, panels.get(), K}, bias, h, rows);
    });
  });
}

template <class R>
void linear_relu_backward(const LinearReluBackward<R>& problem) {
  const int64_t c = problem.c, K = problem.K;
  const TileKernels<R>& kernels = tile_kernels<R>(problem.map);
  const Packed panels(kernels, problem.weight, c, 1, K, c);
  const int64_t padded_c = round_up(c, kernels.panel), padded_K = round_up(K, kernels.panel);
  const Chunks chunks(problem.P, padded_K * padded_c * sizeof(R));
  const Slots<R> weights(chunks, padded_K * padded_c);
  const Slots<double> biases(chunks, K);
  parallel_for(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Tile<R> x(c), d(K);
    // pages that nothing writes, where operands are the tiles themselves, take no memory
    const Tile<R> x_buffer(c), d_buffer(K);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      R* d_weight = weights.zeroed(chunk);
      double* d_bias = biases.zeroed(chunk);
      for_each_tile<R>(chunks.begin(chunk), chunks.end(chunk), [&](RowSpan rows) {
        kernels.load_masked(problem.d_h, problem.h, rows, K, d.get(), d.stride);
        kernels.load(problem.x, rows, c, x.get(), x.stride);
        const void* left = kernels.tile_operands(d.get(), d.stride, rows.count, K, d_buffer.get());
        kernels.multiply_add({left, d.stride, K, panels.get(), c}, nullptr, problem.accumulate, problem.d_x, rows);
        left = kernels.sum_operands(d.get(), d.stride, rows.count, K, d_buffer.get());
        const void* const right = kernels.sum_operands(x.get(), x.stride, rows.count, c, x_buffer.get());
        kernels.operand_sums({left, d.stride, K}, {right, x.stride, c}, rows.count, d_weight, padded_c);
        kernels.column_sums(d.get(), d.stride, rows.count, K, d_bias);
      });
    }
  });
  sum_matrices(weights, padded_c, K, c, problem.d_weight);
  sum_vectors(biases, 0, K, problem.d_bias);
}

template <class R>
void linear_add(DType map, int64_t P, int64_t c, const void* x, const R* weight, const R* bias, R* d_x) {
  const TileKernels<R>& kernels = tile_kernels<R>(map);
  const Packed panels(kernels, weight, 1, c, c, c);
  parallel_rows<R>(P, [&](int64_t begin, int64_t end) {
    const Tile<R> tile(c);
    for_each_tile<R>(begin, end, [&](RowSpan rows) {
      kernels.load_operands(x, rows, c, tile.get(), tile.stride);
      kernels.multiply_add({tile.get(), tile.stride, c, panels.get(), c}, bias, true, d_x, rows);
    });
  });
}

#define SEMCKD_INSTANTIATE(R)                                                                             \
  template void moments<R>(DType, int64_t, int64_t, const void*, R*, R*);                                 \
  template void linear_relu<R>(DType, int64_t, int64_t, int64_t, const void*, const R*, const R*, void*); \
  template void linear_relu_backward<R>(const LinearReluBackward<R>&);                                    \
  template void linear_add<R>(DType, int64_t, int64_t, const void*, const R*, const R*, R*);
SEMCKD_INSTANTIATE(float)
SEMCKD_INSTANTIATE(double)
#undef SEMCKD_INSTANTIATE

}  // namespace semckd
