// The CUDA runtime's launches: recorded by the kernel's name, never executed.
#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "devices.h"
#include "recorder.h"
#include "streams.h"

namespace stand_in {
namespace {

constexpr int kThreads = 2048;

// by the address of the host's stub, which is how the compiler registers kernels
std::unordered_map<const void*, std::string>& names() {
  static auto* all = new std::unordered_map<const void*, std::string>;
  return *all;
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

thread_local std::vector<Configuration> configurations;

cudaError_t launch(const void* function, cudaStream_t s) {
  observe();
  const Lock lock(mutex());
  Stream& stream = stream_of(s);
  if (is_on_other_device(stream, "launch")) return fail(cudaErrorInvalidResourceHandle);
  const auto found = names().find(function);
  record(kind::kKernel, found == names().end() ? "unknown" : found->second, 0, &stream);
  return cudaSuccess;
}

}  // namespace
}  // namespace stand_in

using namespace stand_in;

STAND_IN_API void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
STAND_IN_API void __cudaRegisterFatBinaryEnd(void**) {}
STAND_IN_API void __cudaUnregisterFatBinary(void**) {}
STAND_IN_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

STAND_IN_API void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*,
                                         dim3*, int*) {
  const Lock lock(mutex());
  names()[stub] = name;
}

STAND_IN_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}

STAND_IN_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Configuration top = configurations.back();
  configurations.pop_back();
  *grid = top.grid;
  *block = top.block;
  *shared = top.shared;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t s) {
  return launch(function, s);
}
STAND_IN_API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t s) {
  return launch(kernel, s);
}
STAND_IN_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void**) {
  return launch(function, config->stream);
}
STAND_IN_API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t s) {
  return launch(function, s);
}

STAND_IN_API cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGetFuncBySymbol(cudaFunction_t* kernel, const void* function) {
  *kernel = static_cast<cudaFunction_t>(const_cast<void*>(function));
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t function, void* data) {
  record(kind::kHost, "", 0, &stream_of(s));
  function(data);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t function, void* data, unsigned) {
  function(s, cudaSuccess, data);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  std::memset(attributes, 0, sizeof *attributes);
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->numRegs = 32;
  attributes->maxThreadsPerBlock = 1024;
  attributes->maxDynamicSharedSizeBytes = 48 << 10;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

STAND_IN_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int threads,
                                                                                size_t, unsigned) {
  *blocks = threads ? kThreads / threads : 1;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads,
                                                                       size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

STAND_IN_API cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static char memory[1 << 16];
  *address = memory;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
  return cudaSuccess;
}
STAND_IN_API cudaError_t cudaMemcpyToSymbolAsync(const void*, const void*, size_t, size_t, cudaMemcpyKind,
                                                 cudaStream_t) {
  return cudaSuccess;
}
