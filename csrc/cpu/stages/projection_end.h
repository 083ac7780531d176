// The end of a pair's projection, from the second convolution's result to the squared error and back. CPU; see
// projection_end.cpp. R is float, or double for double maps; explicitly instantiated for both.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace semckd {

template <class R>
struct ProjectionEnd {
  DType map;
  int64_t B, pixels, K, C;
  const void* z;                 // [B * pixels, K]
  const R *mean, *scale, *beta;  // [K]
  const R* weight;               // [C, K]
  const void* y;                 // [B * pixels, C]
  R* squared_error;              // [B]
  bool gradients;                // else the squared error alone is wanted, and nothing below is used
  const R* coef;                 // [B]
  void* d_h;                     // [B * pixels, K]
  R* d_weight;                   // [C, K]
  R *sum_d, *sum_dz;             // [K]
};

template <class R>
void projection_end(const ProjectionEnd<R>& problem);

}  // namespace semckd
