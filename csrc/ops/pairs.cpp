// The operator behind the criterion's pairs on the CPU: all that the pairs of one student layer at one resolution do,
// forward and backward, pair by pair, so that one pair's maps are alive at a time and stay in cache. Schema, checks,
// results, and the order of the kernels' calls; what the steps compute is said in python_tests/helpers/plain_pairs.py.
//
// Maps are rows [B, h, w, C], contiguous, all of one type; sums, vectors and matrices have the accumulation type, R.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "core/parallel.h"
#include "core/scratch.h"
#include "cpu/stages/batch_norm.h"
#include "cpu/stages/linear.h"
#include "cpu/stages/linear_norm.h"
#include "cpu/stages/norm_vectors.h"
#include "cpu/stages/projection_end.h"
#include "cpu/winograd/winograd.h"
#include "ops/call.h"
#include "ops/tensor.h"
#include "ops/vendor_convolution.h"

namespace semckd {
namespace {

// of each pair; the parameters in the order of semckd_kernels/stages/projection.py
enum Parameter { kWeight1, kGamma1, kBeta1, kWeight2, kGamma2, kBeta2, kWeight3, kParameters };
constexpr int64_t kRunning = 4;

// multiply-adds of a pair, forward, below which threads are not woken for it
constexpr int64_t kFewOperations = 4 << 20;

// What the operator is given, as in its schema.
struct Arguments {
  Tensor x;
  Tensors targets, parameters, running;
  std::vector<double> eps;
  std::vector<bool> batch_statistics;
  std::vector<int64_t> numbers;
  std::vector<double> coefficients, outside;
  double later;
  Tensor alpha, mse;
  std::optional<Tensor> d_x;
  bool accumulate;
  Tensors d_weight2;
  bool vendor;
};

template <class R>
void multiply(R* x, int64_t count, double factor) {
  const R f = static_cast<R>(factor);
  constexpr int64_t kGrain = 32768;
  parallel_for(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) x[n] *= f;
  });
}

// A parameter's gradient, like the parameter: autograd takes it without a copy. Kernels write it row-major in the
// accumulation type: into the result itself, where that lies so.
template <class R>
class Gradient {
 public:
  Gradient(const Types& types, const Tensor& parameter)
      : types_(types), parameter_(parameter), kept_(kept_type(parameter.scalar_type())) {
    if (parameter.is_contiguous() && kept_ == types.acc) {
      const Layout layout = Layout::of(parameter);
      result_ = empty_strided(layout.dims, layout.sizes, layout.strides, dtype_code_of_acc(), parameter);
      data_ = write<R>(*result_);
    } else {
      own_.emplace(parameter.numel());
      data_ = own_->get();
    }
  }
  R* data() const { return data_; }

  // factor times what was written
  Tensor finish(double factor) {
    if (factor != 1) multiply(data_, parameter_.numel(), factor);
    if (result_) return *result_;
    const auto sizes = parameter_.sizes();
    Tensor result = empty_like(parameter_, kept_);
    torch::stable::copy_(result, view_of(data_, Dims(sizes.begin(), sizes.end()), types_.acc));
    return result;
  }

  // fp16 would underflow before the upstream gradient scales it
  static ScalarType kept_type(ScalarType type) { return type == ScalarType::Half ? ScalarType::Float : type; }

 private:
  int32_t dtype_code_of_acc() const {
    return types_.acc == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }

  const Types& types_;
  const Tensor& parameter_;
  ScalarType kept_;
  std::optional<Tensor> result_;
  std::optional<Scratch<R>> own_;
  R* data_;
};

// A BatchNorm in front of its backward.
template <class R>
struct Norm {
  Norm(const Tensor& mean, int64_t K) : mean(mean), invstd(K), scale(K) {}
  const R* means() const { return read<R>(mean); }
  Tensor mean;
  Scratch<R> invstd, scale;
};

