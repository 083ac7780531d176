// The operators of the Winograd convolution: schemas, checks, CPU implementations. No maths here.
#include "cpu/winograd/winograd.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "core/scratch.h"
#include "cpu/winograd/frozen.h"
#include "ops/tensor.h"

namespace semckd {
namespace {

MapShape shape_of(const Rows& rows) { return {rows.B, rows.height, rows.width, rows.channels}; }

ConvolutionWeight weight_of(const Tensor& weight, const Rows& rows, const char* name) {
  check_shape(weight, rows.acc, {rows.channels, rows.channels, 3, 3}, name);
  return {const_cast<void*>(weight.const_data_ptr()), weight.stride(0), weight.stride(1), weight.stride(2),
          weight.stride(3)};
}

void* scratch_of(const Tensor& scratch, const Rows& rows, bool backward) {
  STD_TORCH_CHECK(scratch.is_contiguous() && scratch.scalar_type() == ScalarType::Byte &&
                      scratch.numel() >= winograd_conv3x3_scratch(shape_of(rows), rows.map, backward),
                  "semckd: scratch must be as many bytes as winograd_scratch says");
  return scratch.mutable_data_ptr();
}

int64_t winograd_scratch(Tensor h, bool backward) {
  const Rows rows(h, "h");
  return winograd_conv3x3_scratch(shape_of(rows), rows.map, backward);
}

void conv3x3(Tensor h, Tensor weight, Tensor scratch, Tensor z, std::optional<Tensor> mean,
             std::optional<Tensor> variance) {
  const Rows rows(h, "h");
  rows.check_map(z, rows.channels, "z");
  STD_TORCH_CHECK(mean.has_value() == variance.has_value(), "semckd: mean and variance come together");
  if (mean) {
    rows.check_acc(*mean, {rows.channels}, "mean");
    rows.check_acc(*variance, {rows.channels}, "variance");
  }
  winograd_conv3x3(shape_of(rows), rows.map, h.const_data_ptr(), weight_of(weight, rows, "weight"),
                   scratch_of(scratch, rows, false), z.mutable_data_ptr(), mean ? mean->mutable_data_ptr() : nullptr,
                   variance ? variance->mutable_data_ptr() : nullptr);
}

void conv3x3_backward(Tensor h, Tensor weight, Tensor z, Tensor d_h2, Tensor a, Tensor b, Tensor c, Tensor scratch,
                      Tensor d_h1, Tensor d_weight) {
  const Rows rows(h, "h");
  rows.check_map(z, rows.channels, "z");
  rows.check_map(d_h2, rows.channels, "d_h2");
  rows.check_map(d_h1, rows.channels, "d_h1");
  rows.check_acc(a, {rows.channels}, "a");
  rows.check_acc(b, {rows.channels}, "b");
  rows.check_acc(c, {rows.channels}, "c");
  const MapSource d_z{d_h2.const_data_ptr(), z.const_data_ptr(), a.const_data_ptr(), b.const_data_ptr(),
                      c.const_data_ptr()};
  winograd_conv3x3_bwd(shape_of(rows), rows.map, h.const_data_ptr(), d_z, weight_of(weight, rows, "weight"),
                       scratch_of(scratch, rows, true), d_h1.mutable_data_ptr(), weight_of(d_weight, rows, "d_weight"));
}

Tensor transform(Tensor weight) {
  const Types types(weight);
  STD_TORCH_CHECK(types.type == types.acc, "semckd: a weight must be float32 or float64");
  const auto sizes = weight.sizes();
  STD_TORCH_CHECK(sizes.size() == 4 && sizes[2] == 3 && sizes[3] == 3, "semckd: weight must be [C, c, 3, 3]");
  const int64_t out = sizes[0], in = sizes[1];
  Tensor U = types.new_acc(weight, {frozen_conv3x3_elements(types.map, in, out)});
  advise_huge_pages(U.mutable_data_ptr(), U.numel() * static_cast<int64_t>(weight.element_size()));
  frozen_conv3x3_transform(types.map,
                           {const_cast<void*>(weight.const_data_ptr()), weight.stride(1), weight.stride(0),
                            weight.stride(2), weight.stride(3), in, out},
                           U.mutable_data_ptr());
  return U;
}

Tensor frozen(Tensor x, Tensor transformed, int64_t channels, std::optional<Tensor> bias,
              std::optional<Tensor> residual, bool relu) {
  const Rows rows(x, "x");
  rows.check_acc(transformed, {frozen_conv3x3_elements(rows.map, rows.channels, channels)}, "transformed");
  if (bias) rows.check_acc(*bias, {channels}, "bias");
  if (residual) rows.check_map(*residual, channels, "residual");
  const int64_t sizes[] = {rows.B, rows.height, rows.width, channels};
  const int64_t strides[] = {rows.height * rows.width * channels, rows.width * channels, channels, 1};
  Tensor out = empty_strided(4, sizes, strides, dtype_code(x), x);
  frozen_conv3x3({rows.B, rows.height, rows.width, rows.channels, channels}, rows.map, x.const_data_ptr(),
                 transformed.const_data_ptr(),
                 {bias ? bias->const_data_ptr() : nullptr, residual ? residual->const_data_ptr() : nullptr, relu},
                 out.mutable_data_ptr());
  return out;
}

}  // namespace
}  // namespace semckd

// Maps are rows [B, h, w, K]; the weight and everything that is not a map has the accumulation type.
STABLE_TORCH_LIBRARY_FRAGMENT(semckd_cpu, m) {
  m.def("winograd_scratch(Tensor h, bool backward) -> int");
  m.def(
      "winograd_conv3x3(Tensor h, Tensor weight, Tensor(a!) scratch, Tensor(b!) z, Tensor(c!)? mean, "
      "Tensor(d!)? variance) -> ()");
  m.def(
      "winograd_conv3x3_backward(Tensor h, Tensor weight, Tensor z, Tensor d_h2, Tensor a, Tensor b, Tensor c, "
      "Tensor(a!) scratch, Tensor(b!) d_h1, Tensor(c!) d_weight) -> ()");
  m.def("winograd_transform(Tensor weight) -> Tensor");
  m.def(
      "winograd_frozen(Tensor x, Tensor transformed, int channels, Tensor? bias, Tensor? residual, bool relu) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(semckd_cpu, CPU, m) {
  m.impl("winograd_scratch", TORCH_BOX(&semckd::winograd_scratch));
  m.impl("winograd_conv3x3", TORCH_BOX(&semckd::conv3x3));
  m.impl("winograd_conv3x3_backward", TORCH_BOX(&semckd::conv3x3_backward));
  m.impl("winograd_transform", TORCH_BOX(&semckd::transform));
  m.impl("winograd_frozen", TORCH_BOX(&semckd::frozen));
}
