// What the Winograd loops read and write: vectors of channels in panels of scratch memory, and tiles of maps.
// Included only by winograd_kernels.cpp, so everything has internal linkage.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemm_bf16.h"
#include "cpu/isa/vec.h"
#include "cpu/winograd/winograd_kernels.h"

namespace semckd {
namespace {

#define SEMCKD_INLINE_LAMBDA __attribute__((always_inline))

template <class R>
constexpr int64_t kStep = kPanel<R>;

// The distance of two positions of a tile, behind an optimization barrier. A loop over tiles or rows would otherwise
// step a pointer for each of up to 36 positions, in memory, where an address is an addition.
SEMCKD_INLINE int64_t optimization_barrier(int64_t stride) {
  asm volatile("" : "+r"(stride));
  return stride;
}

// --- a vector of channels in panels, [channel panel][row][kPanel] -------------------------------------------------

template <class R, class Vec>
SEMCKD_INLINE void put(R* panels, int64_t panel_stride, int64_t row, int64_t c, Vec v) {
  store(panels + c / kPanel<R> * panel_stride + row * kPanel<R> + c % kPanel<R>, v);
}
template <class Vec, class R>
SEMCKD_INLINE Vec get(const R* panels, int64_t panel_stride, int64_t row, int64_t c) {
  return load(panels + c / kPanel<R> * panel_stride + row * kPanel<R> + c % kPanel<R>);
}
// rows `row` (even) and `row` + 1: operands whose rows are summed over
template <class R, class Vec>
SEMCKD_INLINE void put_pair(R* panels, int64_t panel_stride, int64_t row, int64_t c, Vec even, Vec odd) {
  put(panels, panel_stride, row, c, even);
  put(panels, panel_stride, row + 1, c, odd);
}

#if defined(__AVX512BF16__)
SEMCKD_INLINE void put(BFloat16* panels, int64_t panel_stride, int64_t row, int64_t c, F32s v) {
  store_rounded(panels + c / kBf16Panel * panel_stride + row * kBf16Panel + c % kBf16Panel, v);
}
SEMCKD_INLINE void put_pair(BFloat16* panels, int64_t panel_stride, int64_t row, int64_t c, F32s even, F32s odd) {
  store_rounded_pair(panels + c / kBf16Panel * panel_stride + row * kBf16Panel + 2 * (c % kBf16Panel), even, odd);
}
#endif

// --- tiles of maps ------------------------------------------------------------------------------------------------

// Walks over tiles; divides once.
struct Walker {
  const TileGrid& grid;
  int64_t rows, columns;
  int64_t b, y, x;

  Walker(const TileGrid& grid, int64_t tile)
      : grid(grid),
        rows(grid.rows()),
        columns(grid.columns()),
        b(tile / (rows * columns)),
        y(tile / columns % rows),
        x(tile % columns) {}
  void next() {
    if (++x < columns) return;
    x = 0;
    if (++y < rows) return;
    y = 0;
    ++b;
  }
};

// The first elements of the pixels of the walker's tile of M x M, made kMargin wider on each side; -1 outside the map.
template <int M, int kMargin>
struct Square {
  static constexpr int N = M + 2 * kMargin;
  int64_t offset[N][N];

  Square() = default;
  static Square outside() {
    Square square;
    for (auto& row : square.offset)
      for (int64_t& offset : row) offset = -1;
    return square;
  }

  explicit Square(const Walker& at) {
    const TileGrid& grid = at.grid;
    for (int i = 0; i < N; ++i)
      for (int j = 0; j < N; ++j) {
        const int64_t y = M * at.y - kMargin + i, x = M * at.x - kMargin + j;
        const bool inside = y >= 0 && y < grid.h && x >= 0 && x < grid.w;
        offset[i][j] = inside ? ((at.b * grid.h + y) * grid.w + x) * grid.K : -1;
      }
  }
};

// Lanes of one vector of channels: `count` of them, all where kFull.
template <bool kFull, class T>
SEMCKD_INLINE AccVec<T> load_lanes(const T* p, int64_t count) {
  if constexpr (kFull) return load(p);
  return load_first<T, AccVec<T>>(p, count);
}

template <class T>
struct PlainMap {
  using Vec = AccVec<T>;
  const T* x;

  explicit PlainMap(const MapSource& source) : x(static_cast<const T*>(source.x)) {}
  template <bool kFull>
  struct Channels {
    const T* x;
    int64_t count;
    Channels(const PlainMap& map, int64_t c, int64_t count) : x(map.x + c), count(count) {}
    SEMCKD_INLINE Vec pixel(int64_t offset) const { return load_lanes<kFull>(x + offset, count); }
    SEMCKD_INLINE void prefetch(int64_t offset) const { __builtin_prefetch(x + offset); }
  };
};

// a*x + b*z + c
template <class T>
struct CombinedMap {
  using Vec = AccVec<T>;
  using R = AccType<T>;
  const T *x, *z;
  const R *a, *b, *c;

  explicit CombinedMap(const MapSource& source)
      : x(static_cast<const T*>(source.x)),
        z(static_cast<const T*>(source.z)),
        a(static_cast<const R*>(source.a)),
        b(static_cast<const R*>(source.b)),
        c(static_cast<const R*>(source.c)) {}
  template <bool kFull>
  struct Channels {
    const T *x, *z;
    Vec a, b, c;
    int64_t count;
    Channels(const CombinedMap& map, int64_t first, int64_t count)
        : x(map.x + first),
          z(map.z + first),
          a(load_lanes<kFull>(map.a + first, count)),
          b(load_lanes<kFull>(map.b + first, count)),
          c(load_lanes<kFull>(map.c + first, count)),
          count(count) {}
    SEMCKD_INLINE Vec pixel(int64_t offset) const {
      return a * load_lanes<kFull>(x + offset, count) + (b * load_lanes<kFull>(z + offset, count) + c);
    }
    SEMCKD_INLINE void prefetch(int64_t offset) const {
      __builtin_prefetch(x + offset);
      __builtin_prefetch(z + offset);
    }
  };
};

// load(i, j) of a square's pixels, for transform_2d
template <class Channels, class Square>
struct Pixels {
  const Channels& channels;
  const Square& square;
  SEMCKD_INLINE auto operator()(int i, int j) const {
    using Vec = decltype(channels.pixel(0));
    return square.offset[i][j] < 0 ? Vec{} : channels.pixel(square.offset[i][j]);
  }
};

// Asks for the pixels of a square that is next, but for its first columns, which this one has read. Those of a vector
// of channels lie too far apart for hardware to prefetch them.
template <int kSkipped, class Channels, class Square>
SEMCKD_INLINE void prefetch(const Channels& channels, const Square& square) {
#pragma GCC unroll 6
  for (int i = 0; i < Square::N; ++i)
#pragma GCC unroll 6
    for (int j = kSkipped; j < Square::N; ++j) channels.prefetch(square.offset[i][j]);
}

// Calls body(Full<kFull>, c, count) for every vector of `channels` channels, of which K are there.
template <bool kIsFull>
struct Full {
  static constexpr bool value = kIsFull;
};
template <class R, class Body>
SEMCKD_INLINE void for_each_vector(int64_t K, int64_t channels, const Body& body) {
  int64_t c = 0;
  for (; c + kLanes<R> <= K; c += kLanes<R>) body(Full<true>{}, c, kLanes<R>);
  for (; c < channels; c += kLanes<R>) body(Full<false>{}, c, c < K ? K - c : 0);
}

}  // namespace
}  // namespace semckd
