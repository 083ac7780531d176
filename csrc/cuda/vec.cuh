// 16-byte accesses. Every access to device memory in this file must compile to 128 bits: python_tests/resources looks.
#pragma once

#include <cstring>

#include "cuda/platform.cuh"

namespace semckd {

// V consecutive elements in registers: one 16-byte access, or two where the other map of a pair is half as wide.
template <class T, int V>
struct alignas(16) Pack {
  static_assert(V * sizeof(T) % 16 == 0);
  static constexpr int kAccesses = V * sizeof(T) / 16;
  T v[V];
};

enum class Access {
  kReadOnly,  // nothing writes the buffer while the kernel runs: the non-coherent path may serve it
  kMayAlias   // the kernel may write these very elements later, as an in-place backward pass does
};

template <Access access, int V, class T>
__device__ __forceinline__ Pack<T, V> load(const T* p) {
  Pack<T, V> pack;
  uint4 raw[Pack<T, V>::kAccesses];
#pragma unroll
  for (int i = 0; i < Pack<T, V>::kAccesses; ++i) {
    const uint4* from = reinterpret_cast<const uint4*>(p) + i;
    raw[i] = access == Access::kReadOnly ? __ldg(from) : *from;
  }
  memcpy(&pack, raw, sizeof(pack));
  return pack;
}

template <int V, class T>
__device__ __forceinline__ void store(T* p, const Pack<T, V>& pack) {
  uint4 raw[Pack<T, V>::kAccesses];
  memcpy(raw, &pack, sizeof(pack));
#pragma unroll
  for (int i = 0; i < Pack<T, V>::kAccesses; ++i) reinterpret_cast<uint4*>(p)[i] = raw[i];
}

// A run of elements cut into packs of V that are aligned in every buffer, and single elements before and after.
template <int V>
struct Split {
  int head;    // elements before the first pack
  int packed;  // elements in packs
  int count;

  __device__ __forceinline__ int packs() const { return packed / V; }
  __device__ __forceinline__ int singles() const { return count - packed; }
  // the position of the i-th pack, and of the i-th single element
  __device__ __forceinline__ int pack(int i) const { return head + i * V; }
  __device__ __forceinline__ int single(int i) const { return i < head ? i : i + packed; }
};

// Whether element `head` of p is aligned; a null pointer stands for a buffer that is not accessed.
template <class T>
__device__ __forceinline__ bool aligned_from(int head, const T* p) {
  return p == nullptr || (reinterpret_cast<uintptr_t>(p) + head * sizeof(T)) % 16 == 0;
}

// The split of `count` elements of buffers that may all be equally misaligned; without packs where they are not.
// V is the number of elements that fill 16 bytes in the narrowest of them.
template <int V, class... P>
__device__ __forceinline__ Split<V> split_aligned(int count, const P*... p) {
  // the distance to the next aligned element, from a buffer of the narrowest type
  int head = 0;
  const auto consider = [&](const auto* x) {
    if (sizeof(*x) * V == 16 && x != nullptr) {
      head = static_cast<int>(-reinterpret_cast<uintptr_t>(x) % 16 / sizeof(*x));
    }
  };
  (consider(p), ...);
  if (!(aligned_from(head, p) && ...) || head >= count) return {count, 0, count};
  return {head, (count - head) / V * V, count};
}

}  // namespace semckd
