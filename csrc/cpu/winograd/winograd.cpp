// Reference  python_tests/helpers/plain_stages.py: conv3x3, conv3x3_backward
// Math       z = A^T [sum_i (G g G^T) * (B^T h B)] A per tile of 4x4 or 2x2 pixels; the data gradient is the same
//            convolution of d_z with the weight turned by 180 degrees and transposed; d_g = G^T [sum (B^T h B) *
//            (A d_z A^T)] G over tiles
// Shapes     rows [B, h, w, K]; weight [K, K, 3, 3]; N = 36 or 16 positions of a tile: U, dU [N, K, K];
//            V, Z [N, tiles, K]
// Fused      d_z = a*d_h2 + b*z + c is formed on load, mean and variance on the way out; V and the products of a
//            chunk stay in cache
// Traffic    forward: h and z once, U once a chunk of tiles; a quarter (4x4) or 16/36 (2x2) of the direct
//            multiply-adds: arithmetic bound. Weight gradient: V and Z written and read once a group of tiles, dU
//            read and written once a group
// Mapping    convolution: an item is a chunk of tiles and a run of columns, all of its own, drawn by the threads.
//            weight gradient: groups of tiles one by one, first the group's transforms, then its products, an item
//            being a position and a step of output channels; or, at few channels, a thread a run of groups.
//            Where tiles are so few that V of all of them is smaller than U: band by band of tiles, an item is a step
//            of columns, or of rows of dU, and U and dU pass through a thread's cache in pieces instead of lying in
//            memory
// Order      every element of z, d_h1 and dU is summed by one thread in an order that sizes alone decide; moments of
//            chunks (in double) and dU of runs are added in order: the same bits for any number of threads
// Limits     any sizes
// Measured   2026-11, EPYC (Zen 5), one thread, batch 64, channels_last weights, ms forward + backward:
//            K, size   128, 32x32    256, 16x16    512, 8x8      1024, 4x4     1024, 2x2
//            fp32      29+61         26+54         28+56         31+56         15+25
//            bf16      22+46         20+40         20+40         25+45         15+25
//            oneDNN at 256, 16x16: fp32 75+154, bf16 39+81. Where the time goes is in bench/LOG.md
//            EPYC (Zen 1, AVX2), fp32: 170+348 and 157+312 at 128 and 256; oneDNN 504+1201 and 476+1157
#include "cpu/winograd/winograd.h"

#include <algorithm>
#include <cstddef>

#include "core/draw_items.h"
#include "core/parallel.h"
#include "core/sizes.h"
#include "cpu/stages/batch_norm.h"
#include "cpu/winograd/chunks.h"

