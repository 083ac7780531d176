// BatchNorm's statistics, and its backward as one linear map a channel. CPU; see batch_norm.cpp.
// R is float, or double for double maps; explicitly instantiated for both.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/dtype.h"

namespace semckd {

// A variance as it is, but infinity where squares of finite numbers have overflowed: what is then subtracted from them
// leaves NaN, while NaN in a channel is in its mean as well.
inline double variance_beside(double mean, double variance) {
  return std::isnan(variance) && std::isfinite(mean) ? std::numeric_limits<double>::infinity() : variance;
}

// mean [C] and biased variance [C] of z [P, C] over rows; variance may be null
template <class R>
void batch_statistics(DType map, int64_t P, int64_t C, const void* z, R* mean, R* variance);

// d = a * d + b * z + c; d, z [P, C], a, b, c [C]
template <class R>
void batch_norm_backward(DType map, int64_t P, int64_t C, void* d, const void* z, const R* a, const R* b, const R* c);

}  // namespace semckd
