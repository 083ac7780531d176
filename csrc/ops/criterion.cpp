// The criterion's kernels on the CPU as operators: for all layers at once, and the steps of one pair, which tests and
// benchmarks call one by one (python_tests/helpers/stage_interface.py has their meaning). Schemas, and checks of what
// comes from Python. No maths here.
//
// Maps are rows [B, h, w, C], contiguous, all of one type; vectors and matrices have the accumulation type.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "core/parallel.h"
#include "cpu/stages/batch_norm.h"
#include "cpu/stages/linear.h"
#include "cpu/stages/linear_norm.h"
#include "cpu/stages/projection_end.h"
#include "cpu/stages/similarity.h"
#include "cpu/stages/transpose.h"
#include "ops/tensor.h"

namespace semckd {
namespace {

std::tuple<Tensor, Tensor> row_moments(Tensor x) {
  const Rows rows(x, "x");
  Tensor mean = rows.new_acc(x, {rows.channels}), covariance = rows.new_acc(x, {rows.channels, rows.channels});
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    moments(rows.map, rows.P(), rows.channels, x.const_data_ptr(), write<R>(mean), write<R>(covariance));
  });
  return {mean, covariance};
}

std::tuple<Tensor, Tensor> row_statistics(Tensor z) {
  const Rows rows(z, "z");
  Tensor mean = rows.new_acc(z, {rows.channels}), variance = rows.new_acc(z, {rows.channels});
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    batch_statistics(rows.map, rows.P(), rows.channels, z.const_data_ptr(), write<R>(mean), write<R>(variance));
  });
  return {mean, variance};
}

void row_affine_(Tensor d, Tensor z, Tensor a, Tensor b, Tensor c) {
  const Rows rows(d, "d");
  rows.check_map(z, rows.channels, "z");
  for (const Tensor* vector : {&a, &b, &c}) rows.check_acc(*vector, {rows.channels}, "a, b, c");
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    batch_norm_backward(rows.map, rows.P(), rows.channels, d.mutable_data_ptr(), z.const_data_ptr(), read<R>(a),
                        read<R>(b), read<R>(c));
  });
}

void linear_relu_out(Tensor x, Tensor weight, Tensor bias, Tensor h) {
  const Rows rows(x, "x");
  STD_TORCH_CHECK(bias.dim() == 1, "semckd: bias must be [K]");
  const int64_t c = rows.channels, K = bias.size(0);
  rows.check_acc(bias, {K}, "bias");
  rows.check_acc(weight, {K, c}, "weight");
  rows.check_map(h, K, "h");
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    linear_relu(rows.map, rows.P(), c, K, x.const_data_ptr(), read<R>(weight), read<R>(bias), h.mutable_data_ptr());
  });
}

std::tuple<Tensor, Tensor> linear_relu_backward_out(Tensor x, Tensor h, Tensor d_h, Tensor weight, Tensor d_x,
                                                    bool accumulate) {
  const Rows rows(x, "x");
  STD_TORCH_CHECK(h.dim() == 4, "semckd: h must be rows [B, h, w, K]");
  const int64_t c = rows.channels, K = h.size(3);
  rows.check_map(h, K, "h");
  rows.check_map(d_h, K, "d_h");
  rows.check_acc(weight, {K, c}, "weight");
  rows.check_acc(d_x, {rows.B, rows.height, rows.width, c}, "d_x");
  Tensor d_weight = rows.new_acc(x, {K, c}), d_bias = rows.new_acc(x, {K});
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    linear_relu_backward(LinearReluBackward<R>{rows.map, rows.P(), c, K, x.const_data_ptr(), h.const_data_ptr(),
                                               d_h.const_data_ptr(), read<R>(weight), accumulate, write<R>(d_x),
                                               write<R>(d_weight), write<R>(d_bias)});
  });
  return {d_weight, d_bias};
}

void linear_add_(Tensor x, Tensor weight, Tensor bias, Tensor d_x) {
  const Rows rows(x, "x");
  const int64_t c = rows.channels;
  rows.check_acc(weight, {c, c}, "weight");
  rows.check_acc(bias, {c}, "bias");
  rows.check_acc(d_x, {rows.B, rows.height, rows.width, c}, "d_x");
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    linear_add(rows.map, rows.P(), c, x.const_data_ptr(), read<R>(weight), read<R>(bias), write<R>(d_x));
  });
}

// A matrix of the accumulation type, whose sizes the others follow.
Types types_of_matrix(const Tensor& x, const char* name) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && types.type == types.acc, "semckd: ", name,
                  " must be a contiguous fp32 or fp64 matrix");
  return types;
}

