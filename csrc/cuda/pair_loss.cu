// Reference  reference.pair_loss, reference.pair_mse, and their derivatives
// Math       D[b, q] = 1/N_q sum_e (s_q - t_q)^2;  loss = 1/(B S) sum_bq alpha[b, q] D[b, q]
//            d_s_q = coef[b, q] 2/N_q (s_q - t_q), d_t_q = -d_s_q, with coef = d_loss alpha/(B S), or the upstream
//            gradient of D; d_weight = d_loss D/(B S), or d_loss alpha (D - sum_k alpha_k D_k)/(B S) through a softmax
// Shapes     pair q: s, t [B, N_q], any N_q, types and sample strides a pair; weight, D [B, S, T]
// Fused      differences, squares, softmax and coefficients: nothing of a map's size is written but the gradients
// Traffic    P = sum_q B N_q. Forward reads s and t: 2P elements. Backward reads both and writes what is asked for:
//            3P with d_s or d_t, 4P with both, nothing with neither. Besides, forward: a 4-byte ticket and a sum
//            written and read a chunk of samples that have several, D out and back, weight in; backward: 8 warps a
//            chunk read d_loss and up to 2 T + 1 weights each, from the caches. Bound by bandwidth
// Mapping    one block of 256 threads a chunk: equal shares of a sample, consecutive, of at most 4096 to 2^20 elements
//            by the size of the problem, so ragged pairs balance; a thread takes 16 bytes of the narrower map at a
//            time, two in flight
// Order      a thread's elements in order, threads by a tree, chunks of a sample in order by the block that draws its
//            last ticket, samples and pairs by the one that draws the last of all: which block that is does not show,
//            so results repeat bitwise
// Limits     B < 2^31, B N_q < 2^51; any strides and number of pairs: one launch for 40 of one combination of types.
//            16-byte accesses where all buffers of a sample are equally misaligned, single elements elsewhere
// Measured   not yet
#include <cmath>

#include "cuda/convert.cuh"
#include "cuda/pair_loss.h"
#include "cuda/pair_table.cuh"
#include "cuda/platform.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vec.cuh"

