#include "race_checker.h"

#include <algorithm>

namespace cuda_emulation {
namespace {

constexpr int kThreadBits = 16;
constexpr int kWarp = 32;

uint64_t key(uint32_t block, uint16_t thread) { return uint64_t(block) << kThreadBits | thread; }

bool ordered(const Stamp& earlier, const BlockHistory& block, const ThreadHistory& thread) {
  if (earlier.block == block.block) {
    if (earlier.thread == thread.thread || earlier.phase < block.phase) return true;
    const int warp = thread.thread / kWarp;
    if (earlier.thread / kWarp == warp && earlier.warp_phase < block.warp_phase[warp]) return true;
  }
  return thread.known.covers(earlier) || block.known.covers(earlier);
}

}  // namespace

void Knowledge::add(uint32_t block, uint16_t thread, Release release) {
  auto [at, is_new] = releases_.emplace(key(block, thread), release);
  if (is_new) return;
  at->second.phase = std::max(at->second.phase, release.phase);
  at->second.fences = std::max(at->second.fences, release.fences);
}

void Knowledge::add(const Knowledge& other) {
  for (const auto& [id, release] : other.releases_)
    add(static_cast<uint32_t>(id >> kThreadBits), static_cast<uint16_t>(id), release);
}

bool Knowledge::covers(const Stamp& stamp) const {
  for (auto at = releases_.lower_bound(key(stamp.block, 0)); at != releases_.end(); ++at) {
    if (at->first >> kThreadBits != stamp.block) return false;
    if (stamp.phase < at->second.phase) return true;
    if (static_cast<uint16_t>(at->first) == stamp.thread && stamp.fences < at->second.fences) return true;
  }
  return false;
}

void BlockHistory::pass_barrier() {
  ++phase;
  known.add(arriving);
  arriving.clear();
}

// A fence before an atomic publishes what came before it; a fence after an atomic takes over what was published there.
void RaceChecker::fence(const BlockHistory& block, ThreadHistory& thread) {
  for (const void* p : thread.observed) thread.known.add(at_atomic_[p]);
  thread.observed.clear();
  thread.release = {block.phase, ++thread.fences};
  thread.has_release = true;
}

void RaceChecker::before_atomic(const BlockHistory& block, const ThreadHistory& thread, const void* p) {
  if (!thread.has_release) return;
  Knowledge& published = at_atomic_[p];
  published.add(block.block, thread.thread, thread.release);
  published.add(thread.known);
  published.add(block.known);
}

const char* RaceChecker::access(AccessCell& cell, const BlockHistory& block, const ThreadHistory& thread, bool is_write,
                                bool is_atomic, Stamp& other) {
  const auto races_with = [&](const Stamp& earlier) {
    other = earlier;
    return earlier.exists() && !(is_atomic && earlier.atomic) && !ordered(earlier, block, thread);
  };
  if (races_with(cell.write)) return is_write ? "write-after-write race" : "read-after-write race";
  if (is_write && (races_with(cell.read) || races_with(cell.other_read))) return "write-after-read race";

  const Stamp now{block.block,   block.phase,   block.warp_phase[thread.thread / kWarp],
                  thread.thread, thread.fences, is_atomic};
  if (is_write) {
    // whoever is ordered after this write is ordered after the reads before it
    cell = {now, {}, {}, false};
  } else {
    if (cell.read.exists() && !cell.read.same_thread(now)) cell.other_read = cell.read;
    cell.read = now;
  }
  return nullptr;
}

}  // namespace cuda_emulation