namespace semckd {
namespace {

// items a thread that a convolution of few chunks is cut into, by columns ...
constexpr int64_t kItemsPerThread = 4;
// ... each with columns enough to be worth a transform of the chunk's input
constexpr int64_t kItemColumns = 128;
// operands of a group of the weight gradient: about a second-level cache a core, read again for every panel of dU;
// 8 MiB are 10% slower at 128 channels (2x2 tiles)
constexpr int64_t kGroupBytes = 2 << 20;
// and whole blocks of the sums over tiles (winograd_kernels.cpp, kSumTiles)
constexpr int64_t kGroupTiles = 128;
// Where channels are few and groups many, a group is too little work to be shared: threads take runs of groups instead,
// each summed in a dU of its own. At most this many of them, in this much memory (twice that costs 5%), of this many
// groups or more each.
constexpr int64_t kMaxSlots = 8, kMinSlots = 4, kSlotBytes = 16 << 20, kGroupsPerSlot = 4;
// tiles that one item of a group transforms; even
constexpr int64_t kTransformTiles = 16;
// V of all tiles that is kept
constexpr int64_t kKeptBytes = 12 << 20;
// Where U is larger than V, threads take steps of columns, or of rows of dU, if there are so many for each. This much
// of the second-level cache is for a piece of U or dU and for the products of the step in a band of tiles, or its Z;
// pieces that do not fall below a size leave the rest to the band. With U in memory, two threads take 20% longer at
// 1024 channels and 4x4 pixels, 1 to 2% at 512 and 8x8.
constexpr int64_t kStepsPerThread = 2, kStepBytes = 900 << 10, kMinPieceBytes = 140 << 10;
// rows of dU that one item turns into rows of d_weight
constexpr int64_t kFinishRows = 32;

// Rounding operands to bf16 costs 1.2 to 1.7 times the error of a direct bf16 convolution, but over 2 times where all
// four pixels of a map lie in one tile, whose transform has the least to average over: there they stay fp32. Large
// tiles would multiply that by three, so bf16 operands always come in small ones.
// In fp32, errors of large tiles are 3 to 6e-7 of the result whatever the channels, small ones' 2 to 4e-7; the vendor's
// direct convolution of channels_last maps has 2e-7 at 32 channels, 3e-7 at 64, 4e-7 at 128, 8e-7 at 512.
constexpr int64_t kLargeTileChannels = 128;
const WinogradKernel& choose_kernel(const MapShape& shape, DType dtype) {
  const WinogradKernels& kernels = winograd_kernels();
  const int type = static_cast<int>(dtype);
  const WinogradKernel &small = kernels.small_tiles[type], &large = kernels.large_tiles[type];
  if (dtype == DType::kBFloat16 && shape.h <= 2 && shape.w <= 2) return kernels.bf16_exact;
  if (small.operand_bytes < large.operand_bytes || shape.K < kLargeTileChannels) return small;
  const TileGrid in_small{shape, small.tile}, in_large{shape, large.tile};
  return in_large.products() < in_small.products() ? large : small;
}

// How a call's work is cut, and where its scratch lies. Only what no sum crosses depends on the number of threads: the
// columns of an item, whether work goes by steps, and whether threads own slots.
struct Plan {
  const WinogradKernel& kernel;
  TileGrid grid;
  int64_t channels;       // K padded to whole steps
  int64_t chunk, chunks;  // tiles, of the convolution
  int64_t item_columns;   // of the convolution; whole steps
  bool keeps_V;           // V of all tiles at once
  bool by_steps;          // V of a band of chunks, U by steps and pieces of `piece` channels
  int64_t band_chunks, piece;
  int64_t group, slots;  // of the weight gradient: tiles a group, runs of groups with a dU of their own

  Plan(const MapShape& shape, DType dtype) : kernel(choose_kernel(shape, dtype)), grid{shape, kernel.tile} {
    channels = round_up(grid.K, kernel.step);
    const int64_t tiles = std::max<int64_t>(1, grid.tiles()), threads = parallel_threads();
    chunk = chunk_size(tiles);
    chunks = ceil_div(tiles, chunk);
    const int64_t most_chunks = std::max<int64_t>(1, (kStepBytes - kMinPieceBytes) / row_bytes() / chunk);
    band_chunks = ceil_div(chunks, ceil_div(chunks, most_chunks));
    piece = std::min(channels, std::max<int64_t>(1, (kStepBytes / row_bytes() - band()) / kernel.step) * kernel.step);
    by_steps =
        V_bytes(band()) <= kKeptBytes && V_bytes(all_tiles()) < U_bytes() && steps() >= kStepsPerThread * threads;
    keeps_V = chunks * V_bytes(chunk) <= kKeptBytes;
    const int64_t items = threads > 1 ? threads * kItemsPerThread : 1;
    const int64_t most = std::max<int64_t>(1, channels / kItemColumns);
    item_columns = round_up(ceil_div(channels, std::min(ceil_div(items, chunks), most)), kernel.step);
    const int64_t tile_bytes = 2 * grid.positions() * channels * kernel.operand_bytes;
    group = std::min(round_up(std::max<int64_t>(1, kGroupBytes / tile_bytes), kGroupTiles), round_up(tiles, 2));
    slots = std::min({kMaxSlots, kSlotBytes / dU_bytes(), ceil_div(tiles, group) / kGroupsPerSlot});
    if (slots < kMinSlots) slots = 1;
  }

  OperandLayout operands(int64_t tiles) const {
    return OperandLayout::of(tiles, channels, kernel.panel, kernel.operand_bytes, grid.positions());
  }
  OperandLayout products(int64_t tiles) const {
    return OperandLayout::of(tiles, kernel.step, kernel.panel, kernel.acc_bytes, grid.positions());
  }

