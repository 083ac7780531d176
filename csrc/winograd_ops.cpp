// The operators of the Winograd convolution: schemas, checks, CPU implementations. No maths here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "cpu/winograd.h"
#include "pair_loss_ops.h"

namespace semckd {
namespace {

ScalarType wide_type(const Tensor& h) {
  return h.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

MapShape shape_of(const Tensor& h) {
  STD_TORCH_CHECK(h.dim() == 4 && h.is_contiguous() && h.is_cpu(), "semckd: h must be contiguous rows [B, h, w, K]");
  return {h.size(0), h.size(1), h.size(2), h.size(3)};
}

// Rows of h's shape and type.
void check_map(const Tensor& x, const Tensor& h, const char* name) {
  STD_TORCH_CHECK(
      x.is_cpu() && x.is_contiguous() && x.scalar_type() == h.scalar_type() && Layout::of(x).same_sizes(Layout::of(h)),
      "semckd: ", name, " must be contiguous rows of h's shape and type");
}

// [K] of the wide type.
void check_vector(const Tensor& x, const Tensor& h, const char* name) {
  STD_TORCH_CHECK(
      x.is_cpu() && x.is_contiguous() && x.scalar_type() == wide_type(h) && x.dim() == 1 && x.size(0) == h.size(3),
      "semckd: ", name, " must be [K] in the wide type");
}

ConvolutionWeight weight_of(const Tensor& weight, const Tensor& h, const char* name) {
  const int64_t K = h.size(3);
  STD_TORCH_CHECK(weight.is_cpu() && weight.scalar_type() == wide_type(h) && weight.dim() == 4 && weight.size(0) == K &&
                      weight.size(1) == K && weight.size(2) == 3 && weight.size(3) == 3,
                  "semckd: ", name, " must be [K, K, 3, 3] in the wide type");
  return {const_cast<void*>(weight.const_data_ptr()), weight.stride(0), weight.stride(1), weight.stride(2),
          weight.stride(3)};
}

void* scratch_of(const Tensor& scratch, const Tensor& h, bool backward) {
  STD_TORCH_CHECK(scratch.is_cpu() && scratch.is_contiguous() && scratch.scalar_type() == ScalarType::Byte &&
                      scratch.numel() >= winograd_conv3x3_scratch(shape_of(h), dtype_of(h), backward),
                  "semckd: scratch must be as many bytes as winograd_scratch says");
  return scratch.mutable_data_ptr();
}

int64_t winograd_scratch(Tensor h, bool backward) {
  return winograd_conv3x3_scratch(shape_of(h), dtype_of(h), backward);
}

void conv3x3(Tensor h, Tensor weight, Tensor scratch, Tensor z, std::optional<Tensor> mean,
             std::optional<Tensor> variance) {
  const MapShape shape = shape_of(h);
  check_map(z, h, "z");
  STD_TORCH_CHECK(mean.has_value() == variance.has_value(), "semckd: mean and variance come together");
  if (mean) {
    check_vector(*mean, h, "mean");
    check_vector(*variance, h, "variance");
  }
  winograd_conv3x3(shape, dtype_of(h), h.const_data_ptr(), weight_of(weight, h, "weight"),
                   scratch_of(scratch, h, false), z.mutable_data_ptr(), mean ? mean->mutable_data_ptr() : nullptr,
                   variance ? variance->mutable_data_ptr() : nullptr);
}

void conv3x3_backward(Tensor h, Tensor weight, Tensor z, Tensor d_h2, Tensor a, Tensor b, Tensor c, Tensor scratch,
                      Tensor d_h1, Tensor d_weight) {
  const MapShape shape = shape_of(h);
  check_map(z, h, "z");
  check_map(d_h2, h, "d_h2");
  check_map(d_h1, h, "d_h1");
  check_vector(a, h, "a");
  check_vector(b, h, "b");
  check_vector(c, h, "c");
  const MapSource d_z{d_h2.const_data_ptr(), z.const_data_ptr(), a.const_data_ptr(), b.const_data_ptr(),
                      c.const_data_ptr()};
  winograd_conv3x3_bwd(shape, dtype_of(h), h.const_data_ptr(), d_z, weight_of(weight, h, "weight"),
                       scratch_of(scratch, h, true), d_h1.mutable_data_ptr(), weight_of(d_weight, h, "d_weight"));
}

}  // namespace
}  // namespace semckd

// Maps are rows [B, h, w, K]; the weight and everything that is not a map has the wide type.
STABLE_TORCH_LIBRARY_FRAGMENT(semckd, m) {
  m.def("winograd_scratch(Tensor h, bool backward) -> int");
  m.def(
      "winograd_conv3x3(Tensor h, Tensor weight, Tensor(a!) scratch, Tensor(b!) z, Tensor(c!)? mean, "
      "Tensor(d!)? variance) -> ()");
  m.def(
      "winograd_conv3x3_backward(Tensor h, Tensor weight, Tensor z, Tensor d_h2, Tensor a, Tensor b, Tensor c, "
      "Tensor(a!) scratch, Tensor(b!) d_h1, Tensor(c!) d_weight) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(semckd, CPU, m) {
  m.impl("winograd_scratch", TORCH_BOX(&semckd::winograd_scratch));
  m.impl("winograd_conv3x3", TORCH_BOX(&semckd::conv3x3));
  m.impl("winograd_conv3x3_backward", TORCH_BOX(&semckd::conv3x3_backward));
}
