#include "fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#if !defined(__x86_64__)
#error "the CUDA emulation switches stacks in x86-64 assembly: port semckd_switch_stack"
#endif

extern "C" {
// present where the address sanitizer is
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile*, size_t);
// saves the callee-saved registers and the stack pointer, and loads others
void semckd_switch_stack(void** save, void* load);
}

asm(R"(
.text
.globl semckd_switch_stack
.hidden semckd_switch_stack
.type semckd_switch_stack, @function
semckd_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size semckd_switch_stack, .-semckd_switch_stack
)");

namespace cuda_emulation {
namespace {

constexpr int kSavedRegisters = 6;
constexpr size_t kGuardBytes = 4096;

// the scheduler's side of a switch
void* scheduler_stack_pointer = nullptr;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack_bottom = nullptr;
size_t scheduler_stack_bytes = 0;

std::vector<char*>& spare_stacks() {
  static std::vector<char*> stacks;
  return stacks;
}

char* new_stack() {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* p = mmap(nullptr, Fiber::kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) {
    perror("cuda_emulation: no memory for a stack");
    abort();
  }
  mprotect(p, kGuardBytes, PROT_NONE);
  return static_cast<char*>(p) + kGuardBytes;
}

}  // namespace

Fiber::~Fiber() {
  if (stack_) spare_stacks().push_back(stack_);
}

void Fiber::start(void (*entry)()) {
  if (!stack_ && !spare_stacks().empty()) {
    stack_ = spare_stacks().back();
    spare_stacks().pop_back();
  }
  if (!stack_) stack_ = new_stack();
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack_, kStackBytes);
  auto** top = reinterpret_cast<void**>(stack_ + kStackBytes - 64);
  // a return address that is never used keeps the stack aligned as after a call
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  stack_pointer_ = top - kSavedRegisters;
}

void Fiber::resume() {
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack_, kStackBytes);
  semckd_switch_stack(&scheduler_stack_pointer, stack_pointer_);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
}

void Fiber::yield(bool finishes) {
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(finishes ? nullptr : &fake_stack_, scheduler_stack_bottom, scheduler_stack_bytes);
  semckd_switch_stack(&stack_pointer_, scheduler_stack_pointer);
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack_bottom, &scheduler_stack_bytes);
}

void Fiber::entered() {
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_bottom, &scheduler_stack_bytes);
}

}  // namespace cuda_emulation