  int64_t band() const { return band_chunks * chunk; }
  // whole pairs, see put_pair
  int64_t all_tiles() const { return round_up(grid.tiles(), 2); }
  int64_t steps() const { return channels / kernel.step; }

  // a step's sums of one tile, or of one row of dU
  int64_t row_bytes() const { return grid.positions() * kernel.step * kernel.acc_bytes; }
  // of U, or of dU
  int64_t piece_bytes() const {
    const int64_t panels = kernel.step / kernel.panel * grid.positions();
    const int64_t of_U = panels * rows_of_piece(nullptr, 0).position_stride * kernel.operand_bytes;
    return std::max(of_U, gradient_bytes(gradient_block(nullptr, 0, kernel.step, 0, piece))) + kGap;
  }
  // Positions of a piece lie a little more than 16 KiB apart: a row of the transform is written to all of them, or read
  // from all of them, which would else fall into one set of the first-level cache. A forward of 1024 channels and 4x4
  // pixels takes 43 ms without that gap, 35 with it, a backward of 512 and 8x8 62 and 58. (U as a whole is written once
  // for many tiles.)
  KernelRows rows_of_piece(void* U, int64_t first) const {
    const int64_t rows = std::min(piece, channels - first);
    return {U, first, rows, rows * kernel.panel + OperandLayout::kSkewBytes / kernel.operand_bytes};
  }
  GradientBlock gradient_block(void* dU, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns) const {
    const int64_t skew = OperandLayout::kSkewBytes / kernel.acc_bytes;
    return {dU, first_row, rows, first_column, columns, rows * columns + skew};
  }
  int64_t gradient_bytes(const GradientBlock& dU) const {
    return grid.positions() * dU.position_stride * kernel.acc_bytes;
  }
  GradientBlock whole_gradient(void* dU) const { return gradient_block(dU, 0, channels, 0, channels); }
  int64_t U_step_bytes() const { return grid.positions() * channels * kernel.step * kernel.operand_bytes; }
  int64_t U_bytes() const { return steps() * U_step_bytes(); }
  int64_t dU_bytes() const { return gradient_bytes(whole_gradient(nullptr)); }
  int64_t V_bytes(int64_t tiles) const { return buffer_bytes(operands(tiles), kernel.operand_bytes); }
  int64_t M_bytes(int64_t tiles) const { return buffer_bytes(products(tiles), kernel.acc_bytes); }
  int64_t moments_bytes() const { return chunks * grid.K * static_cast<int64_t>(sizeof(Moments)); }

  int64_t kept_bytes() const { return by_steps ? V_bytes(band()) : keeps_V ? chunks * V_bytes(chunk) : 0; }
  // what a thread of the convolution needs for itself
  int64_t thread_bytes() const {
    if (by_steps) return M_bytes(band()) + piece_bytes();
    return M_bytes(chunk) + (keeps_V ? 0 : V_bytes(chunk));
  }
  int64_t convolution_bytes() const {
    const int64_t shared = kept_bytes() + (by_steps ? 0 : U_bytes());
    return round_up(shared + parallel_threads() * thread_bytes(), kAlignment) + moments_bytes();
  }

  // whether threads take whole slots, enough of them for each; else they share the work of every group
  bool threads_own_slots() const { return slots > 1 && slots >= 2 * parallel_threads(); }
  int64_t weight_gradient_bytes() const {
    if (by_steps) return 2 * V_bytes(all_tiles()) + parallel_threads() * piece_bytes();
    return slots * dU_bytes() + (threads_own_slots() ? parallel_threads() : 1) * 2 * V_bytes(group);
  }
};

void merge_moments(const Plan& plan, const Moments* moments, int64_t c, double* mean, double* variance) {
  Moments all{0, 0, 0};
  for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
    const Moments& part = moments[chunk * plan.grid.K + c];
    const double count = all.count + part.count, distance = part.mean - all.mean;
    all.mean += distance * part.count / count;
    all.m2 += part.m2 + distance * distance * all.count * part.count / count;
    all.count = count;
  }
  *mean = all.mean;
  *variance = all.m2 / all.count;
}

template <class R>
void write_moments(const Plan& plan, const Moments* moments, R* mean, R* variance) {
  constexpr int64_t kChannelsPerThread = 32;
  parallel_for(plan.grid.K, kChannelsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double m, v;
      merge_moments(plan, moments, c, &m, &v);
      mean[c] = static_cast<R>(m);
      variance[c] = static_cast<R>(variance_beside(m, v));
    }
  });
}

