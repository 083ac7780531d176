#include "scratch.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace semckd {
namespace {

// below this, the C library has the memory at hand itself
constexpr size_t kSmall = 256 << 10;
// what lies idle at most: partial sums of the largest matrices, and two packed weights (tiles.h)
constexpr size_t kMostIdle = 32 << 20;
constexpr size_t kLine = 64, kHugePage = 2 << 20;

struct Block {
  void* memory;
  size_t capacity;
};

struct Idle {
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t bytes = 0;
};
// never destroyed: threads may outlive static objects
Idle& idle() {
  static auto* const blocks = new Idle;
  return *blocks;
}

void* allocate(size_t capacity) {
  const size_t alignment = capacity >= kHugePage ? kHugePage : kLine;
  void* memory = std::aligned_alloc(alignment, capacity);
  if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (capacity >= kHugePage) madvise(memory, capacity, MADV_HUGEPAGE);
#endif
  return memory;
}

}  // namespace

void* take_scratch(size_t bytes, size_t* capacity) {
  const size_t unit = bytes >= kHugePage ? kHugePage : bytes >= kSmall ? kSmall : kLine;
  *capacity = std::max(unit, (bytes + unit - 1) / unit * unit);
  if (*capacity < kSmall) return allocate(*capacity);
  {
    Idle& all = idle();
    const std::lock_guard<std::mutex> lock(all.mutex);
    // the smallest that is large enough, and not so large that others will miss it
    Block* best = nullptr;
    for (Block& block : all.blocks)
      if (block.capacity >= *capacity && block.capacity <= 2 * *capacity && (!best || block.capacity < best->capacity))
        best = &block;
    if (best) {
      const Block found = *best;
      *best = all.blocks.back();
      all.blocks.pop_back();
      all.bytes -= found.capacity;
      *capacity = found.capacity;
      return found.memory;
    }
  }
  return allocate(*capacity);
}

void give_back_scratch(void* memory, size_t capacity) {
  if (capacity >= kSmall) {
    Idle& all = idle();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.bytes + capacity <= kMostIdle) {
      all.blocks.push_back({memory, capacity});
      all.bytes += capacity;
      return;
    }
  }
  std::free(memory);
}

void release_scratch() {
  Idle& all = idle();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const Block& block : all.blocks) std::free(block.memory);
  all.blocks.clear();
  all.bytes = 0;
}

}  // namespace semckd
