// A BatchNorm as vectors of its channels: what normalises its input, and its backward as one linear map a channel.
// Reference: python_tests/helpers/plain_algebra.py. Each is rounded as torch rounds it, operation by operation.
#pragma once

#include <cmath>
#include <cstdint>

namespace semckd {

// (x - mean) * scale + beta normalises x, scale = gamma * invstd; all [K].
template <class R>
void normalising_vectors(int64_t K, const R* variance, const R* gamma, double eps, R* invstd, R* scale) {
  const R e = static_cast<R>(eps);
  for (int64_t k = 0; k < K; ++k) {
    invstd[k] = R(1) / std::sqrt(variance[k] + e);
    scale[k] = gamma[k] * invstd[k];
  }
}

// What running statistics take of the variance of P values.
template <class R>
void unbiased_variance(int64_t K, const R* variance, int64_t P, R* unbiased) {
  const R ratio = static_cast<R>(static_cast<double>(P) / static_cast<double>(P > 1 ? P - 1 : 1));
  for (int64_t k = 0; k < K; ++k) unbiased[k] = variance[k] * ratio;
}

// A BatchNorm's vectors [K] that its backward takes, and whether its statistics are the batch's.
template <class R>
struct NormVectors {
  const R *mean, *invstd, *scale;
  bool batch_statistics;
};

// a, b, c with d_input = a * d + b * input + c, a the scale; from the sum of d and the gradient of gamma. With running
// statistics, b and c are zero.
template <class R>
void norm_backward_vectors(int64_t K, int64_t P, NormVectors<R> norm, const R* sum_d, const R* d_gamma, R* b, R* c) {
  const R pixels = static_cast<R>(P);
  for (int64_t k = 0; k < K; ++k) {
    b[k] = norm.batch_statistics ? -norm.scale[k] * norm.invstd[k] * d_gamma[k] / pixels : R(0);
    c[k] = norm.batch_statistics ? -norm.scale[k] * sum_d[k] / pixels - b[k] * norm.mean[k] : R(0);
  }
}

// out = factor * scale[k] * weight[k], [K, c]
template <class R>
void scale_weight(int64_t K, int64_t c, double factor, const R* scale, const R* weight, R* out) {
  for (int64_t k = 0; k < K; ++k) {
    const R s = static_cast<R>(factor) * scale[k];
    for (int64_t n = 0; n < c; ++n) out[k * c + n] = s * weight[k * c + n];
  }
}

}  // namespace semckd
