// The similarity of a layer's samples, and its backward. CPU; see similarity.cpp. R is float, or double for double
// maps; explicitly instantiated for both.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace semckd {

// G [B, B] = x x^T of x [B, N]
template <class R>
void similarity(DType map, int64_t B, int64_t N, const void* x, R* G);

// d_x += D x; D [B, B], x and d_x [B, N]
template <class R>
void similarity_add(DType map, int64_t B, int64_t N, const R* D, const void* x, R* d_x);

}  // namespace semckd
