// The CUDA driver, as far as Triton and torch's lookup of driver functions ask for it.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <string>

#include "devices.h"
#include "memory.h"
#include "recorder.h"
#include "streams.h"

namespace stand_in {
namespace {

// any address that is not null
const CUcontext kContext = reinterpret_cast<CUcontext>(1);

std::map<uintptr_t, std::string>& function_names() {
  static auto* names = new std::map<uintptr_t, std::string>;
  return *names;
}

CUresult launch(CUfunction function, CUstream s) {
  observe();
  const Lock lock(mutex());
  Stream& stream = stream_of(s);
  if (is_on_other_device(stream, "launch")) return CUDA_ERROR_INVALID_HANDLE;
  record(kind::kTriton, function_names()[reinterpret_cast<uintptr_t>(function)], 0, &stream);
  return CUDA_SUCCESS;
}

CUresult unsupported() {
  record(kind::kUnsupported, "a driver function");
  return CUDA_ERROR_NOT_SUPPORTED;
}

}  // namespace
}  // namespace stand_in

using namespace stand_in;

STAND_IN_API CUresult cuInit(unsigned) { return CUDA_SUCCESS; }

STAND_IN_API CUresult cuDriverGetVersion(int* version) { return static_cast<CUresult>(cudaDriverGetVersion(version)); }

STAND_IN_API CUresult cuDeviceGet(CUdevice* device, int which) {
  *device = which;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDeviceGetCount(int* count) {
  *count = device_count();
  return CUDA_SUCCESS;
}

// the runtime's attributes have the driver's numbers
STAND_IN_API CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  return static_cast<CUresult>(cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(which), device));
}

STAND_IN_API CUresult cuCtxGetCurrent(CUcontext* context) {
  *context = kContext;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }

STAND_IN_API CUresult cuCtxGetDevice(CUdevice* device) {
  *device = current_device();
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }

STAND_IN_API CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  if (flags) *flags = 0;
  if (active) *active = 1;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = cudaGetErrorName(static_cast<cudaError_t>(error));
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuGetErrorName(CUresult error, const char** text) { return cuGetErrorString(error, text); }

STAND_IN_API CUresult cuModuleLoadData(CUmodule* module, const void*) {
  const Lock lock(mutex());
  static uintptr_t next = 0;
  *module = reinterpret_cast<CUmodule>(++next);
  record(kind::kModule, "");
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuModuleLoad(CUmodule* module, const char*) { return cuModuleLoadData(module, nullptr); }

STAND_IN_API CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned, CUjit_option*, void**) {
  return cuModuleLoadData(module, image);
}

STAND_IN_API CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }

STAND_IN_API CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  const Lock lock(mutex());
  static uintptr_t next = 0;
  function_names()[++next] = name;
  *function = reinterpret_cast<CUfunction>(next);
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuFuncGetAttribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : 0;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
STAND_IN_API CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

STAND_IN_API CUresult cuLaunchKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                     unsigned, CUstream stream, void**, void**) {
  return launch(function, stream);
}

STAND_IN_API CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void**, void**) {
  return launch(function, config->hStream);
}

STAND_IN_API CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned,
                                                unsigned, unsigned, CUstream stream, void**) {
  return launch(function, stream);
}

STAND_IN_API CUresult cuOccupancyMaxActiveClusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

STAND_IN_API CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction, int, size_t) {
  *blocks = 2;
  return CUDA_SUCCESS;
}

// Triton asks whether the device can reach an address; a CPU tensor's it cannot.
STAND_IN_API CUresult cuPointerGetAttribute(void* value, CUpointer_attribute which, CUdeviceptr address) {
  if (which != CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    *static_cast<int*>(value) = 0;
    return CUDA_SUCCESS;
  }
  const void* pointer = reinterpret_cast<const void*>(address);
  if (!is_device_memory(pointer) && !is_pinned_memory(pointer)) return CUDA_ERROR_INVALID_VALUE;
  *static_cast<CUdeviceptr*>(value) = address;
  return CUDA_SUCCESS;
}

// torch looks the driver's functions up by name. Those that are not here can be looked up, and fail when called.
STAND_IN_API cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                          unsigned long long, cudaDriverEntryPointQueryResult* result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) *function = reinterpret_cast<void*>(&unsupported);
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long flags,
                                                 cudaDriverEntryPointQueryResult* result) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, result);
}
