// Products of tiles, by the type of map that their factors are rounded for: Operands<BFloat16> are bf16 where the
// processor multiplies that, all others of the accumulation type. What the functions do is said in stage_kernels.h.
// Included only by files compiled once per instruction set, so everything has internal linkage; see isa/isa.h.
#pragma once

#include "cpu/gemm/gemm.h"
#include "cpu/gemm/gemm_bf16.h"
#include "cpu/gemm/packing.h"
#include "cpu/stages/tile_rows.h"

namespace semckd {
namespace {

template <class Map>
struct Operands {
  using R = AccType<Map>;
  using Type = R;

  static void pack(const R* source, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N, void* panels) {
    pack_panels(source, k_stride, n_stride, K, N, static_cast<R*>(panels));
  }

  static void load_tile(const void* x, RowSpan rows, int64_t channels, void* tile, int64_t stride) {
    semckd::load_tile<Map>(x, rows, channels, static_cast<R*>(tile), stride);
  }

  static const void* of_tile(const R* tile, int64_t stride, int64_t rows, int64_t channels, void* buffer) {
    return tile;
  }

  // out = tile x one panel
  static void multiply(const R* tile, int64_t stride, int64_t rows, int64_t K, const R* panel, R* out,
                       int64_t out_stride) {
    product(LeftFactor<R>{tile, kPanel<R>, stride}, rows, K, panel, ProductRows<R>{out, out_stride, false});
  }

  static const void* for_sums(const R* tile, int64_t stride, int64_t rows, int64_t channels, void* buffer) {
    return tile;
  }
  static void row_sums(TileColumns<R> a, TileColumns<R> b, int64_t rows, R* C, int64_t c_stride, bool symmetric) {
    for (int64_t m = 0; m < a.count; m += kPanel<R>)
      for (int64_t n = symmetric ? m : 0; n < b.count; n += kPanel<R>)
        row_sum_block(a.data + m, a.stride, b.data + n, b.stride, rows,
                      ProductRows<R>{C + m * c_stride + n, c_stride, true});
  }
  static void operand_sums(TileColumns<void> a, TileColumns<void> b, int64_t rows, R* C, int64_t c_stride) {
    row_sums({static_cast<const R*>(a.data), a.stride, a.count}, {static_cast<const R*>(b.data), b.stride, b.count},
             rows, C, c_stride, false);
  }
};

#if defined(__AVX512BF16__)
template <>
struct Operands<BFloat16> {
  using Type = BFloat16;

  static void pack(const float* source, int64_t k_stride, int64_t n_stride, int64_t K, int64_t N, void* panels) {
    auto* to = static_cast<BFloat16*>(panels);
    const auto element = [&](int64_t k, int64_t n) {
      return k < K && n < N ? source[k * k_stride + n * n_stride] : 0.0f;
    };
    for (int64_t n0 = 0; n0 < N; n0 += kBf16Panel)
      for (int64_t k = 0; k < padded<float>(K); k += 2)
        for (int64_t n = n0; n < n0 + kBf16Panel; n += kLanes<float>, to += 2 * kLanes<float>) {
          F32s even, odd;
          for (int64_t lane = 0; lane < kLanes<float>; ++lane) {
            even[lane] = element(k, n + lane);
            odd[lane] = element(k + 1, n + lane);
          }
          store_rounded_pair(to, even, odd);
        }
  }

  static void load_tile(const void* x_ptr, RowSpan rows, int64_t channels, void* tile, int64_t stride) {
    const auto* x = static_cast<const BFloat16*>(x_ptr) + rows.first * channels;
    auto* row = static_cast<BFloat16*>(tile);
    for (int64_t r = 0; r < rows.count; ++r, x += channels, row += stride) {
      std::memcpy(row, x, channels * sizeof(BFloat16));
      std::memset(row + channels, 0, (padded<float>(channels) - channels) * sizeof(BFloat16));
    }
  }

  static const void* of_tile(const float* tile, int64_t stride, int64_t rows, int64_t channels, void* buffer) {
    auto* to = static_cast<BFloat16*>(buffer);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < padded<float>(channels); c += kLanes<float>)
        store_rounded(to + r * stride + c, load(tile + r * stride + c));
    return buffer;
  }

  static void multiply(const BFloat16* tile, int64_t stride, int64_t rows, int64_t K, const BFloat16* panel, float* out,
                       int64_t out_stride) {
    product({tile, kBf16Panel, stride}, rows, K, panel, {out, out_stride, false});
  }

  // [column panel][row / 2][kPanel][2], with a row of zeros where the number of rows is odd
  static const void* for_sums(const float* tile, int64_t stride, int64_t rows, int64_t channels, void* buffer) {
    auto* pair = static_cast<BFloat16*>(buffer);
    for (int64_t c = 0; c < channels; c += kBf16Panel)
      for (int64_t r = 0; r < rows; r += 2, pair += 2 * kBf16Panel)
        for (int64_t lane = 0; lane < kBf16Panel; lane += kLanes<float>) {
          const float* even = tile + r * stride + c + lane;
          store_rounded_pair(pair + 2 * lane, load(even), r + 1 < rows ? load(even + stride) : F32s{});
        }
    return buffer;
  }
  static void operand_sums(TileColumns<void> a, TileColumns<void> b, int64_t rows, float* C, int64_t c_stride) {
    const int64_t even_rows = rows + rows % 2;
    for (int64_t m = 0; m < a.count; m += kBf16Panel)
      for (int64_t n = 0; n < b.count; n += kBf16Panel)
        row_sum_block(static_cast<const BFloat16*>(a.data) + m * even_rows,
                      static_cast<const BFloat16*>(b.data) + n * even_rows, even_rows,
                      {C + m * c_stride + n, c_stride, true});
  }
};
#endif

}  // namespace
}  // namespace semckd
