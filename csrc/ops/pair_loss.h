// From torch tensors to a PairList and back, once for every device. `Device` supplies the two kernels:
//   forward(list, weighting, pair_mse, loss)
//   backward(list, weighting, d_loss, pair_mse, d_pair_mse, d_weight)
// with Tensors for everything that is not a map.
#pragma once

#include <tuple>
#include <vector>

#include "core/pair_list.h"
#include "ops/tensor.h"

namespace semckd {

// x itself where its samples lie in `wanted`'s order, else a copy that does.
inline Tensor in_order(const Tensor& x, const Layout& wanted) {
  if (Layout::of(x).has_sample_order_of(wanted)) return x;
  Tensor copy = empty_strided(wanted.dims, wanted.sizes, wanted.strides, dtype_code(x), x);
  torch::stable::copy_(copy, x);
  return copy;
}

enum class Gradient { kNone, kFresh, kInPlace };

// The pairs of one call, with the tensors that own their memory.
struct Pairs {
  std::vector<Pair> pair;
  Tensors kept, d_s, d_t;
  int64_t B = 0;

  Pairs(const Tensors& s, const Tensors& t, Gradient want_s = Gradient::kNone, Gradient want_t = Gradient::kNone) {
    STD_TORCH_CHECK(!s.empty() && s.size() == t.size(), "semckd: as many student as teacher maps are needed");
    B = s[0].size(0);
    pair.reserve(s.size());
    kept.reserve(2 * s.size());
    if (want_s == Gradient::kFresh) d_s.reserve(s.size());
    if (want_t == Gradient::kFresh) d_t.reserve(s.size());
    for (size_t q = 0; q < s.size(); ++q) add(s[q], t[q], want_s, want_t);
  }

  PairList list() const { return {pair.data(), static_cast<int32_t>(pair.size()), B}; }

 private:
  void add(const Tensor& s, const Tensor& t, Gradient want_s, Gradient want_t) {
    const Layout layout = Layout::of(s);
    STD_TORCH_CHECK(layout.dims >= 2 && layout.same_sizes(Layout::of(t)) && layout.sizes[0] == B,
                    "semckd: both maps of a pair must have one shape, [B, ...]");
    const bool is_double = dtype_of(s) == DType::kFloat64;
    STD_TORCH_CHECK(is_double == (dtype_of(t) == DType::kFloat64) &&
                        (pair.empty() || is_double == (pair[0].s_dtype == DType::kFloat64)),
                    "semckd: either all maps are float64 or none is");
    const PackedStrides strides(layout);
    const Layout packed{layout.dims, layout.sizes, strides.data()};
    const Tensor s_kept = in_order(s, packed), t_kept = in_order(t, packed);
    kept.push_back(s_kept);
    kept.push_back(t_kept);
    Pair p{};
    p.N = packed.sample_numel();
    STD_TORCH_CHECK(p.N > 0 || B == 0, "semckd: a pair has no elements");
    p.s = s_kept.const_data_ptr();
    p.t = t_kept.const_data_ptr();
    p.s_dtype = dtype_of(s);
    p.t_dtype = dtype_of(t);
    p.s_stride = Layout::of(s_kept).strides[0];
    p.t_stride = Layout::of(t_kept).strides[0];
    if (want_s == Gradient::kFresh) {
      d_s.push_back(empty_strided(packed.dims, packed.sizes, packed.strides, dtype_code(s), s));
      p.d_s = d_s.back().mutable_data_ptr();
      p.d_s_stride = p.N;
    } else if (want_s == Gradient::kInPlace) {
      STD_TORCH_CHECK(s_kept.get() == s.get(), "semckd: an in-place gradient needs dense student maps");
      p.d_s = s_kept.mutable_data_ptr();
      p.d_s_stride = p.s_stride;
    }
    if (want_t == Gradient::kFresh) {
      d_t.push_back(empty_strided(packed.dims, packed.sizes, packed.strides, dtype_code(t), t));
      p.d_t = d_t.back().mutable_data_ptr();
      p.d_t_stride = p.N;
    }
    pair.push_back(p);
  }
};

// Which stands for all: either all of them are fp64 or none is.
inline DType map_type(const PairList& list) { return list.Q > 0 ? list.pair[0].s_dtype : DType::kFloat32; }

// The weight [B, S, T] in the accumulation type and row-major order.
struct Weights {
  Tensor tensor;
  Weighting weighting;

