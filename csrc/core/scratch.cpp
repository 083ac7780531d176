#include "core/scratch.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
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
  MapMemory::Memory* maps = nullptr;
};
// never destroyed: threads may outlive static objects
Idle& idle() {
  static auto* const blocks = new Idle;
  return *blocks;
}

void* allocate_small(size_t capacity) {
  void* memory = std::aligned_alloc(kLine, capacity);
  if (!memory) throw std::bad_alloc();
  return memory;
}

#if defined(__linux__)
// From the system itself: what the C library frees it may keep.
void* allocate_large(size_t capacity) {
  const size_t slack = capacity >= kHugePage ? kHugePage : 0;
  void* mapped = mmap(nullptr, capacity + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  char* first = static_cast<char*>(mapped);
  if (slack == 0) return first;
  // whole huge pages; what is left on both sides goes back
  const size_t ahead = (kHugePage - reinterpret_cast<uintptr_t>(first) % kHugePage) % kHugePage;
  if (ahead > 0) munmap(first, ahead);
  if (ahead < slack) munmap(first + ahead + capacity, slack - ahead);
  advise_huge_pages(first + ahead, capacity);
  return first + ahead;
}
void free_large(void* memory, size_t capacity) { munmap(memory, capacity); }
#else
void* allocate_large(size_t capacity) { return allocate_small(capacity); }
void free_large(void* memory, size_t) { std::free(memory); }
#endif

}  // namespace

void advise_huge_pages(void* memory, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (first + page - 1) / page * page, end = (first + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void* take_scratch(size_t bytes, size_t* capacity) {
  const size_t unit = bytes >= kHugePage ? kHugePage : bytes >= kSmall ? kSmall : kLine;
  *capacity = std::max(unit, (bytes + unit - 1) / unit * unit);
  if (*capacity < kSmall) return allocate_small(*capacity);
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
  return allocate_large(*capacity);
}

void give_back_scratch(void* memory, size_t capacity) {
  if (capacity < kSmall) return std::free(memory);
  {
    Idle& all = idle();
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (all.bytes + capacity <= kMostIdle) {
      all.blocks.push_back({memory, capacity});
      all.bytes += capacity;
      return;
    }
  }
  free_large(memory, capacity);
}

void release_scratch() {
  Idle& all = idle();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const Block& block : all.blocks) free_large(block.memory, block.capacity);
  all.blocks.clear();
  all.bytes = 0;
  MapMemory::free_all(std::exchange(all.maps, nullptr));
}

MapMemory::MapMemory() {
  {
    Idle& all = idle();
    const std::lock_guard<std::mutex> lock(all.mutex);
    blocks_ = std::exchange(all.maps, nullptr);
  }
  if (!blocks_) blocks_ = new Memory[kBlocks];
}

MapMemory::~MapMemory() {
  Idle& all = idle();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (!all.maps) std::swap(all.maps, blocks_);
  }
  free_all(blocks_);
}

void MapMemory::free_all(Memory* blocks) {
  if (!blocks) return;
  for (int n = 0; n < kBlocks; ++n)
    if (blocks[n].memory) free_large(blocks[n].memory, blocks[n].capacity);
  delete[] blocks;
}

void* MapMemory::get(Block block, int64_t bytes) {
  Memory& held = blocks_[block];
  const size_t wanted = static_cast<size_t>(bytes);
  if (held.memory && held.capacity >= wanted) return held.memory;
  if (held.memory) free_large(held.memory, held.capacity);
  held = {};
  const size_t unit = wanted >= kHugePage ? kHugePage : kSmall;
  const size_t capacity = std::max(unit, (wanted + unit - 1) / unit * unit);
  held = {allocate_large(capacity), capacity};
  return held.memory;
}

}  // namespace semckd
