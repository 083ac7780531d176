// The ragged list of pairs as kernels see it: a table passed by value, and the chunk of it that a block works on.
#pragma once

#include <algorithm>

#include "core/pair_list.h"
#include "cuda/platform.cuh"

namespace semckd {

// 88 bytes a pair; pair_loss_kernels a kernel 500 bytes for its other parameters
constexpr int kMaxPairs = 40;
// 16 elements a thread: a block that starts must have enough to do to pay for finding its pair
constexpr int64_t kMinChunk = 4096;
// a thread of the largest chunk adds 4096 squares one after the other, which keeps an fp32 sum within 1e-6
constexpr int64_t kMaxChunk = int64_t(1) << 20;
// about ten blocks for each that a large GPU holds at a time: the last ones to run leave a small tail idle
constexpr int64_t kTargetBlocks = 16384;
// chunks begin at multiples of this: all samples of a pair that are aligned stay so
constexpr int64_t kChunkAlignment = 64;
constexpr int64_t kMaxBlocks = 0x7fffffff;

struct TableEntry {
  Pair pair;
  int32_t q;
  int32_t chunk;   // elements of a sample that a block takes; the last block of a sample may have fewer
  int32_t chunks;  // blocks a sample
  uint32_t first_block;
};

struct PairTable {
  TableEntry entry[kMaxPairs];
  int32_t pairs;
  uint32_t blocks;

  bool add(const Pair& pair, int32_t q, int64_t B, int64_t max_chunk);
};

// The table's entry that a block belongs to.
__device__ __forceinline__ const TableEntry& find_entry(const PairTable& table) {
  int first = 0, last = table.pairs - 1;
  while (first < last) {
    const int middle = (first + last + 1) / 2;
    if (table.entry[middle].first_block <= blockIdx.x) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return table.entry[first];
}

// One block's share: `count` consecutive elements of sample b of a pair. Pointers are formed when they are asked for:
// held from the start they would cost registers that the work before the first access needs.
template <class S, class T>
struct Chunk {
  const TableEntry& entry;
  int64_t b;
  int32_t index;  // of the entry.chunks of its sample
  int32_t count;

  __device__ __forceinline__ explicit Chunk(const PairTable& table) : entry(find_entry(table)) {
    const uint32_t block = blockIdx.x - entry.first_block;
    b = block / entry.chunks;
    index = static_cast<int32_t>(block % entry.chunks);
    const int64_t left = entry.pair.N - begin();
    count = static_cast<int32_t>(left < entry.chunk ? left : entry.chunk);
  }

  __device__ __forceinline__ int64_t begin() const { return int64_t(index) * entry.chunk; }
  __device__ __forceinline__ const S* s() const {
    return static_cast<const S*>(entry.pair.s) + b * entry.pair.s_stride + begin();
  }
  __device__ __forceinline__ const T* t() const {
    return static_cast<const T*>(entry.pair.t) + b * entry.pair.t_stride + begin();
  }
  // null where the gradient is not asked for
  __device__ __forceinline__ S* d_s() const {
    S* base = static_cast<S*>(entry.pair.d_s);
    return base == nullptr ? base : base + b * entry.pair.d_s_stride + begin();
  }
  __device__ __forceinline__ T* d_t() const {
    T* base = static_cast<T*>(entry.pair.d_t);
    return base == nullptr ? base : base + b * entry.pair.d_t_stride + begin();
  }
};

inline int64_t chunks_per_sample(int64_t N, int64_t max_chunk) { return (N + max_chunk - 1) / max_chunk; }

inline int64_t total_chunks(const PairList& list, int64_t max_chunk) {
  int64_t chunks = 0;
  for (int32_t q = 0; q < list.Q; ++q) chunks += list.B * chunks_per_sample(list.pair[q].N, max_chunk);
  return chunks;
}

// The smallest power of two that keeps the number of blocks at kTargetBlocks.
inline int64_t choose_max_chunk(const PairList& list) {
  int64_t chunk = kMinChunk;
  while (chunk < kMaxChunk && total_chunks(list, chunk) > kTargetBlocks) chunk *= 2;
  return chunk;
}

// False where the pair needs more buffer than is left, in entries or in the blocks of one launch.
inline bool PairTable::add(const Pair& pair, int32_t q, int64_t B, int64_t max_chunk) {
  const int64_t chunks = chunks_per_sample(pair.N, max_chunk);
  if (pairs == kMaxPairs || chunks > (kMaxBlocks - blocks) / B) return false;
  // equal shares: a sample a little longer than a chunk makes no short second one
  const int64_t share = (pair.N + chunks - 1) / chunks;
  const int64_t chunk = (share + kChunkAlignment - 1) / kChunkAlignment * kChunkAlignment;
  const int64_t used = chunks_per_sample(pair.N, chunk);
  entry[pairs++] = {pair, q, static_cast<int32_t>(chunk), static_cast<int32_t>(used), blocks};
  blocks += static_cast<uint32_t>(B * used);
  return true;
}

// Calls launch_table(table, s_dtype, t_dtype, is_last) for as few tables as can hold all pairs, one combination of
// types each. Stops at the first error.
template <class F>
cudaError_t for_each_table(const PairList& list, int64_t max_chunk, const F& launch_table) {
  PairTable table;
  int32_t left = list.Q;
  for (int32_t first = 0; left > 0; ++first) {
    const DType s_dtype = list.pair[first].s_dtype, t_dtype = list.pair[first].t_dtype;
    const auto same_types = [&](const Pair& pair) { return pair.s_dtype == s_dtype && pair.t_dtype == t_dtype; };
    // a combination is served when its first pair comes up
    if (std::any_of(list.pair, list.pair + first, same_types)) continue;
    table.pairs = 0;
    table.blocks = 0;
    for (int32_t q = first; q < list.Q; ++q) {
      if (!same_types(list.pair[q])) continue;
      if (!table.add(list.pair[q], q, list.B, max_chunk)) {
        // a pair that does not fit into an empty table has 2^31 samples or more
        if (table.pairs == 0) return cudaErrorInvalidValue;
        if (const cudaError_t error = launch_table(table, s_dtype, t_dtype, false)) return error;
        table.pairs = 0;
        table.blocks = 0;
        --q;
        continue;
      }
      --left;
    }
    if (const cudaError_t error = launch_table(table, s_dtype, t_dtype, left == 0)) return error;
  }
  return cudaSuccess;
}

}  // namespace semckd
