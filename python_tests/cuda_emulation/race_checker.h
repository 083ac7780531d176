// Happens-before in CUDA's sense: which accesses of other threads a thread may rely on.
//
// An access is stamped with its block and thread, the barriers passed (of the block and of the warp) and the fences
// that the thread has executed. Two accesses of one byte, one of them a write, are a race unless the earlier is ordered
// before the later by program order, by a barrier, or by fence - atomic - atomic - fence. Shuffles order no memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace cuda_emulation {

struct Stamp {
  static constexpr uint32_t kNone = 0xffffffff;
  uint32_t block = kNone;
  uint32_t phase = 0;       // block barriers passed
  uint32_t warp_phase = 0;  // warp barriers passed
  uint16_t thread = 0;
  uint8_t fences = 0;
  bool atomic = false;

  bool exists() const { return block != kNone; }
  bool same_thread(const Stamp& other) const { return block == other.block && thread == other.thread; }
};

// The last write of a byte, the last reads by two different threads, and whether any of them was a read-only load.
struct AccessCell {
  Stamp write, read, other_read;
  bool read_only = false;
};

// What one thread of a block has made visible by a fence: all that the block did before its barrier `phase`, and what
// the thread itself did before its fence number `fences`.
struct Release {
  uint32_t phase;
  uint8_t fences;
};

// Releases that have become known, the latest one of each (block, thread).
class Knowledge {
 public:
  void add(uint32_t block, uint16_t thread, Release release);
  void add(const Knowledge& other);
  bool covers(const Stamp& stamp) const;
  void clear() { releases_.clear(); }

 private:
  std::map<uint64_t, Release> releases_;
};

// The checker's part of a block and of a thread.
struct BlockHistory {
  uint32_t block = 0;
  uint32_t phase = 0;
  std::vector<uint32_t> warp_phase;
  Knowledge known;     // to all threads
  Knowledge arriving;  // to all threads after the next barrier
  std::vector<AccessCell> shared_cells, dynamic_cells;

  void pass_barrier();
};
struct ThreadHistory {
  uint16_t thread = 0;
  uint8_t fences = 0;
  bool has_release = false;
  Release release{};
  std::vector<const void*> observed;  // atomics since the last fence
  Knowledge known;
};

// Of one launch.
class RaceChecker {
 public:
  void fence(const BlockHistory& block, ThreadHistory& thread);
  void before_atomic(const BlockHistory& block, const ThreadHistory& thread, const void* p);
  void after_atomic(ThreadHistory& thread, const void* p) { thread.observed.push_back(p); }

  // Records an access of one byte. A non-empty result names a race with an earlier access, which goes to `other`.
  const char* access(AccessCell& cell, const BlockHistory& block, const ThreadHistory& thread, bool is_write,
                     bool is_atomic, Stamp& other);

 private:
  std::map<const void*, Knowledge> at_atomic_;
};

}  // namespace cuda_emulation
