// Devices: an H100's properties, and errors.
#include "devices.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "recorder.h"
#include "streams.h"

// the header names a versioned symbol; torch asks for the plain one
#undef cudaGetDeviceProperties

namespace stand_in {
namespace {

constexpr int kVersion = 13000;
constexpr size_t kMemory = size_t{80} << 30;
constexpr int kMultiprocessors = 132;
constexpr int kL2Bytes = 50 << 20;
constexpr int kSharedOfMultiprocessor = 228 << 10;
constexpr int kSharedOptIn = 227 << 10;
constexpr int kShared = 48 << 10;
constexpr int kRegisters = 65536;
constexpr int kThreadsOfBlock = 1024;
constexpr int kThreadsOfMultiprocessor = 2048;
constexpr int kBlocksOfMultiprocessor = 32;

thread_local int device = 0;
thread_local cudaError_t last_error = cudaSuccess;

int attribute(cudaDeviceAttr which) {
  switch (which) {
    case cudaDevAttrMaxThreadsPerBlock:
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
      return kThreadsOfBlock;
    case cudaDevAttrMaxBlockDimZ:
      return 64;
    case cudaDevAttrMaxGridDimX:
      return 2147483647;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
      return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return kShared;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return kSharedOptIn;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return kSharedOfMultiprocessor;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return 1024;
    case cudaDevAttrWarpSize:
      return 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
      return kRegisters;
    case cudaDevAttrClockRate:
      return 1980000;
    case cudaDevAttrMemoryClockRate:
      return 2619000;
    case cudaDevAttrGlobalMemoryBusWidth:
      return 5120;
    case cudaDevAttrMultiProcessorCount:
      return kMultiprocessors;
    case cudaDevAttrL2CacheSize:
      return kL2Bytes;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return kThreadsOfMultiprocessor;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return kBlocksOfMultiprocessor;
    case cudaDevAttrComputeCapabilityMajor:
      return 9;
    case cudaDevAttrComputeCapabilityMinor:
      return 0;
    default:
      // abilities, which it has
      return 1;
  }
}

}  // namespace

int device_count() {
  static const int count = [] {
    const char* text = std::getenv("STAND_IN_CUDA_DEVICES");
    return text ? std::atoi(text) : 1;
  }();
  return count;
}

int current_device() { return device; }

cudaError_t fail(cudaError_t error) { return last_error = error; }

}  // namespace stand_in

using namespace stand_in;

STAND_IN_API cudaError_t cudaGetDeviceCount(int* count) {
  *count = device_count();
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGetDevice(int* which) {
  *which = device;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaSetDevice(int which) {
  if (which < 0 || which >= device_count()) return fail(cudaErrorInvalidDevice);
  device = which;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaDriverGetVersion(int* version) {
  *version = kVersion;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }

STAND_IN_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = attribute(which);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  std::memset(p, 0, sizeof *p);
  std::strcpy(p->name, "NVIDIA H100 (stand-in: executes nothing)");
  p->major = 9;
  p->multiProcessorCount = kMultiprocessors;
  p->totalGlobalMem = kMemory;
  p->totalConstMem = 65536;
  p->l2CacheSize = kL2Bytes;
  p->warpSize = 32;
  p->sharedMemPerBlock = kShared;
  p->sharedMemPerBlockOptin = kSharedOptIn;
  p->sharedMemPerMultiprocessor = kSharedOfMultiprocessor;
  p->reservedSharedMemPerBlock = 1024;
  p->regsPerBlock = p->regsPerMultiprocessor = kRegisters;
  p->maxThreadsPerBlock = kThreadsOfBlock;
  p->maxThreadsPerMultiProcessor = kThreadsOfMultiprocessor;
  p->maxBlocksPerMultiProcessor = kBlocksOfMultiprocessor;
  for (int i = 0; i < 3; ++i) {
    p->maxThreadsDim[i] = attribute(static_cast<cudaDeviceAttr>(cudaDevAttrMaxBlockDimX + i));
    p->maxGridSize[i] = attribute(static_cast<cudaDeviceAttr>(cudaDevAttrMaxGridDimX + i));
  }
  p->memPitch = 2147483647;
  p->textureAlignment = 512;
  p->asyncEngineCount = 3;
  p->unifiedAddressing = p->concurrentKernels = p->cooperativeLaunch = p->managedMemory = p->canMapHostMemory = 1;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaDeviceGetPCIBusId(char* text, int length, int which) {
  std::snprintf(text, length, "0000:00:%02x.0", which);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = kMemory - (size_t{1} << 30);
  *total = kMemory;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaDeviceSynchronize() {
  if (refuses_in_capture("cudaDeviceSynchronize")) return fail(cudaErrorStreamCaptureUnsupported);
  record(kind::kSync, "device");
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaProfilerStart() { return cudaSuccess; }
STAND_IN_API cudaError_t cudaProfilerStop() { return cudaSuccess; }

STAND_IN_API cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

STAND_IN_API cudaError_t cudaPeekAtLastError() { return last_error; }

STAND_IN_API const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotSupported:
      return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnjoined:
      return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation:
      return "cudaErrorStreamCaptureIsolation";
    default: {
      thread_local char text[32];
      std::snprintf(text, sizeof text, "cudaError %d", static_cast<int>(error));
      return text;
    }
  }
}

STAND_IN_API const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
