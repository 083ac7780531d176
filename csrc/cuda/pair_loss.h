// Host launchers of the pair-loss kernels. No torch: pointers and sizes in, error code out.
// All pointers are device pointers; `R` below is float, or double where the maps are double.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "core/pair_list.h"

namespace semckd {

// Bytes of device scratch that launch_pair_loss_fwd needs; its content on entry does not matter.
size_t pair_loss_fwd_workspace(const PairList& list);

// pair_mse [B, Q] and, where `weighting.weight` is set, the scalar loss.
cudaError_t launch_pair_loss_fwd(const PairList& list, const Weighting& weighting, void* workspace,
                                 void* pair_mse,  // [B, Q] R, out
                                 void* loss,      // scalar R, out; null without a weight
                                 cudaStream_t stream);

// Gradients of the maps into Pair::d_s and Pair::d_t, and of the weight. The upstream gradient is either that of
// the loss (with pair_mse from the forward pass) or that of the pair errors; exactly one of the two is given.
cudaError_t launch_pair_loss_bwd(const PairList& list, const Weighting& weighting,
                                 const void* d_loss,      // scalar R, or null
                                 const void* pair_mse,    // [B, Q] R, or null with d_pair_mse
                                 const void* d_pair_mse,  // [B, Q] R, or null
                                 void* d_weight,          // [B, S, T] R, out; null without a weight
                                 cudaStream_t stream);

}  // namespace semckd
