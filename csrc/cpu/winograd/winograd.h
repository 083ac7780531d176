// 3x3 convolution, stride 1, padding 1, as Winograd's F(4x4, 3x3) or F(2x2, 3x3). `scratch` has the bytes that the
// function of that name asks for, for the thread count of the moment, and is 64-byte aligned.
#pragma once

#include <cstdint>

#include "cpu/winograd/winograd_kernels.h"

namespace semckd {

// weight [K, K, 3, 3] as (out, in, y, x)
struct ConvolutionWeight {
  void* data;             // accumulation type
  int64_t out, in, y, x;  // strides in elements
};

int64_t winograd_conv3x3_scratch(const MapShape& shape, DType dtype, bool backward);

// out = conv3x3(h); mean and biased variance [K] of the accumulation type of out's pixels before they are rounded to
// the map's type, or null.
void winograd_conv3x3(const MapShape& shape, DType dtype, const void* h, const ConvolutionWeight& weight, void* scratch,
                      void* out, void* mean, void* variance);

// d_h1 and d_weight [K, K, 3, 3] of the accumulation type from d_z, a combination of the maps d_h2 and z.
void winograd_conv3x3_bwd(const MapShape& shape, DType dtype, const void* h, const MapSource& d_z,
                          const ConvolutionWeight& weight, void* scratch, void* d_h1,
                          const ConvolutionWeight& d_weight);

}  // namespace semckd
