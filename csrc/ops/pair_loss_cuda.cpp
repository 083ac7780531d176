// The operators' CUDA implementations: their own shared library, loaded only beside a CUDA build of torch.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "cuda/pair_loss.h"
#include "ops/pair_loss.h"

namespace semckd {
namespace {

// Makes a tensor's device current, and hands out its current stream.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void check(cudaError_t error) {
  STD_TORCH_CHECK(error == cudaSuccess, "semckd: a CUDA kernel launch failed: ", cudaGetErrorString(error));
}

struct Cuda {
  static void forward(const PairList& list, const Weighting& weighting, Tensor& pair_mse, Tensor* loss) {
    const OnDeviceOf device(pair_mse);
    const Dims bytes{static_cast<int64_t>(pair_loss_fwd_workspace(list))};
    Tensor workspace = torch::stable::new_empty(pair_mse, bytes, ScalarType::Byte);
    check(launch_pair_loss_fwd(list, weighting, workspace.mutable_data_ptr(), pair_mse.mutable_data_ptr(),
                               loss ? loss->mutable_data_ptr() : nullptr, device.stream()));
  }

  static void backward(const PairList& list, const Weighting& weighting, const Tensor* d_loss, const Tensor* pair_mse,
                       const Tensor* d_pair_mse, Tensor* d_weight) {
    const OnDeviceOf device(d_loss ? *d_loss : *d_pair_mse);
    const auto data = [](const Tensor* x) { return x ? x->const_data_ptr() : nullptr; };
    check(launch_pair_loss_bwd(list, weighting, data(d_loss), data(pair_mse), data(d_pair_mse),
                               d_weight ? d_weight->mutable_data_ptr() : nullptr, device.stream()));
  }
};

}  // namespace
}  // namespace semckd

STABLE_TORCH_LIBRARY_IMPL(semckd, CUDA, m) { semckd::implement<semckd::Cuda>(m); }
