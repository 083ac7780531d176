// Stacks and the switch between them. The address sanitizer is told of every switch where it is present.
#pragma once

#include <cstddef>

namespace cuda_emulation {

class Fiber {
 public:
  static constexpr size_t kStackBytes = size_t(256) << 10;

  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Prepares to call entry() on a stack of its own; entry must not return.
  void start(void (*entry)());
  // From the scheduler into the fiber, until it yields.
  void resume();
  // From the fiber back into the scheduler. A fiber that finishes is not resumed again.
  void yield(bool finishes = false);
  // To be called first thing in entry().
  static void entered();

  bool owns(const void* p) const { return stack_ <= p && p < stack_ + kStackBytes; }

 private:
  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;  // the address sanitizer's
  char* stack_ = nullptr;
};

}  // namespace cuda_emulation
