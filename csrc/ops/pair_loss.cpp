// The operators of the pair loss: their schemas, and their CPU implementations. No maths here.
#include "cpu/pair_loss/pair_loss.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/pair_loss.h"

namespace semckd {

namespace {

struct Cpu {
  static void forward(const PairList& list, const Weighting& weighting, Tensor& pair_mse, Tensor* loss) {
    pair_loss_fwd(list, weighting, pair_mse.mutable_data_ptr(), loss ? loss->mutable_data_ptr() : nullptr);
  }

  static void backward(const PairList& list, const Weighting& weighting, const Tensor* d_loss, const Tensor* pair_mse,
                       const Tensor* d_pair_mse, Tensor* d_weight) {
    const auto data = [](const Tensor* x) { return x ? x->const_data_ptr() : nullptr; };
    pair_loss_bwd(list, weighting, data(d_loss), data(pair_mse), data(d_pair_mse),
                  d_weight ? d_weight->mutable_data_ptr() : nullptr);
  }
};

}  // namespace
}  // namespace semckd

// s, t: Q = S * T maps [B, ...], row-major over (student layer, teacher layer); weight, pair_mse: [B, S, T].
STABLE_TORCH_LIBRARY(semckd, m) {
  m.def("pair_loss(Tensor[] s, Tensor[] t, Tensor weight, bool softmax) -> (Tensor loss, Tensor pair_mse)");
  m.def(
      "pair_loss_backward(Tensor d_loss, Tensor[] s, Tensor[] t, Tensor weight, Tensor pair_mse, bool softmax, "
      "bool need_s, bool need_t) -> (Tensor[] d_s, Tensor[] d_t, Tensor d_weight)");
  m.def(
      "pair_loss_backward_(Tensor d_loss, Tensor(a!)[] s, Tensor[] t, Tensor weight, Tensor pair_mse, bool softmax, "
      "bool need_t) -> (Tensor[] d_t, Tensor d_weight)");
  m.def("pair_mse(Tensor[] s, Tensor[] t) -> Tensor pair_mse");
  m.def(
      "pair_mse_backward(Tensor d_pair_mse, Tensor[] s, Tensor[] t, bool need_s, bool need_t) "
      "-> (Tensor[] d_s, Tensor[] d_t)");
}

STABLE_TORCH_LIBRARY_IMPL(semckd, CPU, m) { semckd::implement<semckd::Cpu>(m); }
