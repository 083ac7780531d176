// The operators behind the criterion's stages on the CPU (semckd_kernels/criterion/stages.py has their meaning): their
// schemas, and checks of what comes from Python. No maths here.
//
// Maps are rows [B, h, w, C], contiguous, all of one type; vectors and matrices have the wide type.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "cpu/batch_norm.h"
#include "cpu/linear.h"
#include "cpu/linear_norm.h"
#include "cpu/projection_end.h"
#include "cpu/scratch.h"
#include "cpu/similarity.h"
#include "cpu/transpose.h"
#include "pair_loss_ops.h"

namespace semckd {
namespace {

void check(const Tensor& x, ScalarType dtype, const Dims& sizes, const char* name) {
  const auto given = x.sizes();
  const bool fits = x.scalar_type() == dtype && x.is_contiguous() && given.size() == sizes.size() &&
                    std::equal(sizes.begin(), sizes.end(), given.data());
  if (fits) return;
  std::string expected;
  for (const int64_t size : sizes) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(fits, "semckd: ", name, " must be contiguous, [", expected, "] and of the right type");
}

// The types that the first argument of a call fixes for all others.
struct Types {
  DType map;
  ScalarType type, wide;

  explicit Types(const Tensor& x)
      : map(dtype_of(x)),
        type(x.scalar_type()),
        wide(map == DType::kFloat64 ? ScalarType::Double : ScalarType::Float) {}

  void check_wide(const Tensor& x, const Dims& sizes, const char* name) const { check(x, wide, sizes, name); }

  Tensor new_wide(const Tensor& like, const Dims& sizes) const {
    Dims strides(sizes.size());
    int64_t run = 1;
    for (size_t d = sizes.size(); d-- > 0; run *= sizes[d]) strides[d] = run;
    const int32_t code = map == DType::kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
    return empty_strided(sizes.size(), sizes.data(), strides.data(), code, like);
  }

  // body(R()) with R the wide type
  template <class Body>
  void dispatch(const Body& body) const {
    if (map == DType::kFloat64) {
      body(double());
    } else {
      body(float());
    }
  }
};

// And the sizes that the first map fixes.
struct Rows : Types {
  int64_t B, height, width, channels;

  Rows(const Tensor& x, const char* name) : Types(x) {
    STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "semckd: ", name,
                    " must be contiguous rows [B, h, w, channels]");
    B = x.size(0), height = x.size(1), width = x.size(2), channels = x.size(3);
  }
  int64_t P() const { return B * height * width; }

  void check_map(const Tensor& x, int64_t of_channels, const char* name) const {
    check(x, type, {B, height, width, of_channels}, name);
  }
};

template <class R>
const R* read(const Tensor& x) {
  return static_cast<const R*>(x.const_data_ptr());
}
template <class R>
R* write(Tensor& x) {
  return static_cast<R*>(x.mutable_data_ptr());
}

std::tuple<Tensor, Tensor> row_moments(Tensor x) {
  const Rows rows(x, "x");
  Tensor mean = rows.new_wide(x, {rows.channels}), covariance = rows.new_wide(x, {rows.channels, rows.channels});
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    moments(rows.map, rows.P(), rows.channels, x.const_data_ptr(), write<R>(mean), write<R>(covariance));
  });
  return {mean, covariance};
}

std::tuple<Tensor, Tensor> row_statistics(Tensor z) {
  const Rows rows(z, "z");
  Tensor mean = rows.new_wide(z, {rows.channels}), variance = rows.new_wide(z, {rows.channels});
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    batch_statistics(rows.map, rows.P(), rows.channels, z.const_data_ptr(), write<R>(mean), write<R>(variance));
  });
  return {mean, variance};
}

void row_affine_(Tensor d, Tensor z, Tensor a, Tensor b, Tensor c) {
  const Rows rows(d, "d");
  rows.check_map(z, rows.channels, "z");
  for (const Tensor* vector : {&a, &b, &c}) rows.check_wide(*vector, {rows.channels}, "a, b, c");
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
  rows.check_wide(bias, {K}, "bias");
  rows.check_wide(weight, {K, c}, "weight");
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
  rows.check_wide(weight, {K, c}, "weight");
  rows.check_wide(d_x, {rows.B, rows.height, rows.width, c}, "d_x");
  Tensor d_weight = rows.new_wide(x, {K, c}), d_bias = rows.new_wide(x, {K});
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
  rows.check_wide(weight, {c, c}, "weight");
  rows.check_wide(bias, {c}, "bias");
  rows.check_wide(d_x, {rows.B, rows.height, rows.width, c}, "d_x");
  rows.dispatch([&](auto zero) {
    using R = decltype(zero);
    linear_add(rows.map, rows.P(), c, x.const_data_ptr(), read<R>(weight), read<R>(bias), write<R>(d_x));
  });
}

// A matrix of the wide type, whose sizes the others follow.
Types types_of_matrix(const Tensor& x, const char* name) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && types.type == types.wide, "semckd: ", name,
                  " must be a contiguous fp32 or fp64 matrix");
  return types;
}