// Of the pairs' common input.
template <class R>
struct InputMoments {
  explicit InputMoments(int64_t c) : mean(c), covariance(c * c) {}
  Scratch<R> mean, covariance;
};

// What the pairs add to their common input's gradient: d_x[p] += -(matrix @ (x[p] - mean) + constant) / P.
template <class R>
struct InputTerms {
  explicit InputTerms(int64_t c) : matrix(c * c), constant(c) {}
  Scratch<R> matrix, constant;
  bool any = false;

  void add(int64_t c, R* of_matrix, R* of_constant, double factor) {
    if (factor != 1) {
      multiply(of_matrix, c * c, factor);
      multiply(of_constant, c, factor);
    }
    const bool first = !std::exchange(any, true);
    for (int64_t n = 0; n < c * c; ++n) matrix[n] = first ? of_matrix[n] : matrix[n] + of_matrix[n];
    for (int64_t n = 0; n < c; ++n) constant[n] = first ? of_constant[n] : constant[n] + of_constant[n];
  }
};

template <class R>
class Group {
 public:
  explicit Group(const Arguments& given)
      : given_(given),
        rows_(given.x, "x"),
        alpha_(row_major(torch::stable::to(given.alpha, rows_.acc))),
        c_(rows_.channels),
        x_(given.x.const_data_ptr()) {}

  void run() {
    bool from_batch = false;
    for (size_t n = 0; n < given_.targets.size(); ++n) from_batch = from_batch || given_.batch_statistics[2 * n];
    if (from_batch) {
      const OnThisThread alone(rows_.P() * c_ * c_ < kFewOperations);
      moments_.emplace(c_);
      moments(rows_.map, rows_.P(), c_, x_, moments_->mean.get(), moments_->covariance.get());
    }
    InputTerms<R> terms(given_.d_x ? c_ : 0);
    for (size_t n = 0; n < given_.targets.size(); ++n) run_pair(n, terms);
    if (terms.any) add_terms(terms);
  }

  Tensors statistics, gradients;

 private:
  Tensor acc(const Tensor& x) const {
    return row_major(x.scalar_type() == rows_.acc ? x : torch::stable::to(x, rows_.acc));
  }

  // The BatchNorm number `which` of a pair, whose mean is there. Where it uses the batch's statistics, `variance` is
  // the batch's; else the running one is taken.
  void prepare(size_t pair, int which, const Tensor& gamma, const R* variance, Norm<R>& norm) {
    const int64_t K = gamma.numel();
    Tensor running;
    if (given_.batch_statistics[2 * pair + which]) {
      Tensor unbiased = rows_.new_acc(gamma, {K});
      unbiased_variance(K, variance, rows_.P(), write<R>(unbiased));
      statistics.push_back(norm.mean);
      statistics.push_back(unbiased);
    } else {
      running = acc(given_.running[kRunning * pair + 2 * which + 1]);
      variance = read<R>(running);
    }
    const Tensor weight = acc(gamma);
    normalising_vectors(K, variance, read<R>(weight), given_.eps[2 * pair + which], norm.invstd.get(),
                        norm.scale.get());
  }
  // Where the mean of such a BatchNorm is written to, or what the running one is.
  Tensor mean_of(size_t pair, int which, int64_t K) const {
    if (given_.batch_statistics[2 * pair + which]) return rows_.new_acc(given_.x, {K});
    return acc(given_.running[kRunning * pair + 2 * which]);
  }

  void run_pair(size_t n, InputTerms<R>& terms);
  void add_terms(const InputTerms<R>& terms);
  void write_errors(size_t n, const R* squared_error, int64_t elements);
  void gradient_without_statistics(const Tensor& weight1, const Norm<R>& norm, const R* sum_dx, const R* sum_d,
                                   R* d_weight, R* d_gamma) const;

  void* memory(MapMemory::Block block, int64_t channels) {
    return memory_.get(block, rows_.P() * channels * kItemSize[index_of(rows_.map)]);
  }
  Tensor view_of_map(const void* data, int64_t channels) const {
    return view_of(data, {rows_.B, rows_.height, rows_.width, channels}, rows_.type);
  }

