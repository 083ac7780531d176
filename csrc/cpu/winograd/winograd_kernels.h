// The inner loops of the Winograd convolution, compiled once per instruction set (winograd_kernels.cpp) and chosen
// at run time (isa/isa.h). Drivers in winograd.cpp cut the work into the pieces that these loops take.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cpu/isa/isa.h"

namespace semckd {

// B maps of h x w pixels and K channels.
struct MapShape {
  int64_t B, h, w, K;
};

// Maps covered by square tiles of `tile` pixels a side, which may hang over the lower and right edge. Tiles are
// numbered row by row, image by image.
struct TileGrid : MapShape {
  int64_t tile;
  int64_t rows() const { return (h + tile - 1) / tile; }
  int64_t columns() const { return (w + tile - 1) / tile; }
  int64_t tiles() const { return B * rows() * columns(); }
  // of a transformed tile
  int64_t positions() const { return (tile + 2) * (tile + 2); }
  int64_t products() const { return tiles() * positions(); }
};

struct TileRange {
  int64_t begin, count;
};

// What the transforms read: the map x, or, where z is given, a*x + b*z + c per channel. Zero outside the map.
struct MapSource {
  const void *x, *z;      // rows [B, h, w, K] of the map type
  const void *a, *b, *c;  // [K] of the accumulation type
};

// A tensor [rows, columns, 3, 3] of the accumulation type; strides in elements, of either sign.
struct KernelView {
  void* data;
  int64_t row, column;  // the channel that is summed over, and the one that is not
  int64_t y, x;
  int64_t rows, columns;

  // from the first tap to the n-th, line by line
  int64_t tap(int n) const { return n / 3 * y + n % 3 * x; }
};

// Of the pixels of one chunk and channel: how many, their mean, their squared deviations from it.
struct Moments {
  double count, mean, m2;
};

// What a result becomes on its way out; null where there is none.
struct Epilogue {
  const void* bias;      // [K] of the accumulation type
  const void* residual;  // rows [B, h, w, K] of the map type
  bool relu;
};

// How `tiles` transformed tiles lie: [position][channel panel][tile][panel], in elements.
struct OperandLayout {
  int64_t tiles, channels, panel, skew, positions;

  // keeps positions from lying a multiple of a page apart: those of a channel would share the sets of a cache
  static constexpr int64_t kSkewBytes = 320;
  static OperandLayout of(int64_t tiles, int64_t channels, int64_t panel, int64_t element_bytes, int64_t positions) {
    return {tiles, channels, panel, kSkewBytes / element_bytes, positions};
  }

  int64_t panel_stride() const { return tiles * panel; }
  int64_t position_stride() const { return tiles * channels + skew; }
  int64_t size() const { return positions * position_stride(); }
};

// Rows `first`, ..., `first` + `rows` - 1 of a step of columns of U, [column panel][position][row][panel].
struct KernelRows {
  void* data;
  int64_t first, rows;
  int64_t position_stride;  // in elements
};

// A block of dU, [position][column panel][row][panel].
struct GradientBlock {
  void* data;
  int64_t first_row, rows, first_column, columns;
  int64_t position_stride;  // in elements
};

// The loops for one type of map and one size of tile. `operand` is the type that products take, `acc` the one they are
// summed in.
struct WinogradKernel {
  int64_t tile;
  int64_t panel, step;  // channels a panel, and a step: channels are padded to whole steps
  int64_t operand_bytes, acc_bytes;

  // U of the step of columns from `column` on, kKernelRows rows from `row` on
  void (*transform_kernel)(const KernelView& weight, int64_t row, int64_t column, const KernelRows& U);

  // V of a chunk of tiles
  void (*transform_input)(const TileGrid& grid, const MapSource& source, TileRange tiles, const OperandLayout& layout,
                          void* V);

  // products of a step of columns (+)= V of `tiles` tiles times some rows of the step's U
  void (*multiply_step)(const OperandLayout& layout, int64_t tiles, const void* V, const KernelRows& U, void* products,
                        bool accumulate);

  // a step of columns from `column` on of a chunk's result, from its products. moments [K]: those of the result, or
  // null
  void (*write_step)(const TileGrid& grid, TileRange tiles, const OperandLayout& layout, const void* products,
                     int64_t column, void* out, Moments* moments);

  // The same of relu(result + bias + residual), where these are wanted
  void (*finish_step)(const TileGrid& grid, TileRange tiles, const OperandLayout& layout, const void* products,
                      int64_t column, const Epilogue& epilogue, void* out);

  // The weight gradient's operands of tiles that begin at row `first` of a group: B^T h B and A d_z A^T
  void (*transform_pairs)(const TileGrid& grid, const MapSource& h, const MapSource& d_z, TileRange tiles,
                          const OperandLayout& layout, int64_t first, void* V, void* Z);

  // dU[position] of a step of rows from `row` on, columns of the block, (+)= Z^T V over `tiles` tiles
  void (*sum_products)(const OperandLayout& layout, int64_t tiles, int64_t position, int64_t row, const void* Z,
                       const void* V, bool accumulate, const GradientBlock& dU);

  // `rows` rows from `row` on of d_weight's step of columns from `column` on, from the sum of `slots` dU in a row
  void (*finish_gradient)(const GradientBlock& dU, int64_t slots, int64_t row, int64_t rows, int64_t column,
                          const KernelView& d_weight);
};

// rows that transform_kernel takes at a time: their taps, 9 * 16 * 32 floats, stay in the first-level cache
constexpr int64_t kKernelRows = 16;

struct WinogradKernels {
  // indexed by DType; of bf16 maps, operands are rounded to bf16 only where there are units for it
  WinogradKernel small_tiles[kDTypes], large_tiles[kDTypes];
  WinogradKernel bf16_exact;  // bf16 maps whose operands stay fp32, small tiles
};

SEMCKD_DECLARE_ISA_TABLES(WinogradKernels, winograd_kernels)

}  // namespace semckd
