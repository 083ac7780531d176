#include "scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "device_memory.h"
#include "observer.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulation {

Launch* current_launch = nullptr;
Thread* current_thread = nullptr;

namespace {

// how long a block runs before another resident one gets its turn, in switches of threads
constexpr uint64_t kQuantum = 512;
// an odd constant that spreads small seeds over all bits
constexpr uint64_t kSpread = 0x9E3779B97F4A7C15ull;
constexpr unsigned kWarp = 32;

std::string error_text;
uint64_t random_state = kSpread;

// xorshift64*
uint64_t random_number() {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return random_state * 2685821657736338717ull;
}

bool descending() { return options().order == Order::kDescending; }
bool random_order() { return options().order == Order::kRandom; }

void report(const std::string& text) {
  if (!current_launch->failed) error_text = text;
  current_launch->failed = true;
}

std::string print(const char* format, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

__attribute__((format(printf, 2, 3))) void report(const Block& block, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = print(format, arguments);
  va_end(arguments);
  report("block " + std::to_string(block.id.x) + ": " + text);
}

void make_ready(Thread& thread) {
  thread.state = State::kReady;
  thread.block->ready.push_back(&thread);
}

Thread& take_ready(Block& block) {
  const size_t k = random_order() ? random_number() % block.ready.size() : 0;
  Thread& thread = *block.ready[k];
  block.ready.erase(block.ready.begin() + static_cast<std::ptrdiff_t>(k));
  return thread;
}

// Opens the barrier once every thread that is left waits at it.
void try_open_barrier(Block& block) {
  if (block.at_barrier == 0 || block.at_barrier < block.alive) return;
  const Thread* first = nullptr;
  for (const Thread& thread : block.threads) {
    if (thread.state != State::kAtBarrier) continue;
    if (!first) first = &thread;
    if (thread.where.line == first->where.line) continue;
    report(block, "divergent __syncthreads: thread %u waits at %s:%d, thread %u at %s:%d", first->linear,
           first->where.file, first->where.line, thread.linear, thread.where.file, thread.where.line);
    return;
  }
  block.at_barrier = 0;
  block.history.pass_barrier();
  const size_t count = block.threads.size();
  for (size_t i = 0; i < count; ++i) {
    Thread& thread = block.threads[descending() ? count - 1 - i : i];
    if (thread.state == State::kAtBarrier) make_ready(thread);
  }
}

uint64_t collective_result(const Thread& thread, unsigned present, unsigned votes, const uint64_t* values) {
  switch (thread.op) {
    case Collective::kShuffle:
      return values[thread.source_lane % kWarp];
    case Collective::kBallot:
      return votes;
    case Collective::kAny:
      return votes != 0;
    case Collective::kAll:
      return votes == present;
    default:
      return 0;
  }
}

// Lets the lanes that wait with `caller` go on once every lane of its mask has arrived or, at __syncwarp, has exited.
// A lane in another collective has not arrived: a true mismatch ends as a deadlock.
void try_finish_collective(Thread& caller) {
  Block& block = *caller.block;
  unsigned present = 0, missing = 0, votes = 0;
  uint64_t values[kWarp]{};
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(caller.mask >> lane & 1)) continue;
    const unsigned linear = caller.first_of_warp() + lane;
    if (linear >= block.threads.size() || block.threads[linear].state == State::kDone) {
      missing |= 1u << lane;
      continue;
    }
    const Thread& thread = block.threads[linear];
    if (thread.state != State::kInCollective || thread.mask != caller.mask || thread.op != caller.op) return;
    present |= 1u << lane;
    values[lane] = thread.value;
    if (thread.value) votes |= 1u << lane;
  }
  if (missing && caller.op != Collective::kSyncWarp) {
    return report(block, "thread %u at %s:%d: mask %08x names lanes %08x that have exited or do not exist",
                  caller.linear, caller.where.file, caller.where.line, caller.mask, missing);
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(present >> lane & 1)) continue;
    Thread& thread = block.threads[caller.first_of_warp() + lane];
    if (thread.op == Collective::kShuffle && !(present >> (thread.source_lane % kWarp) & 1)) {
      return report(block, "thread %u at %s:%d: shuffle from lane %d, which is not in the mask", thread.linear,
                    thread.where.file, thread.where.line, thread.source_lane);
    }
    thread.value = collective_result(thread, present, votes, values);
    make_ready(thread);
  }
  if (caller.op == Collective::kSyncWarp) block.history.warp_phase[caller.linear / kWarp]++;
}