  Weights(const Tensor& weight, bool softmax, const PairList& list) : tensor(row_major(weight)) {
    STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) == list.B && weight.size(1) * weight.size(2) == list.Q,
                    "semckd: weight must be [B, S, T] with S * T pairs");
    STD_TORCH_CHECK(weight.scalar_type() == acc_type(map_type(list)),
                    "semckd: weight must be float32, or float64 with float64 maps");
    weighting = {tensor.const_data_ptr(), softmax, static_cast<int32_t>(weight.size(1)),
                 static_cast<int32_t>(weight.size(2))};
  }
};

inline Tensor new_result(const Tensor& like, const PairList& list, const Dims& sizes) {
  return new_acc_tensor(map_type(list), sizes, like);
}

template <class Device>
std::tuple<Tensor, Tensor> pair_loss(Tensors s, Tensors t, Tensor weight, bool softmax) {
  const Pairs pairs(s, t);
  const PairList list = pairs.list();
  const Weights weights(weight, softmax, list);
  Tensor loss = new_result(weight, list, {});
  Tensor pair_mse = new_result(weight, list, {list.B, weights.weighting.S, weights.weighting.T});
  Device::forward(list, weights.weighting, pair_mse, &loss);
  return {loss, pair_mse};
}

template <class Device>
Tensor pair_mse(Tensors s, Tensors t) {
  const Pairs pairs(s, t);
  const PairList list = pairs.list();
  Tensor pair_mse = new_result(s[0], list, {list.B, list.Q});
  Device::forward(list, Weighting{}, pair_mse, nullptr);
  return pair_mse;
}

template <class Device>
Tensor run_pair_loss_backward(const Pairs& pairs, const Tensor& d_loss, const Tensor& weight, const Tensor& pair_mse,
                              bool softmax) {
  const PairList list = pairs.list();
  const Weights weights(weight, softmax, list);
  Tensor d_weight = new_result(weight, list, {list.B, weights.weighting.S, weights.weighting.T});
  const Tensor mse = row_major(pair_mse);
  Device::backward(list, weights.weighting, &d_loss, &mse, nullptr, &d_weight);
  return d_weight;
}

inline Gradient fresh_if(bool needed) { return needed ? Gradient::kFresh : Gradient::kNone; }

template <class Device>
std::tuple<Tensors, Tensors, Tensor> pair_loss_backward(Tensor d_loss, Tensors s, Tensors t, Tensor weight,
                                                        Tensor pair_mse, bool softmax, bool need_s, bool need_t) {
  const Pairs pairs(s, t, fresh_if(need_s), fresh_if(need_t));
  Tensor d_weight = run_pair_loss_backward<Device>(pairs, d_loss, weight, pair_mse, softmax);
  return {pairs.d_s, pairs.d_t, d_weight};
}

template <class Device>
std::tuple<Tensors, Tensor> pair_loss_backward_(Tensor d_loss, Tensors s, Tensors t, Tensor weight, Tensor pair_mse,
                                                bool softmax, bool need_t) {
  const Pairs pairs(s, t, Gradient::kInPlace, fresh_if(need_t));
  Tensor d_weight = run_pair_loss_backward<Device>(pairs, d_loss, weight, pair_mse, softmax);
  return {pairs.d_t, d_weight};
}

template <class Device>
std::tuple<Tensors, Tensors> pair_mse_backward(Tensor d_pair_mse, Tensors s, Tensors t, bool need_s, bool need_t) {
  const Pairs pairs(s, t, fresh_if(need_s), fresh_if(need_t));
  const PairList list = pairs.list();
  STD_TORCH_CHECK(d_pair_mse.scalar_type() == acc_type(map_type(list)) && d_pair_mse.numel() == list.B * list.Q,
                  "semckd: the gradient of pair_mse must be [B, Q] in its type");
  const Tensor upstream = row_major(d_pair_mse);
  Device::backward(list, Weighting{}, nullptr, nullptr, &upstream, nullptr);
  return {pairs.d_s, pairs.d_t};
}

// Registers Device's implementations of the schemas in ops/pair_loss.cpp; `library` is what STABLE_TORCH_LIBRARY_IMPL
// names.
template <class Device, class Library>
void implement(Library& library) {
  library.impl("pair_loss", TORCH_BOX(&pair_loss<Device>));
  library.impl("pair_loss_backward", TORCH_BOX(&pair_loss_backward<Device>));
  library.impl("pair_loss_backward_", TORCH_BOX(&pair_loss_backward_<Device>));
  library.impl("pair_mse", TORCH_BOX(&pair_mse<Device>));
  library.impl("pair_mse_backward", TORCH_BOX(&pair_mse_backward<Device>));
}

}  // namespace semckd
