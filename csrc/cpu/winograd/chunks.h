// Chunks of tiles, as the drivers of both Winograd convolutions cut them, and the memory of one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/sizes.h"
#include "cpu/winograd/winograd_kernels.h"

namespace semckd {

// tiles a chunk: whole register tiles of 12 or 6 rows. Larger chunks read U less often, but V, 16*chunk*K operands
// (36 of 4x4 tiles), leaves the second-level cache; of 2x2 tiles 24 to 96 are within 5% at 128 and 256 channels, at
// 1024 48 is 15% ahead of 96; of 4x4 tiles the forward is ahead of 24 by 1 to 17%, of 96 by 2 to 49%
constexpr int64_t kRowTile = 12, kChunkTiles = 48;
// a cache line; and a gap between two buffers, lest they share the sets of a cache
constexpr int64_t kAlignment = 64, kGap = 320;

// Tiles a chunk where there are `tiles`: chunks of about the same size, of at least one register tile.
inline int64_t chunk_size(int64_t tiles) {
  tiles = std::max<int64_t>(1, tiles);
  return round_up(ceil_div(tiles, ceil_div(tiles, kChunkTiles)), kRowTile);
}

// Of V or of the products of a chunk, with the gap behind it.
inline int64_t buffer_bytes(const OperandLayout& layout, int64_t element_bytes) {
  return round_up(layout.size() * element_bytes, kAlignment) + kGap;
}

}  // namespace semckd
