// The compiler puts a call before every memory access (-fsanitize=thread); the functions called are defined here, in
// place of the thread sanitizer's. They tell a thread's own stack from shared and device memory, count traffic, and
// check for races and for reads of what nobody wrote. Never compile this file with that flag.
#include "observer.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "device_memory.h"
#include "scheduler.h"

namespace cuda_emulation {
namespace {

bool instrumented = false;

// File and line of a code address; module and offset where addr2line does not know. Of inlined functions the innermost
// one that is not an intrinsic counts.
std::string source_line(const void* code) {
  Dl_info info{};
  if (!dladdr(code, &info)) return "an unknown place";
  // the address is that of the instruction behind the call
  const auto offset = static_cast<size_t>(static_cast<const char*>(code) - static_cast<char*>(info.dli_fbase)) - 1;
  char text[512];
  snprintf(text, sizeof text, "addr2line -i -e '%s' 0x%zx 2>/dev/null", info.dli_fname, offset);
  std::string line;
  if (FILE* pipe = popen(text, "r")) {
    do {
      line.clear();
      if (fgets(text, sizeof text, pipe)) line.assign(text, strcspn(text, "\n"));
    } while (line.find("cuda_emulation.h:") != std::string::npos);
    pclose(pipe);
  }
  if (!line.empty() && line[0] != '?') return line;
  snprintf(text, sizeof text, "%s+0x%zx", info.dli_fname, offset);
  return text;
}

struct Access {
  const void* p;
  size_t bytes;
  bool is_write;
  bool is_atomic;
  const void* code;
  Where where;  // of an intrinsic; otherwise found by `code`

  std::string place() const { return where.file ? where.file + (":" + std::to_string(where.line)) : source_line(code); }
};

void check_byte(const Access& access, AccessCell& cell, bool written, const char* space) {
  Block& block = *current_thread->block;
  if ((!access.is_write || access.is_atomic) && !written)
    fail("uninitialised read of %s memory at %s", space, access.place().c_str());
  if (access.is_write && cell.read_only)
    fail("store to %s memory that this kernel loads as read-only, at %s", space, access.place().c_str());
  Stamp other;
  const char* race = current_launch->races.access(cell, block.history, current_thread->history, access.is_write,
                                                  access.is_atomic, other);
  if (race) {
    fail("%s in %s memory with block %u thread %u, at %s", race, space, other.block, unsigned(other.thread),
         access.place().c_str());
  }
}

void check_shared(const Access& access, std::vector<AccessCell>& cells, size_t offset) {
  for (size_t i = offset; i < offset + access.bytes && i < cells.size(); ++i)
    check_byte(access, cells[i], cells[i].write.exists(), "shared");
}

// Whether other lanes of the warp have loaded the same address by the same instruction: that is one transaction. A lane
// that comes back to it executes the instruction anew.
bool is_broadcast(const Access& access) {
  unsigned& lanes = current_thread->block->loads[{access.code, access.p, current_thread->first_of_warp()}];
  const unsigned lane = 1u << current_thread->lane();
  const bool is_new = lanes == 0 || (lanes & lane) != 0;
  lanes = is_new ? lane : lanes | lane;
  return !is_new;
}

void observe_device_memory(const Access& access, Allocation& allocation) {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(access.p) - allocation.data());
  if (!allocation.contains(access.p, access.bytes))
    fail("access outside a buffer of %zu bytes at %s", allocation.bytes(), access.place().c_str());
  if (access.is_atomic || (!access.is_write && !is_broadcast(access))) allocation.count(offset, access.bytes, false);
  if (access.is_write) allocation.count(offset, access.bytes, true);
  for (size_t i = offset; options().check_races && i < offset + access.bytes; ++i)
    check_byte(access, allocation.cell(i), allocation.written(i), "device");
  if (access.is_write) allocation.mark_written(offset, access.bytes);
}

void observe(const Access& access) {
  if (!current_thread || current_launch->failed || current_thread->fiber.owns(access.p)) return;
  Block& block = *current_thread->block;
  const auto* p = static_cast<const unsigned char*>(access.p);
  const SharedSegment& segment = current_launch->segment;
  const unsigned char* dynamic = block.dynamic.data();
  if (segment.contains(p)) {
    check_shared(access, block.history.shared_cells, static_cast<size_t>(p - segment.begin));
  } else if (dynamic <= p && p < dynamic + block.dynamic.size()) {
    check_shared(access, block.history.dynamic_cells, static_cast<size_t>(p - dynamic));
  } else if (Allocation* allocation = find_allocation(p)) {
    observe_device_memory(access, *allocation);
  } else {
    // kernel parameters and built-in variables
    return;
  }
  maybe_preempt(16);
}

}  // namespace

bool observes_accesses() { return instrumented; }

void fence() {
  if (instrumented) current_launch->races.fence(current_thread->block->history, current_thread->history);
  maybe_preempt(2);
}

void before_atomic(const void* p, size_t bytes, Where where) {
  maybe_preempt(2);
  if (!instrumented) return;
  observe({p, bytes, true, true, nullptr, where});
  current_launch->races.before_atomic(current_thread->block->history, current_thread->history, p);
}

void after_atomic(const void* p) {
  if (instrumented) current_launch->races.after_atomic(current_thread->history, p);
  maybe_preempt(2);
}

void before_read_only_load(const void* p, size_t bytes) {
  Allocation* allocation = instrumented && options().check_races ? find_allocation(p) : nullptr;
  if (!allocation || !allocation->contains(p, bytes)) return;
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - allocation->data());
  for (size_t i = offset; i < offset + bytes; ++i) {
    AccessCell& cell = allocation->cell(i);
    if (cell.write.exists())
      fail("read-only load of memory that this kernel writes, at %s", source_line(__builtin_return_address(0)).c_str());
    cell.read_only = true;
  }
}

}  // namespace cuda_emulation

extern "C" {

void __tsan_init() { cuda_emulation::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}

#define DEFINE_OBSERVER(name, bytes, is_write) \
  void name(void* p) { cuda_emulation::observe({p, bytes, is_write, false, __builtin_return_address(0), {}}); }
#define DEFINE_OBSERVERS(bytes)                               \
  DEFINE_OBSERVER(__tsan_read##bytes, bytes, false)           \
  DEFINE_OBSERVER(__tsan_write##bytes, bytes, true)           \
  DEFINE_OBSERVER(__tsan_unaligned_read##bytes, bytes, false) \
  DEFINE_OBSERVER(__tsan_unaligned_write##bytes, bytes, true)
DEFINE_OBSERVERS(1)
DEFINE_OBSERVERS(2)
DEFINE_OBSERVERS(4)
DEFINE_OBSERVERS(8)
DEFINE_OBSERVERS(16)

void __tsan_read_range(void* p, long bytes) {
  cuda_emulation::observe({p, size_t(bytes), false, false, __builtin_return_address(0), {}});
}
void __tsan_write_range(void* p, long bytes) {
  cuda_emulation::observe({p, size_t(bytes), true, false, __builtin_return_address(0), {}});
}

}  // extern "C"
