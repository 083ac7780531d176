// The problem every pair-loss kernel is given: a ragged list of (student, teacher) pairs.
//
// Plain data, host side, no torch and no CUDA types: the torch-facing files (ops/) fill it in, the CPU and CUDA
// implementations read it. Sizes carry the names of the maths: B samples, S student and T teacher layers, Q = S * T
// pairs in row-major order (pair q compares student layer q / T with teacher layer q % T), N elements a sample.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace semckd {

// One pair. A sample's elements are contiguous in memory, in the same order in all four buffers; samples lie
// `*_stride` elements apart. Gradient pointers are null where no gradient is asked for.
struct Pair {
  const void* s;     // [B, N] student projection
  const void* t;     // [B, N] teacher map
  void* d_s;         // [B, N] its gradient, of the student's type; may be `s` itself (in-place backward)
  void* d_t;         // [B, N] of the teacher's type
  int64_t N;         // elements a sample
  int64_t s_stride;  // 0 for an expanded batch
  int64_t t_stride;
  int64_t d_s_stride;
  int64_t d_t_stride;
  DType s_dtype;  // kFloat64 on either side means kFloat64 on both sides of every pair
  DType t_dtype;
};

struct PairList {
  const Pair* pair;  // [Q]
  int32_t Q;
  int64_t B;
};

// How pair errors become one number: loss = 1 / (B * S) * sum_bq alpha[b, q] * mse[b, q] with
// alpha = weight, or its softmax over the T teacher layers of each student layer.
struct Weighting {
  const void* weight;  // [B, S, T] contiguous; null: there is no loss, only pair errors
  bool softmax;
  int32_t S;
  int32_t T;
};

// Everything that is not a map (weight, pair errors, loss and their gradients) has this type.
inline bool accumulates_in_double(const PairList& list) {
  return list.Q > 0 && accumulates_in_double(list.pair[0].s_dtype);
}

}  // namespace semckd
