// 3x3 convolution, stride 1, padding 1, with a weight that never changes, as Winograd's F(4x4, 3x3).
#pragma once

#include <cstdint>

#include "cpu/winograd/winograd_kernels.h"

namespace semckd {

// B maps of h x w pixels, `in` channels to `out` channels.
struct FrozenShape {
  int64_t B, h, w, in, out;
};

// Elements, of the accumulation type, of the transformed weight; they lie in an order that this processor's
// instruction set asks for.
int64_t frozen_conv3x3_elements(DType dtype, int64_t in, int64_t out);

// The transformed weight from one whose rows are the input channels.
void frozen_conv3x3_transform(DType dtype, const KernelView& weight, void* U);

// out = relu(conv3x3(x) + bias + residual); x rows [B, h, w, in], residual and out rows [B, h, w, out].
void frozen_conv3x3(const FrozenShape& shape, DType dtype, const void* x, const void* U, const Epilogue& epilogue,
                    void* out);

}  // namespace semckd