void thread_main() {
  Fiber::entered();
  Thread& self = *current_thread;
  current_launch->body(current_launch->closure);
  self.state = State::kDone;
  Block& block = *self.block;
  block.alive--;
  // those who wait for this thread may have waited for nobody else
  try_open_barrier(block);
  for (unsigned i = self.first_of_warp(); i < self.first_of_warp() + kWarp && i < block.threads.size(); ++i) {
    Thread& other = block.threads[i];
    if (other.state == State::kInCollective && other.mask >> self.lane() & 1) try_finish_collective(other);
  }
  self.fiber.yield(true);
  std::abort();
}

void resume(Thread& thread) {
  threadIdx = thread.id;
  blockIdx = thread.block->id;
  current_thread = &thread;
  thread.fiber.resume();
  current_thread = nullptr;
}

uint3 unravel(uint64_t linear, const dim3& extent) {
  return {static_cast<unsigned>(linear % extent.x), static_cast<unsigned>(linear / extent.x % extent.y),
          static_cast<unsigned>(linear / extent.x / extent.y)};
}

std::unique_ptr<Block> start_block(uint64_t linear) {
  auto block = std::make_unique<Block>();
  const Launch& launch = *current_launch;
  block->id = unravel(linear, launch.shape.grid);
  block->alive = launch.threads;
  block->shared.assign(launch.segment.bytes, options().poison ? 0xff : 0);
  block->dynamic.assign(launch.shape.dynamic_shared_bytes, options().poison ? 0xff : 0);
  block->history.block = static_cast<uint32_t>(linear);
  block->history.warp_phase.assign((launch.threads + kWarp - 1) / kWarp, 0);
  if (observes_accesses()) {
    block->history.shared_cells.resize(launch.segment.bytes);
    block->history.dynamic_cells.resize(launch.shape.dynamic_shared_bytes);
  }
  block->threads = std::vector<Thread>(launch.threads);
  for (unsigned i = 0; i < launch.threads; ++i) {
    const unsigned t = descending() ? launch.threads - 1 - i : i;
    Thread& thread = block->threads[t];
    thread.block = block.get();
    thread.linear = t;
    thread.id = unravel(t, launch.shape.block);
    thread.history.thread = static_cast<uint16_t>(t);
    thread.fiber.start(&thread_main);
    make_ready(thread);
  }
  return block;
}

void report_deadlock(const Block& block) {
  const Thread* waits = nullptr;
  unsigned in_collectives = 0;
  for (const Thread& thread : block.threads) {
    if (thread.state == State::kDone) continue;
    if (!waits || thread.state == State::kInCollective) waits = &thread;
    in_collectives += thread.state == State::kInCollective;
  }
  report(block, "deadlock: %u threads at __syncthreads, %u in warp collectives, %u exited; thread %u waits at %s:%d",
         block.at_barrier, in_collectives, current_launch->threads - block.alive, waits->linear, waits->where.file,
         waits->where.line);
}

// Lets a block run until it is done, waits for itself, or has had its turn.
void run_for_a_while(Block& block, bool alone) {
  current_launch->segment.restore(block.shared);
  uint64_t quantum = alone ? ~uint64_t(0) : 1 + random_number() % kQuantum;
  while (quantum-- > 0 && !block.ready.empty() && !current_launch->failed) resume(take_ready(block));
  current_launch->segment.save(block.shared);
}