std::tuple<Tensor, Tensor, Tensor> moments_of_linear(Tensor weight, Tensor mean, Tensor covariance) {
  const Types types = types_of_matrix(weight, "weight");
  const int64_t K = weight.size(0), c = weight.size(1);
  types.check_wide(mean, {c}, "mean");
  types.check_wide(covariance, {c, c}, "covariance");
  Tensor of_mean = types.new_wide(weight, {K}), variance = types.new_wide(weight, {K});
  Tensor with_input = types.new_wide(weight, {K, c});
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
  types.check_wide(with_input, {K, c}, "with_input");
  types.check_wide(sum_dx, {K, c}, "sum_dx");
  types.check_wide(input_mean, {c}, "input_mean");
  for (const Tensor* vector : {&mean, &invstd, &scale, &sum_d})
    types.check_wide(*vector, {K}, "mean, invstd, scale, sum_d");
  Tensor d_weight = types.new_wide(weight, {K, c}), d_gamma = types.new_wide(weight, {K});
  Tensor matrix = types.new_wide(weight, {c, c}), constant = types.new_wide(weight, {c});
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
  check(out, types.type, {x.size(0), x.size(2), x.size(1)}, "out");
  transpose_matrices(types.map, x.size(0), x.size(1), x.size(2), x.const_data_ptr(), out.mutable_data_ptr());
}

Tensor similarity_out(Tensor x) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "semckd: x must be contiguous, [B, N]");
  Tensor result = types.new_wide(x, {x.size(0), x.size(0)});
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    similarity(types.map, x.size(0), x.size(1), x.const_data_ptr(), write<R>(result));
  });
  return result;
}

void similarity_add_(Tensor d_similarity, Tensor x, Tensor d_x) {
  const Types types(x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "semckd: x must be contiguous, [B, N]");
  types.check_wide(d_similarity, {x.size(0), x.size(0)}, "d_similarity");
  types.check_wide(d_x, {x.size(0), x.size(1)}, "d_x");
  types.dispatch([&](auto zero) {
    using R = decltype(zero);
    similarity_add(types.map, x.size(0), x.size(1), read<R>(d_similarity), x.const_data_ptr(), write<R>(d_x));
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
  for (const Tensor* vector : {&mean, &scale, &beta}) rows.check_wide(*vector, {rows.channels}, "mean, scale, beta");
  rows.check_wide(weight, {y.size(3), rows.channels}, "weight");
}

Tensor projection_error(Tensor z, Tensor mean, Tensor scale, Tensor beta, Tensor weight, Tensor y) {
  const Rows rows(z, "z");
  check_end(rows, mean, scale, beta, weight, y);
  Tensor squared_error = rows.new_wide(z, {rows.B});
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
  rows.check_wide(coef, {rows.B}, "coef");
  rows.check_map(d_h, rows.channels, "d_h");
  Tensor squared_error = rows.new_wide(z, {rows.B}), d_weight = rows.new_wide(z, {y.size(3), rows.channels});
  Tensor sum_d = rows.new_wide(z, {rows.channels}), sum_dz = rows.new_wide(z, {rows.channels});
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

void advise_huge_pages_under(Tensor buffer) {
  advise_huge_pages(buffer.mutable_data_ptr(), static_cast<size_t>(buffer.numel()) * buffer.element_size());
}

}  // namespace
}  // namespace semckd

STABLE_TORCH_LIBRARY_FRAGMENT(semckd, m) {
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
  m.def("similarity(Tensor x) -> Tensor");
  m.def("similarity_add_(Tensor d_similarity, Tensor x, Tensor(a!) d_x) -> ()");
  m.def("projection_error(Tensor z, Tensor mean, Tensor scale, Tensor beta, Tensor weight, Tensor y) -> Tensor");
  m.def(
      "projection_error_gradients(Tensor z, Tensor mean, Tensor scale, Tensor beta, Tensor weight, Tensor y, "
      "Tensor coef, Tensor(a!) d_h) -> (Tensor squared_error, Tensor d_weight, Tensor sum_d, Tensor sum_dz)");
  m.def("advise_huge_pages(Tensor buffer) -> ()");
  m.def("release_scratch() -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(semckd, CPU, m) {
  m.impl("row_moments", TORCH_BOX(&semckd::row_moments));
  m.impl("row_statistics", TORCH_BOX(&semckd::row_statistics));
  m.impl("row_affine_", TORCH_BOX(&semckd::row_affine_));
  m.impl("linear_relu", TORCH_BOX(&semckd::linear_relu_out));
  m.impl("linear_relu_backward", TORCH_BOX(&semckd::linear_relu_backward_out));
  m.impl("linear_add_", TORCH_BOX(&semckd::linear_add_));
  m.impl("linear_moments", TORCH_BOX(&semckd::moments_of_linear));
  m.impl("linear_norm_backward", TORCH_BOX(&semckd::linear_norm_backward_out));
  m.impl("transpose_", TORCH_BOX(&semckd::transpose_));
  m.impl("similarity", TORCH_BOX(&semckd::similarity_out));
  m.impl("similarity_add_", TORCH_BOX(&semckd::similarity_add_));
  m.impl("projection_error", TORCH_BOX(&semckd::projection_error));
  m.impl("projection_error_gradients", TORCH_BOX(&semckd::projection_error_gradients));
  m.impl("advise_huge_pages", TORCH_BOX(&semckd::advise_huge_pages_under));
}

STABLE_TORCH_LIBRARY_IMPL(semckd, CompositeExplicitAutograd, m) {
  m.impl("release_scratch", TORCH_BOX(&semckd::release_scratch));
}
