// Products of rows with a small matrix, and their backward: the criterion's first 1x1 convolution. CPU; see linear.cpp.
// R is float, or double for double maps; explicitly instantiated for both.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace semckd {

// mean [c] and covariance [c, c] = 1/P sum_p (x[p] - mean)(x[p] - mean)^T of x [P, c]
template <class R>
void moments(DType map, int64_t P, int64_t c, const void* x, R* mean, R* covariance);

// h[p] = relu(weight x[p] + bias); x [P, c], weight [K, c], bias [K], h [P, K]
template <class R>
void linear_relu(DType map, int64_t P, int64_t c, int64_t K, const void* x, const R* weight, const R* bias, void* h);

template <class R>
struct LinearReluBackward {
  DType map;
  int64_t P, c, K;
  const void* x;    // [P, c]
  const void* h;    // [P, K]
  const void* d_h;  // [P, K]
  const R* weight;  // [K, c]
  bool accumulate;  // whether d_x is added to
  R* d_x;           // [P, c]
  R* d_weight;      // [K, c]
  R* d_bias;        // [K]
};
template <class R>
void linear_relu_backward(const LinearReluBackward<R>& problem);

// d_x[p] += weight x[p] + bias; x, d_x [P, c], weight [c, c], bias [c]
template <class R>
void linear_add(DType map, int64_t P, int64_t c, const void* x, const R* weight, const R* bias, R* d_x);

}  // namespace semckd
