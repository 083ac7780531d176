// Calls of torch's own operators, through the dispatcher: for what the stable ABI has no function of its own.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "ops/tensor.h"

namespace semckd {

// The results of an operator that returns as many tensors; those that it was not asked for are undefined.
template <size_t kResults, class... Arguments>
std::array<Tensor, kResults> call_torch(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, std::max(kResults, sizeof...(Arguments))> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, kResults> results;
  for (size_t n = 0; n < kResults; ++n) results[n] = torch::stable::detail::to<Tensor>(stack[n]);
  return results;
}

inline Tensor permuted(const Tensor& x, const Dims& order) { return call_torch<1>("aten::permute", "", x, order)[0]; }

// Uninitialised, of x's sizes, and of its strides where they are dense.
inline Tensor empty_like(const Tensor& x, ScalarType type) {
  const std::optional<torch::headeronly::Layout> layout;
  const std::optional<torch::stable::Device> device;
  const std::optional<bool> pinned;
  const std::optional<torch::headeronly::MemoryFormat> format;
  return call_torch<1>("aten::empty_like", "", x, std::optional<ScalarType>(type), layout, device, pinned, format)[0];
}

// A tensor that owns nothing, over memory that outlives it; row-major, on the CPU.
inline Tensor view_of(const void* data, const Dims& sizes, ScalarType type) {
  Dims strides(sizes.size());
  int64_t run = 1;
  for (size_t d = sizes.size(); d-- > 0; run *= sizes[d]) strides[d] = run;
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU, -1);
  return torch::stable::from_blob(const_cast<void*>(data), sizes, strides, cpu, type);
}

}  // namespace semckd
