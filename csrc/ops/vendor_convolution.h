// The 3x3 convolution of rows by torch's own library (oneDNN on most machines), for the operators of the CPU.
#pragma once

#include "ops/tensor.h"

namespace semckd {

// Convolution with stride 1 and zero padding 1: rows [B, h, w, K] of h's type, from h [B, h, w, K] and a weight
// [K, K, 3, 3] (out, in) of any type and strides.
Tensor vendor_conv3x3(const Tensor& h, const Tensor& weight);

// Its backward, from d_z [B, h, w, K]: d_h, rows of h's type, and d_weight in the type that it is computed in.
struct VendorGradients {
  Tensor d_h, d_weight;
};
VendorGradients vendor_conv3x3_backward(const Tensor& h, const Tensor& weight, const Tensor& d_z);

}  // namespace semckd