// A convolution by its parts: out = conv3x3 of the source with a kernel whose row channels are the source's.
struct Convolution {
  const Plan& plan;
  const MapSource& source;
  const KernelView& weight;
  void* out;
  Moments* moments;  // [chunks, K] or null

  TileRange tiles(int64_t chunk) const {
    const int64_t begin = chunk * plan.chunk;
    return {begin, std::min(plan.chunk, plan.grid.tiles() - begin)};
  }
  void transform_input(TileRange tiles, const OperandLayout& layout, char* V) const {
    plan.kernel.transform_input(plan.grid, source, tiles, layout, V);
  }
  void transform_kernel(int64_t column, int64_t row, const KernelRows& U) const {
    plan.kernel.transform_kernel(weight, row, column, U);
  }
  void multiply(const OperandLayout& layout, int64_t tiles, const char* V, const KernelRows& U, char* M) const {
    plan.kernel.multiply_step(layout, tiles, V, U, M, U.first > 0);
  }
  void write(int64_t chunk, const OperandLayout& layout, int64_t column, const char* M) const {
    plan.kernel.write_step(plan.grid, tiles(chunk), layout, M, column, out,
                           moments ? moments + chunk * plan.grid.K : nullptr);
  }

  void run(char* scratch) const {
    char *kept = scratch, *rest = kept + plan.kept_bytes();
    const int64_t chunks = plan.grid.tiles() ? plan.chunks : 0;
    if (!plan.by_steps) return run_chunks(chunks, kept, rest);
    for (int64_t chunk = 0; chunk < chunks; chunk += plan.band_chunks)
      run_band(chunk, std::min(chunks, chunk + plan.band_chunks), kept, rest);
  }

 private:
  // the products of a step stay in the thread's cache while U passes through it, made anew for every band
  void run_band(int64_t first_chunk, int64_t end_chunk, char* V, char* threads) const {
    const WinogradKernel& kernel = plan.kernel;
    const int64_t first_tile = first_chunk * plan.chunk, count = std::min(plan.band(), plan.grid.tiles() - first_tile);
    const OperandLayout layout = plan.operands(plan.band());
    draw_items(ceil_div(count, kTransformTiles), [&](int64_t item, int64_t) {
      const int64_t first = item * kTransformTiles;
      transform_input({first_tile + first, std::min(kTransformTiles, count - first)}, layout,
                      V + first * kernel.panel * kernel.operand_bytes);
    });
    draw_items(plan.steps(), [&](int64_t item, int64_t thread) {
      char *M = threads + thread * plan.thread_bytes(), *U = M + plan.M_bytes(plan.band());
      const int64_t column = item * kernel.step;
      for (int64_t first = 0; first < plan.channels; first += plan.piece) {
        const KernelRows rows = plan.rows_of_piece(U, first);
        for (int64_t row = first; row < first + rows.rows; row += kKernelRows) transform_kernel(column, row, rows);
        multiply(layout, count, V, rows, M);
      }
      for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk)
        write(chunk, layout, column, M + (chunk - first_chunk) * plan.chunk * kernel.panel * kernel.acc_bytes);
    });
  }

  void run_chunks(int64_t chunks, char* kept, char* U) const {
    const int64_t step = plan.kernel.step, row_blocks = ceil_div(plan.channels, kKernelRows);
    const OperandLayout layout = plan.operands(plan.chunk);
    char* threads = U + plan.U_bytes();
    if (plan.keeps_V)
      draw_items(chunks, [&](int64_t chunk, int64_t) {
        transform_input(tiles(chunk), layout, kept + chunk * plan.V_bytes(plan.chunk));
      });
    const auto U_of = [&](int64_t column) {
      return KernelRows{U + column / step * plan.U_step_bytes(), 0, plan.channels, plan.channels * plan.kernel.panel};
    };
    draw_items(plan.steps() * row_blocks, [&](int64_t item, int64_t) {
      const int64_t column = item / row_blocks * step;
      transform_kernel(column, item % row_blocks * kKernelRows, U_of(column));
    });
    // chunks of one run of columns follow each other: its part of U is then read from memory once
    draw_items(chunks * ceil_div(plan.channels, plan.item_columns), [&](int64_t item, int64_t thread) {
      const int64_t chunk = item % chunks, begin = item / chunks * plan.item_columns;
      char* M = threads + thread * plan.thread_bytes();
      char* V = plan.keeps_V ? kept + chunk * plan.V_bytes(plan.chunk) : M + plan.M_bytes(plan.chunk);
      if (!plan.keeps_V) transform_input(tiles(chunk), layout, V);
      for (int64_t column = begin; column < std::min(plan.channels, begin + plan.item_columns); column += step) {
        multiply(layout, tiles(chunk).count, V, U_of(column), M);
        write(chunk, layout, column, M);
      }
    });
  }
};