std::tuple<Tensor, Tensor, Tensor> moments_of_linear(Tensor weight, Tensor mean, Tensor covariance) {
  const Types types = types_of_matrix(weight, "weight");
  const int64_t K = weight.size(0), c = weight.size(1);
  types.check_acc(mean, {c}, "mean");
  types.check_acc(covariance, {c, c}, "covariance");
  Tensor of_mean = types.new_acc(weight, {K}), variance = types.new_acc(weight, {K});
  Tensor with_input = types.new_acc(weight, {K, c});
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    linear_moments(K, c, read<R>(weight), read<R>(mean), read<R>(covariance), write<R>(of_mean), write<R>(variance),
                   write<R>(with_input));
  });
  return {of_mean, variance, with_input};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_norm_backward_out(Tensor weight, Tensor with_input, Tensor input_mean,
                                                                    Tensor mean, Tensor invstd, Tensor scale,
                                                                    Tensor sum_dx, Tensor sum_d) {
  const Types types = types_of_matrix(weight, "weight");
  const int64_t K = weight.size(0), c = weight.size(1);
  types.check_acc(with_input, {K, c}, "with_input");
  types.check_acc(sum_dx, {K, c}, "sum_dx");
  types.check_acc(input_mean, {c}, "input_mean");
  for (const Tensor* vector : {&mean, &invstd, &scale, &sum_d})
    types.check_acc(*vector, {K}, "mean, invstd, scale, sum_d");
  Tensor d_weight = types.new_acc(weight, {K, c}), d_gamma = types.new_acc(weight, {K});
  Tensor matrix = types.new_acc(weight, {c, c}), constant = types.new_acc(weight, {c});
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    linear_norm_backward(LinearNormBackward<R>{
        K, c, read<R>(weight), read<R>(with_input), read<R>(input_mean), read<R>(mean), read<R>(invstd), read<R>(scale),
        read<R>(sum_dx), read<R>(sum_d), write<R>(d_weight), write<R>(d_gamma), write<R>(matrix), write<R>(constant)});
  });
  return {d_weight, d_gamma, matrix, constant};
}

void transpose_(Tensor x, Tensor out) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous(), "semckd: x must be contiguous, [B, m, n]");
  check_contiguous(out, types.type, {x.size(0), x.size(2), x.size(1)}, "out");
  transpose_matrices(types.map, x.size(0), x.size(1), x.size(2), x.const_data_ptr(), out.mutable_data_ptr());
}

Tensor similarity_out(Tensor x) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "semckd: x must be contiguous, [B, N]");
  Tensor result = types.new_acc(x, {x.size(0), x.size(0)});
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    similarity(types.map, x.size(0), x.size(1), x.const_data_ptr(), write<R>(result));
  });
  return result;
}

void similarity_add_(Tensor d_similarity, Tensor x, Tensor d_x) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "semckd: x must be contiguous, [B, N]");
  types.check_acc(d_similarity, {x.size(0), x.size(0)}, "d_similarity");
  types.check_acc(d_x, {x.size(0), x.size(1)}, "d_x");
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    similarity_add(types.map, x.size(0), x.size(1), read<R>(d_similarity), x.const_data_ptr(), write<R>(d_x));
  });
}

// Whether a tensor fills one run of memory, in whatever order of its dimensions.
bool is_dense(const Tensor& x) {
  const Layout layout = Layout::of(x);
  if (x.is_contiguous() || x.numel() == 0) return true;
  return layout.has_dense_samples() && layout.strides[0] == layout.sample_numel();
}

void scale_(Tensors tensors, Tensor factor) {
  const Types types(factor);
  STD_TORCH_CHECK(factor.dim() == 0 && types.type == types.acc, "semckd: factor must be one fp32 or fp64 number");
  for (const Tensor& x : tensors)
    STD_TORCH_CHECK(x.scalar_type() == types.type && is_dense(x),
                    "semckd: tensors must be dense, of the factor's type");
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    const R f = *read<R>(factor);
    // every bit stays
    if (f == R(1)) return;
    constexpr int64_t kGrain = 32768;
    for (Tensor& x : tensors) {
      R* const values = write<R>(x);
      parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) values[n] *= f;
      });
    }
  });
}

template <class R>
ProjectionEnd<R> end_problem(const Rows& rows, const Tensor& z, const Tensor& mean, const Tensor& scale,
                             const Tensor& beta, const Tensor& weight, const Tensor& y, Tensor& squared_error) {
  ProjectionEnd<R> problem{};
  problem.map = rows.map;
  problem.B = rows.B, problem.pixels = rows.height * rows.width, problem.K = rows.channels, problem.C = y.size(3);
  problem.z = z.const_data_ptr(), problem.y = y.const_data_ptr();
  problem.mean = read<R>(mean), problem.scale = read<R>(scale), problem.beta = read<R>(beta);
  problem.weight = read<R>(weight);
  problem.squared_error = write<R>(squared_error);
  return problem;
}

void check_end(const Rows& rows, const Tensor& mean, const Tensor& scale, const Tensor& beta, const Tensor& weight,
               const Tensor& y) {
  STD_TORCH_CHECK(y.dim() == 4, "semckd: y must be rows [B, h, w, C]");
  rows.check_map(y, y.size(3), "y");
  for (const Tensor* vector : {&mean, &scale, &beta}) rows.check_acc(*vector, {rows.channels}, "mean, scale, beta");
  rows.check_acc(weight, {y.size(3), rows.channels}, "weight");
}

