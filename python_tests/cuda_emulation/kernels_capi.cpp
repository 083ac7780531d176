// The product's launchers for ctypes, with the default stream; results are cudaError_t.
#include "cuda/pair_loss.h"

using namespace semckd;

extern "C" {

size_t kernels_pair_bytes() { return sizeof(Pair); }

size_t kernels_pair_loss_fwd_workspace(const PairList* list) { return pair_loss_fwd_workspace(*list); }

int kernels_pair_loss_fwd(const PairList* list, const Weighting* weighting, void* workspace, void* pair_mse,
                          void* loss) {
  return launch_pair_loss_fwd(*list, *weighting, workspace, pair_mse, loss, nullptr);
}

int kernels_pair_loss_bwd(const PairList* list, const Weighting* weighting, const void* d_loss, const void* pair_mse,
                          const void* d_pair_mse, void* d_weight) {
  return launch_pair_loss_bwd(*list, *weighting, d_loss, pair_mse, d_pair_mse, d_weight, nullptr);
}

}  // extern "C"
