// __shared__ variables: thread-local memory of the kernel's module, which every block gets to see with its own
// contents.
#pragma once

#include <cstddef>
#include <vector>

namespace cuda_emulation {

// Where the variables of the module that is running lie. They have no initialiser, so only the part of the
// thread-local segment that starts as zeros is meant.
struct SharedSegment {
  unsigned char* begin = nullptr;
  size_t bytes = 0;

  // The segment of the module that `code` lies in.
  static SharedSegment of_module(const void* code);

  bool contains(const void* p) const { return begin <= p && p < begin + bytes; }
  void save(std::vector<unsigned char>& contents) const;
  void restore(const std::vector<unsigned char>& contents) const;
};

}  // namespace cuda_emulation
