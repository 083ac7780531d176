// The BatchNorm behind the criterion's first 1x1 convolution, as algebra on the convolution's weight. CPU; see
// linear_norm.cpp. R is float, or double for double maps; explicitly instantiated for both.
#pragma once

#include <cstdint>

namespace semckd {

// Of W x: mean [K], biased variance [K] and covariance with x, W covariance [K, c]; from those of x and W [K, c].
template <class R>
void linear_moments(int64_t K, int64_t c, const R* weight, const R* mean, const R* covariance, R* of_mean, R* variance,
                    R* with_input);

template <class R>
struct LinearNormBackward {
  int64_t K, c;
  const R* weight;                 // W [K, c]
  const R* with_input;             // W covariance [K, c]
  const R* input_mean;             // of x [c]
  const R *mean, *invstd, *scale;  // the BatchNorm's [K]
  const R* sum_dx;                 // A = sum_p d_p x_p^T [K, c]
  const R* sum_d;                  // s = sum_p d_p [K]
  R* d_weight;                     // [K, c]
  R* d_gamma;                      // [K]
  R* matrix;                       // M [c, c]
  R* constant;                     // [c]
};
template <class R>
void linear_norm_backward(const LinearNormBackward<R>& problem);

}  // namespace semckd
