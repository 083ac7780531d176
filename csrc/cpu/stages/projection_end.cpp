// Reference  python_tests/helpers/plain_stages.py: end
// Math       h = relu((z - mean) scale + beta), r = W h - y, squared_error[b] = sum r^2;  d_r = coef[b] r,
//            d_W = sum_p d_r h^T, d_h = W^T d_r (h > 0), sum_d = sum_p d_h, sum_dz = sum_p d_h (z - mean)
// Shapes     z and d_h [B * pixels, K], y [B * pixels, C], W [C, K]
// Fused      h, the projection's result, r and d_r: a tile of each lives in the L2 cache and is never written
// Traffic    K + C read a row and, with gradients, K written; 2 C K multiply-adds a row, or 6: arithmetic bounds it
// Mapping    a thread takes chunks of rows, tile by tile; tiles know nothing of samples, a sample's error is the sum of
//            what it has in each tile
// Order      an error: rows in order within (sample, tile), tiles in order, in double. Sums over all rows: tile by tile
//            within a chunk, chunks in order (tiles.h)
// Operands   bf16 for bf16 maps, where the processor multiplies that: h, W and d_r are rounded, as autocast does; W h
//            and d_h are not, before they are used
// Limits     any sizes
// Measured   2026-11-25 (the last line 2026-11-24), EPYC (Zen 4, AVX-512), one thread's CPU time on a busy machine,
//            batch 64, ms (GFLOP/s); beside it eager BatchNorm, ReLU, convolution and mean squared error forward +
//            backward, channels_last:
//              C, K, map          with gradients fp32   torch   bf16        torch   error alone fp32
//              64, 128, 32x32     37.3 (86)             117     21.0 (153)  66      13.3 (81)
//              128, 256, 16x16    33.6 (96)             56      18.4 (175)  39      11.2 (96)
//              256, 512, 8x8      31.3 (103)            42      16.9 (190)  26      10.3 (104)
//              512, 1024, 4x4     40.6 (79)             40      -           29      11.9 (90)
//            bf16 2026-11-25: 36.0 to 34.5 with fp32 operands
#include "cpu/stages/projection_end.h"

#include "cpu/stages/tiles.h"

namespace semckd {
namespace {

// Where the error of a sample's rows in a tile goes. From one such piece to the next the tile's number or the sample's
// or both go up, so that their sum is a slot of its own.
template <class R>
class ErrorSlots {
 public:
  ErrorSlots(const Chunks& chunks, int64_t B, int64_t pixels)
      : chunks_(chunks),
        tiles_a_chunk_(ceil_div(chunks.rows, kTileRows<R>)),
        B_(B),
        pixels_(pixels),
        memory_(chunks.count * tiles_a_chunk_ + B) {}

  double& at(int64_t sample, int64_t row) const { return memory_[sample + tile(row)]; }

  void sum(R* squared_error) const {
    for (int64_t b = 0; b < B_; ++b) {
      double sum = 0;
      if (pixels_ > 0)
        for (int64_t t = tile(b * pixels_); t <= tile((b + 1) * pixels_ - 1); ++t) sum += memory_[b + t];
      squared_error[b] = static_cast<R>(sum);
    }
  }

 private:
  int64_t tile(int64_t row) const { return row / chunks_.rows * tiles_a_chunk_ + row % chunks_.rows / kTileRows<R>; }

  const Chunks& chunks_;
  int64_t tiles_a_chunk_, B_, pixels_;
  Scratch<double> memory_;
};

// r in place of W h in the tile, then d_r; squared errors into their slots.
template <class R>
void residuals(const ProjectionEnd<R>& problem, const TileKernels<R>& kernels, RowSpan rows, const Tile<R>& r,
               const ErrorSlots<R>& errors) {
  for (int64_t row = rows.first, end = rows.first + rows.count; row < end;) {
    const int64_t b = row / problem.pixels, next = std::min(end, (b + 1) * problem.pixels);
    errors.at(b, row) =
        kernels.residual(problem.y, {row, next - row}, problem.C, problem.gradients ? problem.coef[b] : R(0),
                         r.get() + (row - rows.first) * r.stride, r.stride);
    row = next;
  }
}

}  // namespace

template <class R>
void projection_end(const ProjectionEnd<R>& problem) {
  const int64_t K = problem.K, C = problem.C;
  const bool gradients = problem.gradients;
  const TileKernels<R>& kernels = tile_kernels<R>(problem.map);
  const int64_t padded_C = round_up(C, kernels.panel), padded_K = round_up(K, kernels.panel);
  const Chunks chunks(problem.B * problem.pixels, padded_C * padded_K * sizeof(R));
  const Packed panels(kernels, problem.weight, 1, K, K, C);
  const Packed back(kernels, problem.weight, K, 1, gradients ? C : 0, gradients ? K : 0);
  const Slots<R> weights(chunks, gradients ? padded_C * padded_K : 0);
  const Slots<double> vectors(chunks, gradients ? 2 * K : 0);
  const ErrorSlots<R> errors(chunks, problem.B, problem.pixels);

  parallel_for(chunks.count, 1, [&](int64_t begin, int64_t end) {
    const Tile<R> h(K), r(C);
    // pages that nothing writes, where operands are the tiles themselves, take no memory
    const Tile<R> h_buffer(K), r_buffer(C);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      R* d_weight = weights.zeroed(chunk);
      double* sums = vectors.zeroed(chunk);
      for_each_tile<R>(chunks.begin(chunk), chunks.end(chunk), [&](RowSpan rows) {
        kernels.load_normalised(problem.z, rows, K, problem.mean, problem.scale, problem.beta, h.get(), h.stride);
        const void* left = kernels.tile_operands(h.get(), h.stride, rows.count, K, h_buffer.get());
        kernels.multiply({left, h.stride, K, panels.get(), C}, rows.count, r.get(), r.stride);
        residuals(problem, kernels, rows, r, errors);
        if (!gradients) return;
        left = kernels.sum_operands(r.get(), r.stride, rows.count, C, r_buffer.get());
        const void* const right = kernels.sum_operands(h.get(), h.stride, rows.count, K, h_buffer.get());
        kernels.operand_sums({left, r.stride, C}, {right, h.stride, K}, rows.count, d_weight, padded_K);
        left = kernels.tile_operands(r.get(), r.stride, rows.count, C, r_buffer.get());
        kernels.multiply_masked({left, r.stride, C, back.get(), K}, {h.get(), h.stride, K}, problem.z, problem.mean,
                                problem.d_h, rows, {sums, sums + K});
      });
    }
  });

  errors.sum(problem.squared_error);
  if (!gradients) return;
  sum_matrices(weights, padded_K, C, K, problem.d_weight);
  sum_vectors(vectors, 0, K, problem.sum_d);
  sum_vectors(vectors, K, K, problem.sum_dz);
}

template void projection_end<float>(const ProjectionEnd<float>&);
template void projection_end<double>(const ProjectionEnd<double>&);

}  // namespace semckd
