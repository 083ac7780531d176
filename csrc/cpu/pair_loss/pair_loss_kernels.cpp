// Reference  reference.pair_mse, the inner loops
// Math       sum_e (s - t)^2;  d_s = scale * (s - t), d_t = -d_s
// Shapes     runs of n elements of one sample of one pair
// Fused      the difference, its square and every type conversion stay in registers
// Traffic    forward reads s, t; backward reads s, t and writes d_s (and d_t where asked): bandwidth bound
// Mapping    vectors, four at a time: four independent sums cover the latency of a fused multiply-add
// Order      lane by lane, then lanes in order, in double: the same bits for the same n, whatever the thread count
// Limits     any n, any alignment; d_s may be s. No standard library templates in here: they would be compiled for
//            this instruction set, and the linker could hand that copy to code that runs on a lesser processor.
// Measured   bench/results
#include "cpu/pair_loss/pair_loss_kernels.h"

#include "cpu/isa/vec.h"

namespace semckd {
namespace {

template <class S, class T>
double sum_squared(const void* s_ptr, const void* t_ptr, int64_t n) {
  using Vec = AccVec<S>;
  constexpr int64_t kLanes = semckd::kLanes<AccType<S>>, kUnroll = 4;
  const S* s = static_cast<const S*>(s_ptr);
  const T* t = static_cast<const T*>(t_ptr);
  Vec sum[kUnroll] = {};
  int64_t e = 0;
  for (; e + kUnroll * kLanes <= n; e += kUnroll * kLanes) {
#pragma GCC unroll 4
    for (int64_t u = 0; u < kUnroll; ++u) {
      const Vec difference = load(s + e + u * kLanes) - load(t + e + u * kLanes);
      sum[u] += difference * difference;
    }
  }
  for (; e + kLanes <= n; e += kLanes) {
    const Vec difference = load(s + e) - load(t + e);
    sum[0] += difference * difference;
  }
  if (e < n) {
    const Vec difference = load_first<S, Vec>(s + e, n - e) - load_first<T, Vec>(t + e, n - e);
    sum[1] += difference * difference;
  }
  return sum_of_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class S, class T, bool kNeedS, bool kNeedT>
void scaled_difference(double scale, const void* s_ptr, const void* t_ptr, void* d_s_ptr, void* d_t_ptr, int64_t n) {
  using Vec = AccVec<S>;
  constexpr int64_t kLanes = semckd::kLanes<AccType<S>>;
  const S* s = static_cast<const S*>(s_ptr);
  const T* t = static_cast<const T*>(t_ptr);
  S* d_s = static_cast<S*>(d_s_ptr);
  T* d_t = static_cast<T*>(d_t_ptr);
  const Vec factor = Vec{} + static_cast<decltype(Vec{}[0] + 0)>(scale);
  int64_t e = 0;
#pragma GCC unroll 4
  for (; e + kLanes <= n; e += kLanes) {
    const Vec gradient = factor * (load(s + e) - load(t + e));
    if (kNeedS) store(d_s + e, gradient);
    if (kNeedT) store(d_t + e, -gradient);
  }
  if (e < n) {
    const Vec gradient = factor * (load_first<S, Vec>(s + e, n - e) - load_first<T, Vec>(t + e, n - e));
    if (kNeedS) store_first(d_s + e, gradient, n - e);
    if (kNeedT) store_first(d_t + e, -gradient, n - e);
  }
}

template <class S, class T>
void scaled_difference(double scale, const void* s, const void* t, void* d_s, void* d_t, int64_t n) {
  if (d_s && d_t) return scaled_difference<S, T, true, true>(scale, s, t, d_s, d_t, n);
  if (d_s) return scaled_difference<S, T, true, false>(scale, s, t, d_s, d_t, n);
  if (d_t) return scaled_difference<S, T, false, true>(scale, s, t, d_s, d_t, n);
}

static_assert(kDTypes == 4, "the tables below have a row and a column for each DType");
#define SEMCKD_STUDENT_TYPE(loop, S) {loop<S, float>, loop<S, Half>, loop<S, BFloat16>, nullptr}
#define SEMCKD_BY_TYPE(loop)                                                                                  \
  {                                                                                                           \
    SEMCKD_STUDENT_TYPE(loop, float), SEMCKD_STUDENT_TYPE(loop, Half), SEMCKD_STUDENT_TYPE(loop, BFloat16), { \
      nullptr, nullptr, nullptr, loop<double, double>                                                         \
    }                                                                                                         \
  }

}  // namespace

extern const PairLossKernels SEMCKD_FOR_ISA(pair_loss_kernels) = {SEMCKD_BY_TYPE(sum_squared),
                                                                  SEMCKD_BY_TYPE(scaled_difference)};

}  // namespace semckd