  const Arguments& given_;
  const Rows rows_;
  const Tensor alpha_;
  const int64_t c_;
  const void* x_;
  std::optional<InputMoments<R>> moments_;
  MapMemory memory_;
};

ConvolutionWeight view_of_weight(const Tensor& weight) {
  return {const_cast<void*>(weight.const_data_ptr()), weight.stride(0), weight.stride(1), weight.stride(2),
          weight.stride(3)};
}

template <class R>
void Group<R>::write_errors(size_t n, const R* squared_error, int64_t elements) {
  const int64_t q = given_.numbers[n], Q = given_.mse.size(1);
  Tensor mse = given_.mse;
  const bool in_double = mse.scalar_type() == ScalarType::Double;
  for (int64_t b = 0; b < rows_.B; ++b) {
    const R error = squared_error[b] / static_cast<R>(elements);
    if (in_double)
      write<double>(mse)[b * Q + q] = error;
    else
      write<float>(mse)[b * Q + q] = static_cast<float>(error);
  }
}

// linear_norm_backward where mean and variance are constants: a product by rows and a sum, by torch.
template <class R>
void Group<R>::gradient_without_statistics(const Tensor& weight1, const Norm<R>& norm, const R* sum_dx, const R* sum_d,
                                           R* d_weight, R* d_gamma) const {
  const int64_t K = weight1.size(0);
  const Tensor A = view_of(sum_dx, {K, c_}, rows_.acc), W = view_of(weight1.const_data_ptr(), {K, c_}, rows_.acc);
  const Dims columns{1};
  const Tensor dots = torch::stable::sum(call_torch<1>("aten::mul", "Tensor", A, W)[0], columns);
  for (int64_t k = 0; k < K; ++k) d_gamma[k] = norm.invstd[k] * (read<R>(dots)[k] - sum_d[k] * norm.means()[k]);
  scale_weight(K, c_, 1, norm.scale.get(), sum_dx, d_weight);
}

