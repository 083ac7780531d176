// The thread pool the CPU kernels run on. Declared here and defined on torch's side, so that kernels need no torch.
#pragma once

#include <cstdint>

namespace semckd {

// Calls body(begin, end, context) for disjoint ranges that together cover [0, size), each of `grain` items or more.
void parallel_ranges(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// How many ranges parallel_ranges makes at most.
int64_t parallel_threads();

// While one with `alone` lives, this thread's ranges run on it alone: for work so small that waking the others costs
// more than they take over.
class OnThisThread {
 public:
  explicit OnThisThread(bool alone);
  ~OnThisThread();
  OnThisThread(const OnThisThread&) = delete;
  OnThisThread& operator=(const OnThisThread&) = delete;

 private:
  bool before_;
};

template <class Body>
void parallel_for(int64_t size, int64_t grain, const Body& body) {
  parallel_ranges(
      size, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<Body*>(&body));
}

}  // namespace semckd
