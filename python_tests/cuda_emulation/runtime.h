// What the intrinsics of cuda_emulation.h need from the emulation, and what its users may set and read.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_emulation {

// The call site of an intrinsic, for reports.
struct Where {
  const char* file;
  int line;
};

enum class Order : int { kAscending, kDescending, kRandom };

struct Options {
  Order order = Order::kAscending;  // in which order threads, and blocks, get to run
  uint64_t seed = 0;                // of the random order
  unsigned resident = 1;            // blocks that run interleaved
  bool poison = true;               // shared memory starts as 0xff bytes, otherwise as zeros
  bool check_races = true;          // in builds that observe memory accesses
  bool dry_run = false;             // launches are checked and recorded, kernels not run
};
Options& options();

// What was launched; grows until it is cleared.
struct LaunchRecord {
  uint64_t blocks;
  unsigned threads;
  size_t parameter_bytes;
};
std::vector<LaunchRecord>& launch_records();

struct LaunchShape {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  size_t parameter_bytes;
};

// Runs body(closure) once for every thread; `kernel` is any address in the module that holds the kernel.
cudaError_t run(const LaunchShape& shape, const void* kernel, void (*body)(void*), void* closure);

// What went wrong in the last launch that returned cudaErrorLaunchFailure.
const char* last_error();

// --- called by the intrinsics of a running thread ------------------------------------------------------------------

enum class Collective : uint8_t { kSyncWarp, kShuffle, kBallot, kAny, kAll };

int lane_id();
void* dynamic_shared();
void block_barrier(Where where);
uint64_t warp_collective(Collective op, unsigned mask, uint64_t value, int source_lane, Where where);
void fence();
void before_atomic(const void* p, size_t bytes, Where where);
void after_atomic(const void* p);
// A load by the path that is not kept coherent with stores of the same kernel.
void before_read_only_load(const void* p, size_t bytes);

}  // namespace cuda_emulation
