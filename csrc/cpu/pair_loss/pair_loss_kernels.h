// The inner loops of the pair loss, compiled once per instruction set (pair_loss_kernels.cpp) and chosen at run time
// (isa/isa.h).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cpu/isa/isa.h"

namespace semckd {

struct PairLossKernels {
  // sum_e (s[e] - t[e])^2 over n elements; [s dtype][t dtype], null for fp64 beside another type
  double (*sum_squared[kDTypes][kDTypes])(const void* s, const void* t, int64_t n);

  // d_s[e] = scale * (s[e] - t[e]) and d_t[e] = -that, each where not null; d_s may be s
  void (*scaled_difference[kDTypes][kDTypes])(double scale, const void* s, const void* t, void* d_s, void* d_t,
                                              int64_t n);
};

SEMCKD_DECLARE_ISA_TABLES(PairLossKernels, pair_loss_kernels)

}  // namespace semckd
