// Reference  python_tests/test_frozen_convolution.py: torch's convolution in fp64
// Math       out = relu(A^T [sum_i U * (B^T x B)] A + bias + residual) per tile of 4x4 pixels, U = G g G^T once
// Shapes     rows [B, h, w, in] to [B, h, w, out]; U [step of 32 (of floats, AVX-512) out][36][in][32]
// Fused      padding; bias, residual and ReLU on the way out; every type conversion
// Traffic    x once (read by tiles that overlap: 2.25 times, but from cache), out and residual once, U once a chunk
//            of tiles; a quarter of the direct multiply-adds
// Mapping    an item is a chunk of tiles and a run of columns, drawn by the threads; V of a chunk lies in the
//            second-level cache. Where chunks are fewer than threads want, V of all of them comes first, and columns
//            are cut as well
// Order      a result is summed by one thread, over channels in ascending order: the same bits however work is cut
// Limits     any sizes; half precision is multiplied in fp32
#include "cpu/winograd/frozen.h"

#include <algorithm>

#include "core/draw_items.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/sizes.h"
#include "cpu/winograd/chunks.h"

namespace semckd {
namespace {

// chunks a thread that even out what the threads have to do
constexpr int64_t kChunksPerThread = 4;
// tiles that one item transforms, where that is work of its own
constexpr int64_t kTransformTiles = 16;

const WinogradKernel& kernel_of(DType dtype) { return winograd_kernels().large_tiles[static_cast<int>(dtype)]; }

class FrozenConvolution {
 public:
  FrozenConvolution(const FrozenShape& shape, DType dtype)
      : kernel_(kernel_of(dtype)),
        in_{{shape.B, shape.h, shape.w, shape.in}, kernel_.tile},
        out_{{shape.B, shape.h, shape.w, shape.out}, kernel_.tile},
        depth_(round_up(shape.in, kernel_.step)),
        steps_(ceil_div(shape.out, kernel_.step)) {
    const int64_t tiles = in_.tiles(), threads = parallel_threads();
    chunk_ = chunk_size(tiles);
    chunks_ = ceil_div(tiles, chunk_);
    // V of all chunks first, where threads share chunks
    keeps_V_ = threads > 1 && chunks_ < kChunksPerThread * threads;
    const int64_t runs =
        keeps_V_ ? std::min(steps_, ceil_div(kChunksPerThread * threads, std::max<int64_t>(1, chunks_))) : 1;
    run_ = ceil_div(steps_, runs);
  }

  void run(const void* x, const void* U, const Epilogue& epilogue, void* out) const {
    if (chunks_ == 0) return;
    const int64_t threads = parallel_threads();
    const Scratch<char> memory((keeps_V_ ? chunks_ : threads) * V_bytes() + threads * M_bytes());
    char *all_V = memory.get(), *all_M = all_V + (keeps_V_ ? chunks_ : threads) * V_bytes();
    const MapSource source{x, nullptr, nullptr, nullptr, nullptr};
    const OperandLayout layout = OperandLayout::of(chunk_, depth_, kernel_.panel, kernel_.operand_bytes, positions());
    if (keeps_V_) {
      const int64_t parts = ceil_div(chunk_, kTransformTiles);
      draw_items(chunks_ * parts, [&](int64_t item, int64_t) {
        const TileRange chunk = tiles(item / parts);
        const int64_t first = item % parts * kTransformTiles, count = std::min(kTransformTiles, chunk.count - first);
        char* V = all_V + item / parts * V_bytes() + first * kernel_.panel * kernel_.operand_bytes;
        if (count > 0) kernel_.transform_input(in_, source, {chunk.begin + first, count}, layout, V);
      });
    }
    draw_items(chunks_ * ceil_div(steps_, run_), [&](int64_t item, int64_t slot) {
      const int64_t chunk = item % chunks_, first = item / chunks_ * run_;
      char *V = all_V + (keeps_V_ ? chunk : slot) * V_bytes(), *M = all_M + slot * M_bytes();
      if (!keeps_V_) kernel_.transform_input(in_, source, tiles(chunk), layout, V);
      for (int64_t step = first; step < std::min(steps_, first + run_); ++step) {
        kernel_.multiply_step(layout, tiles(chunk).count, V, U_of(U, step), M, false);
        kernel_.finish_step(out_, tiles(chunk), layout, M, step * kernel_.step, epilogue, out);
      }
    });
  }

  int64_t elements() const { return steps_ * step_elements(); }

  void transform(const KernelView& weight, void* U) const {
    const int64_t blocks = ceil_div(depth_, kKernelRows);
    draw_items(steps_ * blocks, [&](int64_t item, int64_t) {
      const int64_t step = item / blocks;
      kernel_.transform_kernel(weight, item % blocks * kKernelRows, step * kernel_.step, U_of(U, step));
    });
  }

 private:
  int64_t positions() const { return in_.positions(); }
  int64_t step_elements() const { return positions() * depth_ * kernel_.step; }
  KernelRows U_of(const void* U, int64_t step) const {
    const char* of_step = static_cast<const char*>(U) + step * step_elements() * kernel_.operand_bytes;
    return {const_cast<char*>(of_step), 0, depth_, depth_ * kernel_.panel};
  }
  TileRange tiles(int64_t chunk) const {
    const int64_t begin = chunk * chunk_;
    return {begin, std::min(chunk_, in_.tiles() - begin)};
  }
  int64_t V_bytes() const {
    const auto layout = OperandLayout::of(chunk_, depth_, kernel_.panel, kernel_.operand_bytes, positions());
    return buffer_bytes(layout, kernel_.operand_bytes);
  }
  int64_t M_bytes() const {
    const auto layout = OperandLayout::of(chunk_, kernel_.step, kernel_.panel, kernel_.acc_bytes, positions());
    return buffer_bytes(layout, kernel_.acc_bytes);
  }

  const WinogradKernel& kernel_;
  TileGrid in_, out_;
  int64_t depth_, steps_;   // input channels padded to whole steps; steps of output channels
  int64_t chunk_, chunks_;  // tiles a chunk
  bool keeps_V_;
  int64_t run_;  // steps of an item
};

}  // namespace

int64_t frozen_conv3x3_elements(DType dtype, int64_t in, int64_t out) {
  return FrozenConvolution({0, 1, 1, in, out}, dtype).elements();
}

void frozen_conv3x3_transform(DType dtype, const KernelView& weight, void* U) {
  FrozenConvolution({0, 1, 1, weight.rows, weight.columns}, dtype).transform(weight, U);
}

void frozen_conv3x3(const FrozenShape& shape, DType dtype, const void* x, const void* U, const Epilogue& epilogue,
                    void* out) {
  FrozenConvolution(shape, dtype).run(x, U, epilogue, out);
}

}  // namespace semckd
