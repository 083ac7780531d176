// Blocks and threads of the launch that is running. Everything happens on one OS thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "fiber.h"
#include "race_checker.h"
#include "runtime.h"
#include "shared_memory.h"

namespace cuda_emulation {

struct Block;

enum class State : uint8_t { kReady, kAtBarrier, kInCollective, kDone };

struct Thread {
  Block* block = nullptr;
  uint3 id{};
  unsigned linear = 0;
  State state = State::kReady;
  Fiber fiber;
  // the barrier or collective that it waits in
  Where where{};
  Collective op{};
  unsigned mask = 0;
  uint64_t value = 0;  // given, and then received
  int source_lane = 0;
  ThreadHistory history;

  unsigned lane() const { return linear % 32; }
  unsigned first_of_warp() const { return linear - lane(); }
};

// What makes loads by several lanes of a warp one load.
struct WarpLoad {
  const void* code;
  const void* p;
  unsigned first_of_warp;

  bool operator==(const WarpLoad& other) const {
    return code == other.code && p == other.p && first_of_warp == other.first_of_warp;
  }
  struct Hash {
    size_t operator()(const WarpLoad& load) const {
      const auto code = reinterpret_cast<uintptr_t>(load.code), p = reinterpret_cast<uintptr_t>(load.p);
      return (p * 31 + code) * 31 + load.first_of_warp;
    }
  };
};

struct Block {
  uint3 id{};
  std::vector<Thread> threads;
  std::vector<Thread*> ready;  // in the order in which they became so
  unsigned alive = 0;
  unsigned at_barrier = 0;
  std::vector<unsigned char> shared, dynamic;  // contents; `shared` while the block is not running
  BlockHistory history;
  std::unordered_map<WarpLoad, unsigned, WarpLoad::Hash> loads;  // the lanes that took part in the latest one
};

struct Launch {
  LaunchShape shape;
  unsigned threads;  // a block
  void (*body)(void*);
  void* closure;
  SharedSegment segment;
  RaceChecker races;
  bool failed = false;
};

// The launch and the thread that are running; null outside of one.
extern Launch* current_launch;
extern Thread* current_thread;

// Ends the launch with cudaErrorLaunchFailure; the message is prefixed with the running block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
// In random order: lets others run, once in `one_in` times.
void maybe_preempt(unsigned one_in);

}  // namespace cuda_emulation