namespace semckd {
namespace {

// small blocks start and end at different times, so that loads never pause on a whole multiprocessor
constexpr int kThreads = 256;
// packs of each map that a thread has in flight: 64 KiB in the four blocks of the variant with the most registers, more
// than an H200's multiprocessor must have on its way to keep 4.8 TB/s busy at a latency of 1 us
constexpr int kUnroll = 2;

// elements that fill 16 bytes of the narrower map
template <class S, class T>
constexpr int kPack = 16 / (sizeof(S) < sizeof(T) ? sizeof(S) : sizeof(T));

// Where the weights come from: Weighting with its type, and the sizes around it.
template <class R>
struct Weights {
  const R* weight;  // [B, S, T]
  int64_t B;
  int32_t S;
  int32_t T;
  bool softmax;
};

template <class R>
struct FwdArgs {
  Weights<R> weights;
  R* pair_mse;             // [B, Q], out
  R* loss;                 // scalar, out; null except in the last of several launches
  R* chunk_sums;           // [blocks], scratch
  unsigned* pair_tickets;  // [B, Q], zero
  unsigned* loss_ticket;   // zero
  int32_t Q;
};

template <class R>
struct BwdArgs {
  Weights<R> weights;
  const R* d_loss;      // scalar, or null
  const R* pair_mse;    // [B, Q]
  const R* d_pair_mse;  // [B, Q], or null
  R* d_weight;          // [B, S, T], out
  int32_t Q;
};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// sum_j alpha_j D_j of one row of T weights or energies.
template <class R>
__device__ __forceinline__ R weighted_row(const Weights<R>& weights, int64_t row, const R* pair_mse) {
  const R* weight = weights.weight + row * weights.T;
  const R* mse = pair_mse + row * weights.T;
  if (!weights.softmax) {
    R weighted = 0;
#pragma unroll 4
    for (int j = 0; j < weights.T; ++j) weighted += weight[j] * mse[j];
    return weighted;
  }
  R largest = weight[0];
#pragma unroll 4
  for (int j = 1; j < weights.T; ++j) largest = weight[j] > largest ? weight[j] : largest;
  R sum = 0, weighted = 0;
#pragma unroll 4
  for (int j = 0; j < weights.T; ++j) {
    const R e = exponential(weight[j] - largest);
    sum += e;
    weighted += e * mse[j];
  }
  return weighted / sum;
}

// One thread's share of sum_e (s - t)^2 over a chunk.
template <class S, class T>
__device__ __forceinline__ Accumulator<S> squared_error(const S* s, const T* t, int count) {
  using R = Accumulator<S>;
  constexpr int V = kPack<S, T>;
  const Split split = split_aligned<V>(count, s, t);
  R sum = 0;
  for (int first = threadIdx.x; first < split.packs(); first += kUnroll * kThreads) {
    // what lies past the last pack stays zero on both sides
    Pack<S, V> x[kUnroll] = {};
    Pack<T, V> y[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int pack = first + u * kThreads;
      if (pack >= split.packs()) continue;
      x[u] = load<Access::kReadOnly, V>(s + split.pack(pack));
      y[u] = load<Access::kReadOnly, V>(t + split.pack(pack));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      // added up on its own first: a long sum has fewer roundings this way
      R part = 0;
#pragma unroll
      for (int k = 0; k < V; ++k) {
        const R difference = widen(x[u].v[k]) - widen(y[u].v[k]);
        part += difference * difference;
      }
      sum += part;
    }
  }
  for (int i = threadIdx.x; i < split.singles(); i += kThreads) {
    const R difference = widen(s[split.single(i)]) - widen(t[split.single(i)]);
    sum += difference * difference;
  }
  return sum;
}

template <class S, class T>
__global__ void __launch_bounds__(kThreads) pair_loss_fwd_kernel(const __grid_constant__ PairTable table,
                                                                 const __grid_constant__ FwdArgs<Accumulator<S>> args) {
  using R = Accumulator<S>;
  const Chunk<S, T> chunk(table);
  const Weights<R>& weights = args.weights;
  const int64_t bq = chunk.b * args.Q + chunk.entry.q;
  R sum = block_sum<kThreads>(squared_error(chunk.s(), chunk.t(), chunk.count));

  // the last block of a sample adds its chunks; it is the only one that goes on
  if (chunk.entry.chunks > 1) {
    R* sums = args.chunk_sums + (blockIdx.x - chunk.index);
    if (threadIdx.x == 0) sums[chunk.index] = sum;
    if (!last_to_arrive(args.pair_tickets + bq, chunk.entry.chunks)) return;
    sum = 0;
    for (int i = threadIdx.x; i < chunk.entry.chunks; i += kThreads) sum += sums[i];
    sum = block_sum<kThreads>(sum);
  }
  if (threadIdx.x == 0) args.pair_mse[bq] = sum / static_cast<R>(chunk.entry.pair.N);

  // of these, the last in the grid forms the loss; earlier launches have left the errors of their pairs
  if (args.loss == nullptr) return;
  if (!last_to_arrive(args.loss_ticket, static_cast<unsigned>(weights.B) * table.pairs)) return;
  const int64_t rows = weights.B * weights.S;
  sum = 0;
#pragma unroll 1
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) sum += weighted_row(weights, row, args.pair_mse);
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) *args.loss = sum / static_cast<R>(rows);
}

