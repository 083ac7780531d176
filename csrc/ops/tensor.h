// From torch tensors to pointers and sizes: types, layouts, checks and new tensors, for the operators of every device.
// Only the LibTorch stable ABI is used.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace semckd {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Dims = std::vector<int64_t>;

// A new tensor on x's device. Calls the C interface, not the dispatcher: this runs for every gradient.
inline Tensor empty_strided(size_t dims, const int64_t* sizes, const int64_t* strides, int32_t dtype_code,
                            const Tensor& x) {
  int32_t device_type, device_index;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &device_index));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(dims), sizes, strides, dtype_code, device_type,
                                                  device_index, &handle));
  return Tensor(handle);
}

inline int32_t dtype_code(const Tensor& x) {
  int32_t code;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &code));
  return code;
}

inline Tensor row_major(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, "semckd: maps must be float32, float16, bfloat16 or float64");
      return DType::kFloat32;
  }
}

// The order in which a tensor's elements lie in memory. Borrows the tensor's sizes and strides: this runs for every
// map of every call, where allocations would be felt.
struct Layout {
  size_t dims;
  const int64_t *sizes, *strides;

  static Layout of(const Tensor& x) { return {static_cast<size_t>(x.dim()), x.sizes().data(), x.strides().data()}; }

  bool same_sizes(const Layout& other) const {
    return dims == other.dims && std::equal(sizes, sizes + dims, other.sizes);
  }

  int64_t sample_numel() const {
    int64_t numel = 1;
    for (size_t d = 1; d < dims; ++d) numel *= sizes[d];
    return numel;
  }

  // Whether a sample fills one run of memory, in whatever order of its dimensions.
  bool has_dense_samples() const {
    int64_t run = 1, left = 0;
    for (size_t d = 1; d < dims; ++d) left += sizes[d] != 1;
    while (left > 0) {
      const int64_t before = left;
      for (size_t d = dims; d-- > 1;) {
        if (sizes[d] == 1 || strides[d] != run) continue;
        run *= sizes[d];
        --left;
      }
      if (left == before) return false;
    }
    return true;
  }

  bool has_sample_order_of(const Layout& other) const {
    for (size_t d = 1; d < dims; ++d)
      if (sizes[d] != 1 && strides[d] != other.strides[d]) return false;
    return true;
  }
};

// Strides that put samples in x's order one behind the other; in row-major order where x's samples are not dense.
class PackedStrides {
 public:
  explicit PackedStrides(const Layout& x) : strides_(x.strides) {
    const bool dense = x.has_dense_samples();
    if (dense && x.strides[0] == x.sample_numel()) return;
    own_.assign(x.strides, x.strides + x.dims);
    int64_t run = 1;
    for (size_t d = x.dims; !dense && d-- > 1; run *= x.sizes[d]) own_[d] = run;
    own_[0] = x.sample_numel();
    strides_ = own_.data();
  }
  const int64_t* data() const { return strides_; }

 private:
  Dims own_;
  const int64_t* strides_;
};

inline ScalarType acc_type(DType map) { return accumulates_in_double(map) ? ScalarType::Double : ScalarType::Float; }

// An uninitialised row-major tensor of the accumulation type of such maps, on x's device.
inline Tensor new_acc_tensor(DType map, const Dims& sizes, const Tensor& x) {
  Dims strides(sizes.size());
  int64_t run = 1;
  for (size_t d = sizes.size(); d-- > 0; run *= sizes[d]) strides[d] = run;
  const int32_t code = accumulates_in_double(map) ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  return empty_strided(sizes.size(), sizes.data(), strides.data(), code, x);
}

// Whatever its strides.
inline void check_shape(const Tensor& x, ScalarType dtype, const Dims& sizes, const char* name) {
  const auto given = x.sizes();
  const bool fits =
      x.scalar_type() == dtype && given.size() == sizes.size() && std::equal(sizes.begin(), sizes.end(), given.data());
  if (fits) return;
  std::string expected;
  for (const int64_t size : sizes) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(fits, "semckd: ", name, " must be [", expected, "] and of the right type");
}

inline void check_contiguous(const Tensor& x, ScalarType dtype, const Dims& sizes, const char* name) {
  check_shape(x, dtype, sizes, name);
  STD_TORCH_CHECK(x.is_contiguous(), "semckd: ", name, " must be contiguous");
}

// The types that the first argument of a call fixes for all others.
struct Types {
  DType map;
  ScalarType type, acc;

  explicit Types(const Tensor& x) : map(dtype_of(x)), type(x.scalar_type()), acc(acc_type(map)) {}

  void check_acc(const Tensor& x, const Dims& sizes, const char* name) const { check_contiguous(x, acc, sizes, name); }
  Tensor new_acc(const Tensor& like, const Dims& sizes) const { return new_acc_tensor(map, sizes, like); }

  // body(R()) with R the accumulation type
  template <class Body>
  void dispatch(const Body& body) const {
    if (accumulates_in_double(map)) {
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
    check_contiguous(x, type, {B, height, width, of_channels}, name);
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

}  // namespace semckd
