// Memory that the drivers of the criterion's CPU kernels need for themselves, used again from call to call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace semckd {

// At least `bytes` uninitialised bytes on a cache line's boundary; `capacity` is what give_back wants to know.
void* take_scratch(size_t bytes, size_t* capacity);
void give_back_scratch(void* memory, size_t capacity);
// Gives what lies idle back to the system, the maps' memory below included.
void release_scratch();

// Asks for huge pages under a large buffer: fewer page faults, and fewer misses of the address translation. A hint:
// nothing is reported where it is not granted.
void advise_huge_pages(void* memory, size_t bytes);

// Memory for the maps of a pair, which the next pair uses again: fresh memory would cost a page fault every 4 KiB,
// about as much as a pass over it. One is left for the next call, as large as the largest call has needed; calls at the
// same time have one each.
class MapMemory {
 public:
  enum Block { kH1, kZ, kDH2, kDH1, kConvolution, kBlocks };
  struct Memory {
    void* memory = nullptr;
    size_t capacity = 0;
  };

  MapMemory();
  ~MapMemory();
  MapMemory(const MapMemory&) = delete;
  MapMemory& operator=(const MapMemory&) = delete;

  // At least `bytes` uninitialised bytes on a cache line's boundary, valid until the next request for the same block.
  void* get(Block block, int64_t bytes);

 private:
  friend void release_scratch();
  static void free_all(Memory* blocks);

  Memory* blocks_;  // [kBlocks]
};

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(static_cast<T*>(take_scratch(count * sizeof(T), &capacity_))) {}
  ~Scratch() { give_back_scratch(memory_, capacity_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* get() const { return memory_; }
  T& operator[](int64_t i) const { return memory_[i]; }

 private:
  size_t capacity_ = 0;
  T* memory_;
};

}  // namespace semckd
