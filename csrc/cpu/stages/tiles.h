// What the drivers of the criterion's CPU kernels share: tiles, packed weights, and how rows are shared out.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/sizes.h"
#include "cpu/stages/stage_kernels.h"

namespace semckd {

template <class R>
const TileKernels<R>& tile_kernels(DType map);
template <>
inline const TileKernels<float>& tile_kernels<float>(DType map) {
  return stage_kernels().fp32[index_of(map)];
}
template <>
inline const TileKernels<double>& tile_kernels<double>(DType) {
  return stage_kernels().fp64;
}

// Of weights, which have the accumulation type.
template <class R>
const TileKernels<R>& acc_kernels() {
  return tile_kernels<R>(sizeof(R) == sizeof(double) ? DType::kFloat64 : DType::kFloat32);
}

// Elements from a tile's row to the next. The gap keeps rows of 2^n bytes out of each other's cache sets.
template <class R>
int64_t row_stride(int64_t channels) {
  return round_up(channels, kGroup<R>) + 64 / static_cast<int64_t>(sizeof(R));
}

// A tile of its own for every thread of a parallel range.
template <class R>
struct Tile {
  explicit Tile(int64_t channels) : stride(row_stride<R>(channels)), memory(kTileRows<R> * stride) {}
  R* get() const { return memory.get(); }
  int64_t stride;
  Scratch<R> memory;
};

// The right factor of a product, element (k, n) = source[k * k_stride + n * n_stride], packed by all threads.
class Packed {
 public:
  template <class R>
  Packed(const TileKernels<R>& kernels, const R* source, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N)
      : memory_(round_up(K, kernels.panel) * round_up(N, kernels.panel) * kernels.operand_bytes) {
    const int64_t panels = ceil_div(N, kernels.panel), grain = ceil_div(kGrain, K * kernels.panel + 1);
    parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
      const int64_t n = begin * kernels.panel;
      kernels.pack(source + n * n_stride, k_stride, n_stride, K, std::min(N, end * kernels.panel) - n,
                   memory_.get() + n * round_up(K, kernels.panel) * kernels.operand_bytes);
    });
  }
  const void* get() const { return memory_.get(); }

 private:
  // elements; half of it takes about as long as waking a thread
  static constexpr int64_t kGrain = 32768;
  Scratch<unsigned char> memory_;
};

// Rows in equal runs, one a partial sum. Their number follows from sizes alone, so that sums come out the same on any
// number of threads.
struct Chunks {
  int64_t P, rows, count;

  // slot_bytes: what one partial sum takes
  Chunks(int64_t P, int64_t slot_bytes) : P(P) {
    // below 256 rows a matrix of partial sums costs more than what is added to it; 16 of them, or 16 MiB if that is
    // more, are shared out evenly by the usual numbers of threads
    const int64_t most = std::clamp<int64_t>((int64_t{16} << 20) / std::max<int64_t>(1, slot_bytes), 16, 128);
    const int64_t wanted = std::clamp<int64_t>(P / 256, 1, most);
    rows = round_up(std::max<int64_t>(1, ceil_div(P, wanted)), 12);
    count = ceil_div(P, rows);
  }
  int64_t begin(int64_t chunk) const { return chunk * rows; }
  int64_t end(int64_t chunk) const { return std::min(P, (chunk + 1) * rows); }
};

// body(rows) for the tiles of rows begin, begin + 1, ..., end - 1
template <class R, class Body>
void for_each_tile(int64_t begin, int64_t end, const Body& body) {
  for (int64_t row = begin; row < end; row += kTileRows<R>) body(RowSpan{row, std::min(kTileRows<R>, end - row)});
}

// body(begin, end) for runs of rows that together are 0, ..., P - 1: whole register tiles, so that threads get as good
// as equally many
template <class R, class Body>
void parallel_rows(int64_t P, const Body& body) {
  constexpr int64_t kUnit = 12;
  parallel_for(ceil_div(P, kUnit), kTileRows<R> / kUnit,
               [&](int64_t begin, int64_t end) { body(begin * kUnit, std::min(P, end * kUnit)); });
}

// One run of `size` sums for every chunk, and their sum in order.
template <class T>
class Slots {
 public:
  Slots(const Chunks& chunks, int64_t size) : count_(chunks.count), size_(size), memory_(count_ * size) {}
  // to be called by the thread that fills it
  T* zeroed(int64_t chunk) const {
    T* slot = memory_.get() + chunk * size_;
    std::memset(slot, 0, size_ * sizeof(T));
    return slot;
  }
  const T* get(int64_t chunk) const { return memory_.get() + chunk * size_; }
  // to[i] = sum over chunks of slot[first + i]
  template <class To>
  void sum(int64_t first, int64_t count, To* to) const {
    std::fill_n(to, count, To(0));
    for (int64_t chunk = 0; chunk < count_; ++chunk) {
      const T* slot = get(chunk) + first;
      for (int64_t i = 0; i < count; ++i) to[i] += static_cast<To>(slot[i]);
    }
  }

 private:
  int64_t count_, size_;
  Scratch<T> memory_;
};

// matrix [M, N] = sum over chunks of the slots' [*, row_length] matrices
template <class R>
void sum_matrices(const Slots<R>& slots, int64_t row_length, int64_t M, int64_t N, R* matrix) {
  parallel_for(M, ceil_div(4096, N + 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) slots.sum(m * row_length, N, matrix + m * N);
  });
}

// What lies above a matrix's diagonal, below it.
template <class R>
void mirror(R* matrix, int64_t N) {
  parallel_for(N, ceil_div(4096, N + 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      for (int64_t n = 0; n < m; ++n) matrix[m * N + n] = matrix[n * N + m];
  });
}

// matrix [N, N], on and above the diagonal: sum of r r^T over P rows. load(rows, tile) fills a tile with some of them;
// `chain` rows at a time are summed before they are added.
template <class R, class Load>
void upper_gram(const TileKernels<R>& kernels, int64_t P, int64_t N, int64_t chain, const Load& load, R* matrix) {
  const int64_t padded = round_up(N, kernels.panel);
  const Chunks chunks(P, padded * padded * sizeof(R));
  const Slots<R> slots(chunks, padded * padded);
  parallel_for(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Tile<R> tile(N);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      R* slot = slots.zeroed(chunk);
      for_each_tile<R>(chunks.begin(chunk), chunks.end(chunk), [&](RowSpan rows) {
        load(rows, tile);
        for (int64_t i = 0; i < rows.count; i += chain) {
          const R* first = tile.get() + i * tile.stride;
          const TileColumns<R> columns{first, tile.stride, N};
          kernels.row_sums(columns, columns, std::min(chain, rows.count - i), slot, padded, true);
        }
      });
    }
  });
  sum_matrices(slots, padded, N, N, matrix);
}

// vector [N] = sum over chunks in double
template <class R>
void sum_vectors(const Slots<double>& slots, int64_t first, int64_t N, R* vector) {
  Scratch<double> sum(N);
  slots.sum(first, N, sum.get());
  std::copy_n(sum.get(), N, vector);
}

}  // namespace semckd