// coef of one sample and pair, in every thread; the block with `writes_d_weight` also forms that gradient. Each warp
// works on its own, so that no barrier stands before the first load of a map.
template <class R>
__device__ __forceinline__ R coefficient(const BwdArgs<R>& args, int64_t b, int32_t q, bool writes_d_weight) {
  const Weights<R>& weights = args.weights;
  const int64_t bq = b * args.Q + q;
  if (args.d_pair_mse != nullptr) return args.d_pair_mse[bq];
  const R unit = *args.d_loss / (static_cast<R>(weights.B) * static_cast<R>(weights.S));
  if (!weights.softmax) {
    if (writes_d_weight && threadIdx.x == 0) args.d_weight[bq] = unit * args.pair_mse[bq];
    return unit * weights.weight[bq];
  }
  const int64_t row = bq - q % weights.T;
  const int lane = threadIdx.x % kWarp;
  R largest = -INFINITY;
#pragma unroll 1
  for (int j = lane; j < weights.T; j += kWarp) largest = max(largest, weights.weight[row + j]);
  largest = warp_max(largest);
  // the Jacobian's D - sum_k alpha_k D_k as a sum of differences: where one alpha is near 1, all of D would cancel
  R sum = 0, excess = 0;
#pragma unroll 1
  for (int j = lane; j < weights.T; j += kWarp) {
    const R e = exponential(weights.weight[row + j] - largest);
    sum += e;
    if (writes_d_weight) excess += e * (args.pair_mse[bq] - args.pair_mse[row + j]);
  }
  sum = warp_sum(sum);
  const R alpha = exponential(weights.weight[bq] - largest) / sum;
  if (writes_d_weight) {
    excess = warp_sum(excess) / sum;
    if (threadIdx.x == 0) args.d_weight[bq] = unit * alpha * excess;
  }
  return unit * alpha;
}

// One pack of a gradient, factor * (s - t); nothing where it is not asked for.
template <class S, class T, class G, int V>
__device__ __forceinline__ void store_gradient(G* d, const Pack<S, V>& s, const Pack<T, V>& t, Accumulator<S> factor) {
  if (d == nullptr) return;
  Pack<G, V> pack;
#pragma unroll
  for (int k = 0; k < V; ++k) cast(factor * (widen(s.v[k]) - widen(t.v[k])), pack.v[k]);
  store(d, pack);
}

// d_s = factor * (s - t) and d_t = -d_s over a chunk, each where it is asked for.
template <class S, class T>
__device__ __forceinline__ void scaled_difference(const S* s, const T* t, S* d_s, T* d_t, int count,
                                                  Accumulator<S> factor) {
  constexpr int V = kPack<S, T>;
  const Split split = split_aligned<V>(count, s, t, d_s, d_t);
  for (int first = threadIdx.x; first < split.packs(); first += kUnroll * kThreads) {
    Pack<S, V> x[kUnroll];
    Pack<T, V> y[kUnroll];
    // all loads before the first store: it may be to the same buffer, so the compiler would not move them there
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int pack = first + u * kThreads;
      if (pack >= split.packs()) continue;
      x[u] = load<Access::kMayAlias, V>(s + split.pack(pack));
      y[u] = load<Access::kMayAlias, V>(t + split.pack(pack));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int pack = first + u * kThreads;
      if (pack >= split.packs()) continue;
      store_gradient(d_s == nullptr ? d_s : d_s + split.pack(pack), x[u], y[u], factor);
      store_gradient(d_t == nullptr ? d_t : d_t + split.pack(pack), x[u], y[u], -factor);
    }
  }
  for (int i = threadIdx.x; i < split.singles(); i += kThreads) {
    const int e = split.single(i);
    const Accumulator<S> difference = widen(s[e]) - widen(t[e]);
    if (d_s != nullptr) cast(factor * difference, d_s[e]);
    if (d_t != nullptr) cast(-factor * difference, d_t[e]);
  }
}

template <class S, class T>
__global__ void __launch_bounds__(kThreads) pair_loss_bwd_kernel(const __grid_constant__ PairTable table,
                                                                 const __grid_constant__ BwdArgs<Accumulator<S>> args) {
  using R = Accumulator<S>;
  const Chunk<S, T> chunk(table);
  const R coef = coefficient(args, chunk.b, chunk.entry.q, chunk.index == 0);
  if (chunk.entry.pair.d_s == nullptr && chunk.entry.pair.d_t == nullptr) return;
  const R factor = coef * 2 / static_cast<R>(chunk.entry.pair.N);
  scaled_difference(chunk.s(), chunk.t(), chunk.d_s(), chunk.d_t(), chunk.count, factor);
}