template <class R>
void Group<R>::run_pair(size_t n, InputTerms<R>& terms) {
  const Tensor* p = &given_.parameters[kParameters * n];
  const Tensor& y = given_.targets[n];
  const int64_t B = rows_.B, P = rows_.P(), c = c_, C = y.size(3), K = p[kGamma1].numel();
  const DType map = rows_.map;
  const bool gradients_wanted = given_.d_x.has_value();
  const OnThisThread alone(P * K * (9 * K + c + C) < kFewOperations);
  const Tensor weight1 = acc(p[kWeight1]), weight3 = acc(p[kWeight3]);
  const R* W = read<R>(weight1);

  // conv1x1, BatchNorm, ReLU
  Tensor mean = mean_of(n, 0, K);
  Scratch<R> variance(K), bias(K), with_input(K * c), weight(K * c);
  const bool from_batch = given_.batch_statistics[2 * n];
  if (from_batch)
    linear_moments(K, c, W, moments_->mean.get(), moments_->covariance.get(), write<R>(mean), variance.get(),
                   with_input.get());
  Norm<R> norm1(mean, K);
  prepare(n, 0, p[kGamma1], variance.get(), norm1);
  const Tensor beta1 = acc(p[kBeta1]);
  for (int64_t k = 0; k < K; ++k) bias[k] = read<R>(beta1)[k] - norm1.scale[k] * norm1.means()[k];
  scale_weight(K, c, 1, norm1.scale.get(), W, weight.get());
  void* const h1 = memory(MapMemory::kH1, K);
  linear_relu(map, P, c, K, x_, weight.get(), bias.get(), h1);

  // conv3x3, and what BatchNorm needs of it
  const Tensor& weight2 = p[kWeight2];
  const MapShape shape{B, rows_.height, rows_.width, K};
  mean = mean_of(n, 1, K);
  const bool statistics_wanted = given_.batch_statistics[2 * n + 1];
  R* const means = statistics_wanted ? write<R>(mean) : nullptr;
  R* const variances = statistics_wanted ? variance.get() : nullptr;
  std::optional<Tensor> vendors_z, acc_weight2;
  const void* z;
  if (given_.vendor) {
    vendors_z = vendor_conv3x3(view_of_map(h1, K), weight2);
    z = vendors_z->const_data_ptr();
    if (statistics_wanted) batch_statistics(map, P, K, z, means, variances);
  } else {
    acc_weight2 = weight2.scalar_type() == rows_.acc ? weight2 : torch::stable::to(weight2, rows_.acc);
    void* const written = memory(MapMemory::kZ, K);
    void* const scratch = memory_.get(MapMemory::kConvolution, winograd_conv3x3_scratch(shape, map, false));
    winograd_conv3x3(shape, map, h1, view_of_weight(*acc_weight2), scratch, written, means, variances);
    z = written;
  }
  Norm<R> norm2(mean, K);
  prepare(n, 1, p[kGamma2], variance.get(), norm2);

  // BatchNorm, ReLU, conv1x1, squared error; and back to the ReLU
  const Tensor beta2 = acc(p[kBeta2]);
  Scratch<R> squared_error(B), coef(B), sum_dz(K);
  ProjectionEnd<R> end{};
  end.map = map, end.B = B, end.pixels = rows_.height * rows_.width, end.K = K, end.C = C;
  end.z = z, end.y = y.const_data_ptr();
  end.mean = norm2.means(), end.scale = norm2.scale.get(), end.beta = read<R>(beta2), end.weight = read<R>(weight3);
  end.squared_error = squared_error.get();
  if (!gradients_wanted) {
    projection_end(end);
    return write_errors(n, squared_error.get(), end.pixels * C);
  }
  const int64_t Q = alpha_.size(1);
  for (int64_t b = 0; b < B; ++b)
    coef[b] = read<R>(alpha_)[b * Q + given_.numbers[n]] * static_cast<R>(given_.coefficients[n]);
  Gradient<R> d_weight3(rows_, p[kWeight3]), sum_d(rows_, p[kBeta2]), d_gamma2(rows_, p[kGamma2]);
  void* const d_h2 = memory(MapMemory::kDH2, K);
  end.gradients = true, end.coef = coef.get(), end.d_h = d_h2;
  end.d_weight = d_weight3.data(), end.sum_d = sum_d.data(), end.sum_dz = sum_dz.get();
  projection_end(end);
  write_errors(n, squared_error.get(), end.pixels * C);

  // BatchNorm and conv3x3
  for (int64_t k = 0; k < K; ++k) d_gamma2.data()[k] = norm2.invstd[k] * sum_dz[k];
  Scratch<R> b(K), constant(K);
  const NormVectors<R> vectors{norm2.means(), norm2.invstd.get(), norm2.scale.get(), statistics_wanted};
  norm_backward_vectors(K, P, vectors, sum_d.data(), d_gamma2.data(), b.get(), constant.get());
  Tensor result2 = given_.d_weight2[n];
  Tensor d_weight2 = result2.scalar_type() == rows_.acc ? result2 : empty_like(result2, rows_.acc);
  std::optional<Tensor> vendors_d_h1;
  const void* d_h1;
  if (given_.vendor) {
    batch_norm_backward(map, P, K, d_h2, z, norm2.scale.get(), b.get(), constant.get());
    const VendorGradients found = vendor_conv3x3_backward(view_of_map(h1, K), weight2, view_of_map(d_h2, K));
    torch::stable::copy_(d_weight2, found.d_weight);
    vendors_d_h1 = found.d_h;
    d_h1 = vendors_d_h1->const_data_ptr();
  } else {
    void* const written = memory(MapMemory::kDH1, K);
    void* const scratch = memory_.get(MapMemory::kConvolution, winograd_conv3x3_scratch(shape, map, true));
    winograd_conv3x3_bwd(shape, map, h1, {d_h2, z, norm2.scale.get(), b.get(), constant.get()},
                         view_of_weight(*acc_weight2), scratch, written, view_of_weight(d_weight2));
    d_h1 = written;
  }

  // ReLU, BatchNorm, conv1x1
  const double outside = given_.outside[n], now = outside / given_.later;
  Tensor d_x = *given_.d_x;
  Gradient<R> d_bias(rows_, p[kBeta1]), d_weight1(rows_, p[kWeight1]), d_gamma1(rows_, p[kGamma1]);
  Scratch<R> sum_dx(K * c);
  scale_weight(K, c, now, norm1.scale.get(), W, weight.get());
  linear_relu_backward(LinearReluBackward<R>{map, P, c, K, x_, h1, d_h1, weight.get(), n > 0 || given_.accumulate,
                                             write<R>(d_x), sum_dx.get(), d_bias.data()});
  if (from_batch) {
    Scratch<R> matrix(c * c), of_constant(c);
    linear_norm_backward(LinearNormBackward<R>{K, c, W, with_input.get(), moments_->mean.get(), norm1.means(),
                                               norm1.invstd.get(), norm1.scale.get(), sum_dx.get(), d_bias.data(),
                                               d_weight1.data(), d_gamma1.data(), matrix.get(), of_constant.get()});
    terms.add(c, matrix.get(), of_constant.get(), now);
  } else {
    gradient_without_statistics(weight1, norm1, sum_dx.get(), d_bias.data(), d_weight1.data(), d_gamma1.data());
  }

  if (outside != 1) multiply(write<R>(d_weight2), d_weight2.numel(), outside);
  if (d_weight2.get() != result2.get()) torch::stable::copy_(result2, d_weight2);
  for (Gradient<R>* gradient : {&d_weight1, &d_gamma1, &d_bias}) gradients.push_back(gradient->finish(outside));
  gradients.push_back(result2);
  for (Gradient<R>* gradient : {&d_gamma2, &sum_d, &d_weight3}) gradients.push_back(gradient->finish(outside));
}