void run_blocks(const std::vector<uint64_t>& order) {
  std::vector<std::unique_ptr<Block>> resident;
  size_t next = 0;
  while (!current_launch->failed) {
    while (resident.size() < std::max(options().resident, 1u) && next < order.size())
      resident.push_back(start_block(order[next++]));
    if (resident.empty()) return;
    const size_t k = random_order() ? random_number() % resident.size() : 0;
    Block& block = *resident[k];
    run_for_a_while(block, resident.size() == 1);
    if (current_launch->failed) return;
    if (block.alive == 0) {
      resident.erase(resident.begin() + static_cast<std::ptrdiff_t>(k));
    } else if (block.ready.empty()) {
      report_deadlock(block);
    }
  }
}

std::vector<uint64_t> block_order(uint64_t count) {
  std::vector<uint64_t> order(count);
  for (uint64_t i = 0; i < count; ++i) order[i] = descending() ? count - 1 - i : i;
  if (random_order())
    for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[random_number() % i]);
  return order;
}

bool valid(const LaunchShape& shape) {
  const uint64_t threads = uint64_t(shape.block.x) * shape.block.y * shape.block.z;
  return threads > 0 && threads <= 1024 && shape.grid.x > 0 && shape.grid.x <= 0x7fffffff && shape.grid.y > 0 &&
         shape.grid.y <= 65535 && shape.grid.z > 0 && shape.grid.z <= 65535 &&
         shape.dynamic_shared_bytes <= 227 * 1024 && shape.parameter_bytes <= 4096;
}

}  // namespace

Options& options() {
  static Options current;
  return current;
}

std::vector<LaunchRecord>& launch_records() {
  static std::vector<LaunchRecord> records;
  return records;
}

const char* last_error() { return error_text.c_str(); }

cudaError_t run(const LaunchShape& shape, const void* kernel, void (*body)(void*), void* closure) {
  if (!valid(shape)) return cudaErrorInvalidConfiguration;
  const uint64_t blocks = uint64_t(shape.grid.x) * shape.grid.y * shape.grid.z;
  const unsigned threads = shape.block.x * shape.block.y * shape.block.z;
  launch_records().push_back({blocks, threads, shape.parameter_bytes});
  if (options().dry_run) return cudaSuccess;

  Launch launch{shape, threads, body, closure, SharedSegment::of_module(kernel), {}, false};
  current_launch = &launch;
  blockDim = shape.block;
  gridDim = shape.grid;
  random_state = (options().seed + 1) * kSpread;
  // launches of a stream follow each other: nothing races with an earlier one
  forget_all_accesses();
  run_blocks(block_order(blocks));
  current_launch = nullptr;
  return launch.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const std::string text = print(format, arguments);
  va_end(arguments);
  report(*current_thread->block, "thread %u: %s", current_thread->linear, text.c_str());
  for (;;) current_thread->fiber.yield();
}

void maybe_preempt(unsigned one_in) {
  if (!random_order() || random_number() % one_in != 0) return;
  make_ready(*current_thread);
  current_thread->fiber.yield();
}

int lane_id() { return static_cast<int>(current_thread->lane()); }
void* dynamic_shared() { return current_thread->block->dynamic.data(); }

void block_barrier(Where where) {
  Thread& self = *current_thread;
  Block& block = *self.block;
  self.state = State::kAtBarrier;
  self.where = where;
  block.history.arriving.add(self.history.known);
  block.at_barrier++;
  try_open_barrier(block);
  self.fiber.yield();
}

uint64_t warp_collective(Collective op, unsigned mask, uint64_t value, int source_lane, Where where) {
  Thread& self = *current_thread;
  if (!(mask >> self.lane() & 1)) fail("%s:%d: the calling lane is not in the mask", where.file, where.line);
  self.state = State::kInCollective;
  self.op = op;
  self.mask = mask;
  self.value = value;
  self.source_lane = source_lane;
  self.where = where;
  try_finish_collective(self);
  self.fiber.yield();
  return self.value;
}

}  // namespace cuda_emulation
