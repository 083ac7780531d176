// Device memory: allocations of exact size, with a record of what has been written and of what a kernel touches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "race_checker.h"

namespace cuda_emulation {

// How often kernels accessed an allocation, in builds that observe accesses.
struct Traffic {
  uint64_t loaded = 0, stored = 0;  // bytes
  // the least and most often that any one byte was accessed
  uint32_t min_loads = 0, max_loads = 0, min_stores = 0, max_stores = 0;
};

class Allocation {
 public:
  Allocation(size_t bytes, size_t misalignment);
  ~Allocation();
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  unsigned char* data() const { return begin_; }
  size_t bytes() const { return bytes_; }
  bool contains(const void* p, size_t bytes) const {
    const auto* at = static_cast<const unsigned char*>(p);
    return begin_ <= at && at + bytes <= begin_ + bytes_;
  }
  // Whether p lies in the buffer or in the guard bytes on either side of it.
  bool is_near(const void* p) const;

  void mark_written(size_t offset, size_t bytes);
  bool written(size_t offset) const { return sparse_ || written_[offset]; }
  void count(size_t offset, size_t bytes, bool is_store);
  Traffic traffic() const;
  void reset_traffic();
  // One cell a byte, empty at the start of a launch.
  AccessCell& cell(size_t offset);
  void forget_accesses() { cells_.clear(); }

 private:
  void* raw_;
  size_t raw_bytes_;
  unsigned char* begin_;
  size_t bytes_;
  bool sparse_;  // too large for records of single bytes
  uint64_t loaded_ = 0, stored_ = 0;
  std::vector<bool> written_;
  std::vector<uint8_t> loads_, stores_;
  std::vector<AccessCell> cells_;
};

// The allocation that p points into or close by, or null.
Allocation* find_allocation(const void* p);
void* allocate(size_t bytes, size_t misalignment);
// False where p is not the start of an allocation.
bool release(void* p);
void reset_all_traffic();
void forget_all_accesses();

}  // namespace cuda_emulation