template <class R>
void Group<R>::add_terms(const InputTerms<R>& terms) {
  const OnThisThread alone(rows_.P() * c_ * c_ < kFewOperations);
  const R pixels = static_cast<R>(rows_.P());
  const Tensor matrix = view_of(terms.matrix.get(), {c_, c_}, rows_.acc);
  const Tensor mean = view_of(moments_->mean.get(), {c_}, rows_.acc);
  const Tensor of_mean = call_torch<1>("aten::mv", "", matrix, mean)[0];
  Scratch<R> weight(c_ * c_), bias(c_);
  for (int64_t n = 0; n < c_; ++n) bias[n] = (read<R>(of_mean)[n] - terms.constant[n]) / pixels;
  for (int64_t n = 0; n < c_ * c_; ++n) weight[n] = terms.matrix[n] / -pixels;
  Tensor d_x = *given_.d_x;
  linear_add(rows_.map, rows_.P(), c_, x_, weight.get(), bias.get(), write<R>(d_x));
}

void check(const Arguments& given) {
  const Rows rows(given.x, "x");
  const size_t pairs = given.targets.size();
  const bool counts_fit = given.parameters.size() == kParameters * pairs && given.running.size() == kRunning * pairs &&
                          given.eps.size() == 2 * pairs && given.batch_statistics.size() == 2 * pairs &&
                          given.numbers.size() == pairs && given.coefficients.size() == pairs &&
                          given.outside.size() == pairs && given.d_weight2.size() == (given.d_x ? pairs : 0);
  STD_TORCH_CHECK(counts_fit,
                  "semckd: run_pairs takes seven parameters, four running statistics and so on of each pair");
  const Types sums(given.mse);
  STD_TORCH_CHECK(given.alpha.dim() == 2, "semckd: alpha must be [B, Q]");
  const int64_t Q = given.alpha.size(1);
  check_contiguous(given.mse, sums.acc, {rows.B, Q}, "mse");
  STD_TORCH_CHECK(given.alpha.size(0) == rows.B, "semckd: alpha must be [B, Q]");
  if (given.d_x) rows.check_acc(*given.d_x, {rows.B, rows.height, rows.width, rows.channels}, "d_x");
  for (size_t n = 0; n < pairs; ++n) {
    STD_TORCH_CHECK(given.numbers[n] >= 0 && given.numbers[n] < Q, "semckd: a pair's number must be below Q");
    const Tensor *p = &given.parameters[kParameters * n], &y = given.targets[n];
    STD_TORCH_CHECK(y.dim() == 4, "semckd: y must be rows [B, h, w, C]");
    const int64_t C = y.size(3), K = p[kGamma1].numel();
    rows.check_map(y, C, "y");
    const Dims vector{K}, square{K, K, 3, 3};
    check_shape(p[kWeight1], p[kWeight1].scalar_type(), {K, rows.channels, 1, 1}, "weight1");
    check_shape(p[kWeight2], p[kWeight2].scalar_type(), square, "weight2");
    check_shape(p[kWeight3], p[kWeight3].scalar_type(), {C, K, 1, 1}, "weight3");
    for (const Parameter which : {kGamma1, kBeta1, kGamma2, kBeta2})
      check_shape(p[which], p[which].scalar_type(), vector, "gamma, beta");
    for (int64_t which = 0; which < kRunning; ++which) {
      const Tensor& running = given.running[kRunning * n + which];
      check_shape(running, running.scalar_type(), vector, "running statistics");
    }
    if (given.d_x) {
      const ScalarType kept = Gradient<float>::kept_type(p[kWeight2].scalar_type());
      check_shape(given.d_weight2[n], kept, square, "d_weight2");
    }
  }
}

