// What the criterion's CPU kernels do with one tile of rows, compiled once per instruction set (stage_kernels.cpp)
// and chosen at run time (isa/isa.h). Maps come as their base pointer, their type is the table's; R is the accumulation
// type.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "cpu/isa/isa.h"

namespace semckd {

// Rows of a tile at most. A tile of 1024 channels is 400 KiB, so that it, what comes of it and a panel of weights share
// an L2 cache of 1 MiB; 96 is a multiple of the rows of every micro-kernel (12 or 6), so that none is left over.
template <class R>
constexpr int64_t kTileRows = 96 * sizeof(float) / sizeof(R);

// Channels of a row in a tile are padded with zeros to a multiple of this: of every instruction set's panels and of the
// vectors that rows are read in.
template <class R>
constexpr int64_t kGroup = 128 / sizeof(R);

// Rows of a map: first, first + 1, ...
struct RowSpan {
  int64_t first, count;
};

// The first `count` channels of a tile's rows.
template <class T>
struct TileColumns {
  const T* data;
  int64_t stride, count;
};

// tile x panels: the factors of a product of operands, `channels` deep and N wide.
struct TileProduct {
  const void* tile;
  int64_t stride, channels;
  const void* panels;
  int64_t N;
};

// Sums over rows of a map's gradient d, and of d * (z - mean).
struct GradientSums {
  double *d, *dz;
};

// Tiles are [rows.count][stride]. None of the sums over a tile is longer than kTileRows before it goes into a double or
// is added to a matrix.
// Factors of products are `operands`: bf16 for bf16 maps where the processor multiplies bf16, rounded as autocast
// rounds them, else R; what is summed is R. The covariance, which BatchNorm is folded by, is of R throughout.
template <class R>
struct TileKernels {
  int64_t panel;  // columns of a packed panel
  int64_t operand_bytes;

  // the right factor of a product: gemm.h's pack_panels, or gemm_bf16.h's
  void (*pack)(const R* source, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N, void* panels);

  // tile = x
  void (*load)(const void* x, RowSpan rows, int64_t channels, R* tile, int64_t stride);
  // tile = x, of operands
  void (*load_operands)(const void* x, RowSpan rows, int64_t channels, void* tile, int64_t stride);
  // tile[i][b] = x[b][features.first + i] of x [B, N]
  void (*load_transposed)(const void* x, RowSpan features, int64_t B, int64_t N, R* tile, int64_t stride);
  // columns n0, ..., n0 + 15 of the b-th [m][n] matrix of x as rows of the b-th [n][m] matrix of out
  void (*transpose)(const void* x, void* out, int64_t b, int64_t m, int64_t n, int64_t n0);
  // tile = x - mean
  void (*load_centred)(const void* x, RowSpan rows, int64_t channels, const R* mean, R* tile, int64_t stride);
  // tile = relu((z - mean) * scale + beta)
  void (*load_normalised)(const void* z, RowSpan rows, int64_t channels, const R* mean, const R* scale, const R* beta,
                          R* tile, int64_t stride);
  // tile = d where h is not zero, behind a ReLU that gave h
  void (*load_masked)(const void* d, const void* h, RowSpan rows, int64_t channels, R* tile, int64_t stride);

  // sum[channel] += sum over rows
  void (*column_sums)(const R* tile, int64_t stride, int64_t rows, int64_t channels, double* sum);
  // mean and m2 = sum of squared deviations of `seen` rows, with the tile's rows merged in
  void (*column_moments)(const R* tile, int64_t stride, int64_t rows, int64_t channels, int64_t seen, double* mean,
                         double* m2);
  // C[m][n] += sum over rows of a[row][m] b[row][n]; C is padded to whole panels both ways. Where `symmetric`, only
  // the blocks on and above the diagonal.
  void (*row_sums)(TileColumns<R> a, TileColumns<R> b, int64_t rows, R* C, int64_t c_stride, bool symmetric);
  // A tile as the left factor of a product: the tile itself, or what is written to `buffer`, which is as large.
  const void* (*tile_operands)(const R* tile, int64_t stride, int64_t rows, int64_t channels, void* buffer);
  // A tile as a factor of operand_sums, likewise.
  const void* (*sum_operands)(const R* tile, int64_t stride, int64_t rows, int64_t channels, void* buffer);
  // row_sums of sum_operands
  void (*operand_sums)(TileColumns<void> a, TileColumns<void> b, int64_t rows, R* C, int64_t c_stride);

  // out = tile x panels, out a tile
  void (*multiply)(const TileProduct& product, int64_t rows, R* out, int64_t out_stride);
  // h = relu(tile x panels + bias)
  void (*multiply_relu)(const TileProduct& product, const R* bias, void* h, RowSpan rows);
  // out (+)= tile x panels (+ bias); out is [P, N]
  void (*multiply_add)(const TileProduct& product, const R* bias, bool accumulate, R* out, RowSpan rows);
  // d_h = tile x panels where h, a tile, is not zero; its sums are added to `sums`
  void (*multiply_masked)(const TileProduct& product, TileColumns<R> h, const void* z, const R* mean, void* d_h,
                          RowSpan rows, GradientSums sums);

  // d_x += D x for a group of columns from n on; D a tile [B][stride], x and d_x [B, N]; buffer for two groups of rows,
  // B of them and B rounded up to whole panels
  void (*add_product)(const R* D, int64_t stride, int64_t B, const void* x, int64_t N, int64_t n, R* buffer, R* d_x);

  // tile = coef * (tile - y); returns sum (tile - y)^2
  double (*residual)(const void* y, RowSpan rows, int64_t channels, R coef, R* tile, int64_t stride);
  // sum of a[i] * b[i]
  R (*dot)(const R* a, const R* b, int64_t n);
  // out = scale * (a - s * b - t * c)
  void (*combine)(const R* a, const R* b, const R* c, R s, R t, R scale, int64_t n, R* out);
  // to[row] = factor[row] * tile[row]; both of one stride
  void (*scale_rows)(const R* tile, int64_t stride, int64_t rows, int64_t channels, const R* factor, R* to);
  // d = a * d + b * z + c
  void (*affine)(void* d, const void* z, RowSpan rows, int64_t channels, const R* a, const R* b, const R* c);
};

struct StageKernels {
  // by DType, those that accumulate in fp32
  TileKernels<float> fp32[kDTypes - 1];
  TileKernels<double> fp64;
};

SEMCKD_DECLARE_ISA_TABLES(StageKernels, stage_kernels)

}  // namespace semckd
