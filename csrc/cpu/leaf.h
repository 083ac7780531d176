// The inner loops of the pair loss, compiled once per instruction set (leaf.cpp) and chosen at run time (level.h).
#pragma once

#include <cstdint>

#include "../pair_list.h"
#include "level.h"

namespace semckd {

constexpr int kDTypes = 4;

struct Leaves {
  // sum_e (s[e] - t[e])^2 over n elements; [s dtype][t dtype], null for fp64 beside another type
  double (*sum_squared[kDTypes][kDTypes])(const void* s, const void* t, int64_t n);

  // d_s[e] = scale * (s[e] - t[e]) and d_t[e] = -that, each where not null; d_s may be s
  void (*scaled_difference[kDTypes][kDTypes])(double scale, const void* s, const void* t, void* d_s, void* d_t,
                                              int64_t n);
};

SEMCKD_DECLARE_LEVELS(Leaves, leaves)

}  // namespace semckd
