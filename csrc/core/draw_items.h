// Work whose items take different times: threads draw the next one as they finish.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "core/parallel.h"

namespace semckd {

// Calls body(item, slot) for every item; the threads draw items one by one, and no two use a slot at a time.
template <class Body>
void draw_items(int64_t items, const Body& body) {
  std::atomic<int64_t> next{0};
  parallel_for(std::min(items, parallel_threads()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot)
      for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) body(item, slot);
  });
}

}  // namespace semckd
