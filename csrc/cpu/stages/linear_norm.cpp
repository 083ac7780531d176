// Reference  python_tests/helpers/plain_algebra.py: of_linear, linear_backward
// Math       m = W mu, v = diag(W S W^T);  d_gamma = r (rowdot(A, W) - s m), t = r d_gamma,
//            d_W = gamma r (A - s mu^T - t W S), M = W^T diag(gamma r t) W, constant = W^T (gamma r s)
// Shapes     W, A [K, c]; S, M [c, c]; the rest vectors
// Fused      all that is done with a row of W or A, around the product with S and the sum M
// Traffic    a few passes over [K, c]; the products, 2Kc^2 and half of that, bound it
// Mapping    a thread takes tiles of rows of W, M in chunks of them
// Order      sums over rows of W as in linear.cpp: tile by tile within a chunk, chunks in order (tiles.h)
// Limits     any sizes
// Measured   2026-11, EPYC (Zen 5), two threads, K = 1024, c = 512: moments 1.3 ms (torch 5.3), backward 1.0 (3.4)
#include "cpu/stages/linear_norm.h"

#include <cmath>

#include "cpu/stages/batch_norm.h"
#include "cpu/stages/tiles.h"

namespace semckd {

template <class R>
void linear_moments(int64_t K, int64_t c, const R* weight, const R* mean, const R* covariance, R* of_mean, R* variance,
                    R* with_input) {
  const TileKernels<R>& kernels = acc_kernels<R>();
  const Packed panels(kernels, covariance, c, 1, c, c);
  parallel_rows<R>(K, [&](int64_t begin, int64_t end) {
    const Tile<R> tile(c);
    for_each_tile<R>(begin, end, [&](RowSpan rows) {
      kernels.load(weight, rows, c, tile.get(), tile.stride);
      kernels.multiply_add({tile.get(), tile.stride, c, panels.get(), c}, nullptr, false, with_input, rows);
      for (int64_t k = rows.first; k < rows.first + rows.count; ++k) {
        of_mean[k] = kernels.dot(weight + k * c, mean, c);
        // rounding may leave the variance of a constant below zero; NaN stays
        const R v = kernels.dot(with_input + k * c, weight + k * c, c);
        variance[k] = v < 0 ? R(0) : static_cast<R>(variance_beside(of_mean[k], v));
        // where it takes all weight from the channel: a product of these with 0 must be 0
        if (std::isinf(variance[k])) std::fill_n(with_input + k * c, c, R(0));
      }
    });
  });
}

template <class R>
void linear_norm_backward(const LinearNormBackward<R>& problem) {
  const int64_t K = problem.K, c = problem.c;
  const TileKernels<R>& kernels = acc_kernels<R>();
  const int64_t padded = round_up(c, kernels.panel);
  const Chunks chunks(K, padded * padded * sizeof(R));
  const Slots<R> matrices(chunks, padded * padded);
  const Slots<double> constants(chunks, c);
  parallel_for(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Tile<R> weight(c), scaled(c);
    Scratch<R> of_matrix(kTileRows<R>), of_constant(kTileRows<R>);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      R* matrix = matrices.zeroed(chunk);
      double* constant = constants.zeroed(chunk);
      for_each_tile<R>(chunks.begin(chunk), chunks.end(chunk), [&](RowSpan rows) {
        for (int64_t i = 0; i < rows.count; ++i) {
          const int64_t k = rows.first + i, row = k * c;
          const R s = problem.sum_d[k], scale = problem.scale[k];
          const R d_gamma =
              problem.invstd[k] * (kernels.dot(problem.sum_dx + row, problem.weight + row, c) - s * problem.mean[k]);
          const R slope = problem.invstd[k] * d_gamma;
          kernels.combine(problem.sum_dx + row, problem.input_mean, problem.with_input + row, s, slope, scale, c,
                          problem.d_weight + row);
          problem.d_gamma[k] = d_gamma;
          of_matrix[i] = scale * slope;
          of_constant[i] = scale * s;
        }
        kernels.load(problem.weight, rows, c, weight.get(), weight.stride);
        kernels.scale_rows(weight.get(), weight.stride, rows.count, c, of_matrix.get(), scaled.get());
        kernels.row_sums({scaled.get(), scaled.stride, c}, {weight.get(), weight.stride, c}, rows.count, matrix, padded,
                         true);
        kernels.scale_rows(weight.get(), weight.stride, rows.count, c, of_constant.get(), scaled.get());
        kernels.column_sums(scaled.get(), scaled.stride, rows.count, c, constant);
      });
    }
  });
  sum_matrices(matrices, padded, c, c, problem.matrix);
  mirror(problem.matrix, c);
  sum_vectors(constants, 0, c, problem.constant);
}

#define SEMCKD_INSTANTIATE(R)                                                                  \
  template void linear_moments<R>(int64_t, int64_t, const R*, const R*, const R*, R*, R*, R*); \
  template void linear_norm_backward<R>(const LinearNormBackward<R>&);
SEMCKD_INSTANTIATE(float)
SEMCKD_INSTANTIATE(double)
#undef SEMCKD_INSTANTIATE

}  // namespace semckd