// dU of the tiles of one slot; VZ is scratch for the operands of a group. for_each(items, body) calls body(item, slot).
template <class ForEach>
void sum_slot(const Plan& plan, const MapSource& h, const MapSource& d_z, int64_t slot, char* VZ, char* dU,
              const ForEach& for_each) {
  const WinogradKernel& kernel = plan.kernel;
  char *V = VZ, *Z = V + plan.V_bytes(plan.group);
  const OperandLayout layout = plan.operands(plan.group);
  const int64_t steps = plan.steps();
  const int64_t groups = ceil_div(plan.grid.tiles(), plan.group), per_slot = ceil_div(groups, plan.slots);
  const int64_t first_group = slot * per_slot;
  // at least once: dU of no tiles is zero
  int64_t group = first_group;
  do {
    const int64_t first = group * plan.group;
    const int64_t tiles = std::clamp<int64_t>(plan.grid.tiles() - first, 0, plan.group);
    for_each(ceil_div(tiles, kTransformTiles), [&](int64_t item, int64_t) {
      const int64_t row = item * kTransformTiles;
      kernel.transform_pairs(plan.grid, h, d_z, {first + row, std::min(kTransformTiles, tiles - row)}, layout, row, V,
                             Z);
    });
    for_each(plan.grid.positions() * steps, [&](int64_t item, int64_t) {
      kernel.sum_products(layout, tiles, item / steps, item % steps * kernel.step, Z, V, group > first_group,
                          plan.whole_gradient(dU));
    });
  } while (++group < std::min(groups, first_group + per_slot));
}

// The weight gradient by steps of rows: Z of a step stays in the thread's cache, and dU is finished while it is there.
void weight_gradient_by_steps(const Plan& plan, const MapSource& h, const MapSource& d_z, char* scratch,
                              const KernelView& d_weight) {
  const WinogradKernel& kernel = plan.kernel;
  const int64_t tiles = plan.grid.tiles(), step = kernel.step;
  const OperandLayout layout = plan.operands(plan.all_tiles());
  char *V = scratch, *Z = V + plan.V_bytes(plan.all_tiles()), *pieces = Z + plan.V_bytes(plan.all_tiles());
  draw_items(ceil_div(tiles, kTransformTiles), [&](int64_t item, int64_t) {
    const int64_t first = item * kTransformTiles;
    kernel.transform_pairs(plan.grid, h, d_z, {first, std::min(kTransformTiles, tiles - first)}, layout, first, V, Z);
  });
  draw_items(plan.steps(), [&](int64_t item, int64_t thread) {
    const int64_t row = item * step;
    for (int64_t first = 0; first < plan.channels; first += plan.piece) {
      const GradientBlock dU = plan.gradient_block(pieces + thread * plan.piece_bytes(), row, step, first,
                                                   std::min(plan.piece, plan.channels - first));
      for (int64_t position = 0; position < plan.grid.positions(); ++position)
        kernel.sum_products(layout, tiles, position, row, Z, V, false, dU);
      for (int64_t column = first; column < first + dU.columns; column += step)
        kernel.finish_gradient(dU, 1, row, step, column, d_weight);
    }
  });
}