Tensor projection_error(Tensor z, Tensor mean, Tensor scale, Tensor beta, Tensor weight, Tensor y) {
  const Rows rows(z, "z");
  check_end(rows, mean, scale, beta, weight, y);
  Tensor squared_error = rows.new_acc(z, {rows.B});
  rows.dispatch([&](auto zero) {
    projection_end(end_problem<decltype(zero)>(rows, z, mean, scale, beta, weight, y, squared_error));
  });
  return squared_error;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> projection_error_gradients(Tensor z, Tensor mean, Tensor scale, Tensor beta,
                                                                      Tensor weight, Tensor y, Tensor coef,
                                                                      Tensor d_h) {
  const Rows rows(z, "z");
  check_end(rows, mean, scale, beta, weight, y);
  rows.check_acc(coef, {rows.B}, "coef");
  rows.check_map(d_h, rows.channels, "d_h");
  Tensor squared_error = rows.new_acc(z, {rows.B}), d_weight = rows.new_acc(z, {y.size(3), rows.channels});
  Tensor sum_d = rows.new_acc(z, {rows.channels}), sum_dz = rows.new_acc(z, {rows.channels});
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    ProjectionEnd<R> problem = end_problem<R>(rows, z, mean, scale, beta, weight, y, squared_error);
    problem.gradients = true;
    problem.coef = read<R>(coef);
    problem.d_h = d_h.mutable_data_ptr();
    problem.d_weight = write<R>(d_weight), problem.sum_d = write<R>(sum_d), problem.sum_dz = write<R>(sum_dz);
    projection_end(problem);
  });
  return {squared_error, d_weight, sum_d, sum_dz};
}

}  // namespace
}  // namespace semckd

STABLE_TORCH_LIBRARY_FRAGMENT(semckd_cpu, m) {
  m.def("row_moments(Tensor x) -> (Tensor mean, Tensor covariance)");
  m.def("row_statistics(Tensor z) -> (Tensor mean, Tensor variance)");
  m.def("row_affine_(Tensor(a!) d, Tensor z, Tensor a, Tensor b, Tensor c) -> ()");
  m.def("linear_relu(Tensor x, Tensor weight, Tensor bias, Tensor(a!) h) -> ()");
  m.def(
      "linear_relu_backward(Tensor x, Tensor h, Tensor d_h, Tensor weight, Tensor(a!) d_x, bool accumulate) "
      "-> (Tensor d_weight, Tensor d_bias)");
  m.def("linear_add_(Tensor x, Tensor weight, Tensor bias, Tensor(a!) d_x) -> ()");
  m.def(
      "linear_moments(Tensor weight, Tensor mean, Tensor covariance) "
      "-> (Tensor mean, Tensor variance, Tensor with_input)");
  m.def(
      "linear_norm_backward(Tensor weight, Tensor with_input, Tensor input_mean, Tensor mean, Tensor invstd, "
      "Tensor scale, Tensor sum_dx, Tensor sum_d) -> (Tensor d_weight, Tensor d_gamma, Tensor matrix, Tensor "
      "constant)");
  m.def("transpose_(Tensor x, Tensor(a!) out) -> ()");
  // dense tensors times a number, all of its type
  m.def("scale_(Tensor(a!)[] tensors, Tensor factor) -> ()");
  m.def("similarity(Tensor x) -> Tensor");
  m.def("similarity_add_(Tensor d_similarity, Tensor x, Tensor(a!) d_x) -> ()");
  m.def("projection_error(Tensor z, Tensor mean, Tensor scale, Tensor beta, Tensor weight, Tensor y) -> Tensor");
  m.def(
      "projection_error_gradients(Tensor z, Tensor mean, Tensor scale, Tensor beta, Tensor weight, Tensor y, "
      "Tensor coef, Tensor(a!) d_h) -> (Tensor squared_error, Tensor d_weight, Tensor sum_d, Tensor sum_dz)");
}

STABLE_TORCH_LIBRARY_IMPL(semckd_cpu, CPU, m) {
  m.impl("row_moments", TORCH_BOX(&semckd::row_moments));
  m.impl("row_statistics", TORCH_BOX(&semckd::row_statistics));
  m.impl("row_affine_", TORCH_BOX(&semckd::row_affine_));
  m.impl("linear_relu", TORCH_BOX(&semckd::linear_relu_out));
  m.impl("linear_relu_backward", TORCH_BOX(&semckd::linear_relu_backward_out));
  m.impl("linear_add_", TORCH_BOX(&semckd::linear_add_));
  m.impl("linear_moments", TORCH_BOX(&semckd::moments_of_linear));
  m.impl("linear_norm_backward", TORCH_BOX(&semckd::linear_norm_backward_out));
  m.impl("transpose_", TORCH_BOX(&semckd::transpose_));
  m.impl("scale_", TORCH_BOX(&semckd::scale_));
  m.impl("similarity", TORCH_BOX(&semckd::similarity_out));
  m.impl("similarity_add_", TORCH_BOX(&semckd::similarity_add_));
  m.impl("projection_error", TORCH_BOX(&semckd::projection_error));
  m.impl("projection_error_gradients", TORCH_BOX(&semckd::projection_error_gradients));
}
