#include "device_memory.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>

#include "runtime.h"

extern "C" {
// present where the address sanitizer is
__attribute__((weak)) void __asan_poison_memory_region(void const volatile*, size_t);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile*, size_t);
}

namespace cuda_emulation {
namespace {

// cudaMalloc's
constexpr size_t kAlignment = 256;
// above this memory is only reserved, and no byte of it recorded
constexpr size_t kSparseBytes = size_t(1) << 30;
// unused memory on both sides of a buffer, by which overruns are told from accesses to something else
constexpr size_t kGuardBytes = 256;
// floating-point NaN of every type, and an index far out of range
constexpr int kPoison = 0xff;

std::map<const unsigned char*, std::unique_ptr<Allocation>>& allocations() {
  static std::map<const unsigned char*, std::unique_ptr<Allocation>> all;
  return all;
}

// The address sanitizer has guards of its own, which begin with the first byte outside.
size_t guard_bytes() { return __asan_poison_memory_region ? 0 : kGuardBytes; }

void saturating_increment(uint8_t& count) { count = static_cast<uint8_t>(count + (count < 255)); }

}  // namespace

Allocation::Allocation(size_t bytes, size_t misalignment)
    : raw_bytes_(misalignment + bytes + 2 * guard_bytes()), bytes_(bytes), sparse_(bytes > kSparseBytes) {
  if (sparse_) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    raw_ = mmap(nullptr, raw_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (raw_ == MAP_FAILED) std::abort();
  } else {
    if (posix_memalign(&raw_, kAlignment, std::max<size_t>(raw_bytes_, 1)) != 0) std::abort();
    std::memset(raw_, kPoison, raw_bytes_);
  }
  begin_ = static_cast<unsigned char*>(raw_) + guard_bytes() + misalignment;
  if (misalignment > 0 && __asan_poison_memory_region) __asan_poison_memory_region(raw_, misalignment);
  if (!sparse_) written_.assign(bytes, false);
}

Allocation::~Allocation() {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(raw_, raw_bytes_);
  if (sparse_) {
    munmap(raw_, raw_bytes_);
  } else {
    std::free(raw_);
  }
}

bool Allocation::is_near(const void* p) const {
  const auto* at = static_cast<const unsigned char*>(p);
  return begin_ - guard_bytes() <= at && at < begin_ + bytes_ + guard_bytes();
}

void Allocation::mark_written(size_t offset, size_t bytes) {
  if (!sparse_) std::fill_n(written_.begin() + static_cast<std::ptrdiff_t>(offset), bytes, true);
}

void Allocation::count(size_t offset, size_t bytes, bool is_store) {
  (is_store ? stored_ : loaded_) += bytes;
  if (sparse_) return;
  std::vector<uint8_t>& counts = is_store ? stores_ : loads_;
  if (counts.empty()) counts.assign(bytes_, 0);
  for (size_t i = offset; i < offset + bytes; ++i) saturating_increment(counts[i]);
}

Traffic Allocation::traffic() const {
  Traffic traffic;
  traffic.loaded = loaded_;
  traffic.stored = stored_;
  const auto extremes = [](const std::vector<uint8_t>& counts, uint32_t& least, uint32_t& most) {
    if (counts.empty()) return;
    const auto [low, high] = std::minmax_element(counts.begin(), counts.end());
    least = *low;
    most = *high;
  };
  extremes(loads_, traffic.min_loads, traffic.max_loads);
  extremes(stores_, traffic.min_stores, traffic.max_stores);
  return traffic;
}

void Allocation::reset_traffic() {
  loaded_ = stored_ = 0;
  loads_.clear();
  stores_.clear();
}

AccessCell& Allocation::cell(size_t offset) {
  static AccessCell unrecorded;
  if (sparse_) return unrecorded = AccessCell{};
  if (cells_.empty()) cells_.resize(bytes_);
  return cells_[offset];
}

Allocation* find_allocation(const void* p) {
  auto& all = allocations();
  // buffers lie at least two guards apart, so no other can be near
  auto next = all.upper_bound(static_cast<const unsigned char*>(p) + guard_bytes());
  if (next == all.begin()) return nullptr;
  Allocation* allocation = std::prev(next)->second.get();
  return allocation->is_near(p) ? allocation : nullptr;
}

void* allocate(size_t bytes, size_t misalignment) {
  auto allocation = std::make_unique<Allocation>(bytes, misalignment);
  unsigned char* data = allocation->data();
  allocations().emplace(data, std::move(allocation));
  return data;
}

bool release(void* p) { return allocations().erase(static_cast<unsigned char*>(p)) == 1; }

void reset_all_traffic() {
  for (auto& entry : allocations()) entry.second->reset_traffic();
}

void forget_all_accesses() {
  for (auto& entry : allocations()) entry.second->forget_accesses();
}

}  // namespace cuda_emulation

// The part of the runtime that launchers call. Memory that was not allocated here is an error, as on a device.
extern "C" cudaError_t CUDARTAPI cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  cuda_emulation::Allocation* allocation = cuda_emulation::find_allocation(p);
  if (!allocation || !allocation->contains(p, bytes)) return cudaErrorInvalidValue;
  if (cuda_emulation::options().dry_run) return cudaSuccess;
  std::memset(p, value, bytes);
  allocation->mark_written(static_cast<size_t>(static_cast<unsigned char*>(p) - allocation->data()), bytes);
  return cudaSuccess;
}