std::tuple<Tensors, Tensors> run_pairs(Tensor x, Tensors targets, Tensors parameters, Tensors running,
                                       std::vector<double> eps, std::vector<bool> batch_statistics,
                                       std::vector<int64_t> numbers, std::vector<double> coefficients,
                                       std::vector<double> outside, double later, Tensor alpha, Tensor mse,
                                       std::optional<Tensor> d_x, bool accumulate, Tensors d_weight2, bool vendor) {
  const Arguments given{std::move(x),          std::move(targets),
                        std::move(parameters), std::move(running),
                        std::move(eps),        std::move(batch_statistics),
                        std::move(numbers),    std::move(coefficients),
                        std::move(outside),    later,
                        std::move(alpha),      std::move(mse),
                        std::move(d_x),        accumulate,
                        std::move(d_weight2),  vendor};
  check(given);
  Tensors statistics, gradients;
  Types(given.x).dispatch([&](auto zero) {
    Group<decltype(zero)> group(given);
    group.run();
    statistics = std::move(group.statistics);
    gradients = std::move(group.gradients);
  });
  return {std::move(statistics), std::move(gradients)};
}

}  // namespace
}  // namespace semckd

STABLE_TORCH_LIBRARY_FRAGMENT(semckd_cpu, m) {
  // parameters, running statistics, eps and so on pair by pair; d_x None: the errors alone are wanted
  m.def(
      "run_pairs(Tensor x, Tensor[] targets, Tensor[] parameters, Tensor[] running, float[] eps, "
      "bool[] batch_statistics, int[] numbers, float[] coefficients, float[] outside, float later, Tensor alpha, "
      "Tensor(a!) mse, Tensor(b!)? d_x, bool accumulate, Tensor(c!)[] d_weight2, bool vendor) -> "
      "(Tensor[] statistics, Tensor[] gradients)");
}

STABLE_TORCH_LIBRARY_IMPL(semckd_cpu, CPU, m) { m.impl("run_pairs", TORCH_BOX(&semckd::run_pairs)); }