void weight_gradient(const Plan& plan, const MapSource& h, const MapSource& d_z, char* scratch,
                     const KernelView& d_weight) {
  if (plan.by_steps) return weight_gradient_by_steps(plan, h, d_z, scratch, d_weight);
  const WinogradKernel& kernel = plan.kernel;
  char *dU = scratch, *operands = dU + plan.slots * plan.dU_bytes();
  if (plan.threads_own_slots()) {
    const auto in_this_thread = [](int64_t items, const auto& body) {
      for (int64_t item = 0; item < items; ++item) body(item, 0);
    };
    draw_items(plan.slots, [&](int64_t slot, int64_t thread) {
      char* VZ = operands + thread * 2 * plan.V_bytes(plan.group);
      sum_slot(plan, h, d_z, slot, VZ, dU + slot * plan.dU_bytes(), in_this_thread);
    });
  } else {
    const auto on_all_threads = [](int64_t items, const auto& body) { draw_items(items, body); };
    for (int64_t slot = 0; slot < plan.slots; ++slot)
      sum_slot(plan, h, d_z, slot, operands, dU + slot * plan.dU_bytes(), on_all_threads);
  }
  const int64_t row_blocks = ceil_div(plan.grid.K, kFinishRows);
  draw_items(plan.steps() * row_blocks, [&](int64_t item, int64_t) {
    kernel.finish_gradient(plan.whole_gradient(dU), plan.slots, item % row_blocks * kFinishRows, kFinishRows,
                           item / row_blocks * kernel.step, d_weight);
  });
}

}  // namespace

int64_t winograd_conv3x3_scratch(const MapShape& shape, DType dtype, bool backward) {
  const Plan plan(shape, dtype);
  return backward ? std::max(plan.convolution_bytes(), plan.weight_gradient_bytes()) : plan.convolution_bytes();
}

void winograd_conv3x3(const MapShape& shape, DType dtype, const void* h, const ConvolutionWeight& weight, void* scratch,
                      void* out, void* mean, void* variance) {
  const Plan plan(shape, dtype);
  char* bytes = static_cast<char*>(scratch);
  auto* moments = mean ? reinterpret_cast<Moments*>(bytes + plan.convolution_bytes() - plan.moments_bytes()) : nullptr;
  const MapSource source{h, nullptr, nullptr, nullptr, nullptr};
  const KernelView kernel{weight.data, weight.in, weight.out, weight.y, weight.x, shape.K, shape.K};
  Convolution{plan, source, kernel, out, moments}.run(bytes);
  if (!mean) return;
  if (dtype == DType::kFloat64)
    return write_moments(plan, moments, static_cast<double*>(mean), static_cast<double*>(variance));
  write_moments(plan, moments, static_cast<float*>(mean), static_cast<float*>(variance));
}

void winograd_conv3x3_bwd(const MapShape& shape, DType dtype, const void* h, const MapSource& d_z,
                          const ConvolutionWeight& weight, void* scratch, void* d_h1,
                          const ConvolutionWeight& d_weight) {
  const Plan plan(shape, dtype);
  char* bytes = static_cast<char*>(scratch);
  // the last tap first, and strides that run backwards: the weight turned by 180 degrees
  char* last_tap = static_cast<char*>(weight.data) + 2 * (weight.y + weight.x) * plan.kernel.acc_bytes;
  const KernelView turned{last_tap, weight.out, weight.in, -weight.y, -weight.x, shape.K, shape.K};
  Convolution{plan, d_z, turned, d_h1, nullptr}.run(bytes);
  const MapSource source{h, nullptr, nullptr, nullptr, nullptr};
  weight_gradient(plan, source, d_z, bytes,
                  {d_weight.data, d_weight.out, d_weight.in, d_weight.y, d_weight.x, shape.K, shape.K});
}

}  // namespace semckd