// Calls f(S{}, T{}) with the element types of two maps.
template <class F>
cudaError_t with_types(DType s_dtype, DType t_dtype, const F& f) {
  const auto with_low = [](DType dtype, const auto& g) {
    switch (dtype) {
      case DType::kFloat32:
        return g(float{});
      case DType::kFloat16:
        return g(__half{});
      case DType::kBFloat16:
        return g(__nv_bfloat16{});
      default:
        return cudaErrorInvalidValue;
    }
  };
  if (s_dtype == DType::kFloat64 && t_dtype == DType::kFloat64) return f(double{}, double{});
  return with_low(s_dtype, [&](auto s) { return with_low(t_dtype, [&](auto t) { return f(s, t); }); });
}

size_t accumulator_bytes(const PairList& list) { return accumulates_in_double(list) ? sizeof(double) : sizeof(float); }

// The tickets lie in front of the chunk sums.
size_t ticket_bytes(const PairList& list) {
  const size_t bytes = (static_cast<size_t>(list.B) * list.Q + 1) * sizeof(unsigned);
  return (bytes + 15) / 16 * 16;
}

template <class R>
Weights<R> typed(const Weighting& weighting, int64_t B) {
  return {static_cast<const R*>(weighting.weight), B, weighting.S, weighting.T, weighting.softmax};
}

}  // namespace

size_t pair_loss_fwd_workspace(const PairList& list) {
  return ticket_bytes(list) + total_chunks(list, choose_max_chunk(list)) * accumulator_bytes(list);
}

cudaError_t launch_pair_loss_fwd(const PairList& list, const Weighting& weighting, void* workspace, void* pair_mse,
                                 void* loss, cudaStream_t stream) {
  if (list.B == 0 || list.Q == 0) {
    return loss == nullptr ? cudaSuccess : cudaMemsetAsync(loss, 0, accumulator_bytes(list), stream);
  }
  if (const cudaError_t error = cudaMemsetAsync(workspace, 0, ticket_bytes(list), stream)) return error;
  unsigned* tickets = static_cast<unsigned*>(workspace);
  char* chunk_sums = static_cast<char*>(workspace) + ticket_bytes(list);
  const auto launch_table = [&](const PairTable& table, DType s_dtype, DType t_dtype, bool is_last) {
    return with_types(s_dtype, t_dtype, [&](auto s, auto t) {
      using R = Accumulator<decltype(s)>;
      // launches follow each other on the stream, so all may use the same sums
      const FwdArgs<R> args{typed<R>(weighting, list.B),
                            static_cast<R*>(pair_mse),
                            is_last ? static_cast<R*>(loss) : nullptr,
                            reinterpret_cast<R*>(chunk_sums),
                            tickets + 1,
                            tickets,
                            list.Q};
      return launch(pair_loss_fwd_kernel<decltype(s), decltype(t)>, table.blocks, kThreads, stream, table, args);
    });
  };
  return for_each_table(list, choose_max_chunk(list), launch_table);
}

cudaError_t launch_pair_loss_bwd(const PairList& list, const Weighting& weighting, const void* d_loss,
                                 const void* pair_mse, const void* d_pair_mse, void* d_weight, cudaStream_t stream) {
  if (list.B == 0 || list.Q == 0) return cudaSuccess;
  const auto launch_table = [&](const PairTable& table, DType s_dtype, DType t_dtype, bool) {
    return with_types(s_dtype, t_dtype, [&](auto s, auto t) {
      using R = Accumulator<decltype(s)>;
      const BwdArgs<R> args{typed<R>(weighting, list.B),     static_cast<const R*>(d_loss),
                            static_cast<const R*>(pair_mse), static_cast<const R*>(d_pair_mse),
                            static_cast<R*>(d_weight),       list.Q};
      return launch(pair_loss_bwd_kernel<decltype(s), decltype(t)>, table.blocks, kThreads, stream, table, args);
    });
  };
  return for_each_table(list, choose_max_chunk(list), launch_table);
}

}  // namespace semckd
