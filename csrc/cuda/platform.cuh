// The one place where device code meets its toolchain: nvcc, or the emulation that python_tests run kernels in.
#pragma once

#ifdef SEMCKD_CUDA_EMULATION
#include "cuda_emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>

namespace semckd {

// what every driver that runs our binaries accepts; larger parameters need CUDA 12.1 and compute capability 7.0
constexpr size_t kMaxParameterBytes = 4096;

// kernel<<<grid, block, 0, stream>>>(args...) as a function: arguments are type-checked, launch errors returned.
template <class... P, class... A>
[[nodiscard]] cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream, A&&... args) {
  static_assert((sizeof(P) + ... + 0) <= kMaxParameterBytes);
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

}  // namespace semckd
