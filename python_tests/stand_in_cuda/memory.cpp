// Allocations, copies and fills. Device memory is a range of addresses without content: since nothing is computed, what
// is written there is dropped, and zeros come back, so that no test can depend on what another one left behind.
#include "memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "devices.h"
#include "recorder.h"
#include "streams.h"

namespace stand_in {
namespace {

// a guard page behind each allocation, so that neighbours are not one range
constexpr size_t kPage = 4096;

using Ranges = std::map<uintptr_t, size_t>;

Ranges& device_ranges() {
  static auto* ranges = new Ranges;
  return *ranges;
}

Ranges& pinned_ranges() {
  static auto* ranges = new Ranges;
  return *ranges;
}

bool contains(const Ranges& ranges, const void* pointer) {
  const Lock lock(mutex());
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  auto after = ranges.upper_bound(address);
  if (after == ranges.begin()) return false;
  --after;
  return address < after->first + after->second;
}

std::string direction(const void* to, const void* from) {
  const bool to_device = is_device_memory(to), from_device = is_device_memory(from);
  if (to_device && from_device) return "D2D";
  if (to_device) return is_pinned_memory(from) ? "H2D pinned" : "H2D pageable";
  if (from_device) return is_pinned_memory(to) ? "D2H pinned" : "D2H pageable";
  return "H2H";
}

bool is_pageable(const std::string& direction) { return direction.find("pageable") != std::string::npos; }

cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t s, bool waits) {
  observe();
  const Lock lock(mutex());
  Stream& stream = stream_of(s);
  const std::string way = direction(to, from);
  if (waits) {
    if (refuses_in_capture("cudaMemcpy")) return fail(cudaErrorStreamCaptureUnsupported);
    record(kind::kSync, "cudaMemcpy");
  }
  if (stream.capture && is_pageable(way)) {
    invalidate(stream, "copy of pageable memory");
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  record(kind::kCopy, way, bytes, &stream);
  if (way.rfind("D2H", 0) == 0) std::memset(to, 0, bytes);
  if (way == "H2H") std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t fill(size_t bytes, cudaStream_t s) {
  observe();
  record(kind::kFill, "", bytes, &stream_of(s));
  return cudaSuccess;
}

}  // namespace

bool is_device_memory(const void* address) { return contains(device_ranges(), address); }
bool is_pinned_memory(const void* address) { return contains(pinned_ranges(), address); }

}  // namespace stand_in

using namespace stand_in;

STAND_IN_API cudaError_t cudaMalloc(void** address, size_t bytes) {
  if (refuses_in_capture("cudaMalloc")) return fail(cudaErrorStreamCaptureUnsupported);
  const Lock lock(mutex());
  // the host cannot read it, as on a real machine
  *address = mmap(nullptr, bytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (*address == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  device_ranges()[reinterpret_cast<uintptr_t>(*address)] = bytes;
  record(kind::kAllocate, "", bytes);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaFree(void* address) {
  // torch makes a context so
  if (!address) return cudaSuccess;
  if (refuses_in_capture("cudaFree")) return fail(cudaErrorStreamCaptureUnsupported);
  const Lock lock(mutex());
  const auto found = device_ranges().find(reinterpret_cast<uintptr_t>(address));
  if (found == device_ranges().end()) return fail(cudaErrorInvalidValue);
  munmap(address, found->second + kPage);
  device_ranges().erase(found);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  if (refuses_in_capture("cudaHostAlloc")) return fail(cudaErrorStreamCaptureUnsupported);
  const Lock lock(mutex());
  if (posix_memalign(address, kPage, bytes) != 0) return fail(cudaErrorMemoryAllocation);
  pinned_ranges()[reinterpret_cast<uintptr_t>(*address)] = bytes;
  // although no work on a stream: whether it happens inside a capture is of interest
  note(kind::kPin, "", bytes, stream_of(nullptr));
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaFreeHost(void* address) {
  const Lock lock(mutex());
  pinned_ranges().erase(reinterpret_cast<uintptr_t>(address));
  std::free(address);
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  const Lock lock(mutex());
  pinned_ranges()[reinterpret_cast<uintptr_t>(address)] = bytes;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaHostUnregister(void* address) {
  const Lock lock(mutex());
  pinned_ranges().erase(reinterpret_cast<uintptr_t>(address));
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  std::memset(attributes, 0, sizeof *attributes);
  attributes->type = is_device_memory(address)   ? cudaMemoryTypeDevice
                     : is_pinned_memory(address) ? cudaMemoryTypeHost
                                                 : cudaMemoryTypeUnregistered;
  void* plain = const_cast<void*>(address);
  attributes->devicePointer = attributes->type == cudaMemoryTypeUnregistered ? nullptr : plain;
  attributes->hostPointer = attributes->type == cudaMemoryTypeDevice ? nullptr : plain;
  return cudaSuccess;
}

STAND_IN_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return copy(to, from, bytes, nullptr, true);
}

STAND_IN_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
  return copy(to, from, bytes, s, false);
}

STAND_IN_API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t s) {
  return copy(to, from, bytes, s, false);
}

STAND_IN_API cudaError_t cudaMemset(void*, int, size_t bytes) { return fill(bytes, nullptr); }
STAND_IN_API cudaError_t cudaMemsetAsync(void*, int, size_t bytes, cudaStream_t s) { return fill(bytes, s); }
