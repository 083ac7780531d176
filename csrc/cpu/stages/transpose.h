// Maps between the two orders of memory: planes [B, C, h*w] and rows [B, h*w, C]. CPU; see transpose.cpp.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace semckd {

// out[b] [n, m] = x[b] [m, n] transposed, for B matrices
void transpose_matrices(DType type, int64_t B, int64_t m, int64_t n, const void* x, void* out);

}  // namespace semckd
