// Reference  reference.pair_loss, reference.pair_mse
// Math       D[b, q] = 1/N_q sum_e (s_q - t_q)^2;  loss = 1/(B S) sum_bq alpha[b, q] D[b, q]
//            d_s_q = coef[b, q] 2/N_q (s_q - t_q) with coef = d_loss alpha/(B S), or the upstream gradient of D
//            d_weight = d_loss D/(B S), through the softmax's Jacobian where alpha is a softmax
// Shapes     pair q: s, t [B, N_q]; weight, D [B, S, T]
// Fused      differences, squares, weighted sums: nothing of a map's size is written but the gradients
// Traffic    forward 2 elements read a pair element; backward 2 read, 1 written (2 with d_t): bandwidth bound
// Mapping    every sample is cut into chunks of kChunk elements; threads take equal runs of the list of all chunks,
//            so ragged pairs balance
// Order      one slot a chunk, added in order in double: the same bits for any number of threads
// Limits     any sizes
// Measured   bench/results
#include "cpu/pair_loss/pair_loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/parallel.h"
#include "cpu/pair_loss/pair_loss_kernels.h"

namespace semckd {
namespace {

// 32 KiB a side in fp32: long enough that a chunk's bookkeeping vanishes, short enough to share out evenly
constexpr int64_t kChunk = 8192;
// a thread is woken for this much work or more: half of it takes about as long as waking it
constexpr int64_t kElementsPerThread = 32768;

int64_t chunks_per_sample(const Pair& pair) { return (pair.N + kChunk - 1) / kChunk; }

// Calls body(slot, pair, b, q, begin, count) for every chunk of every sample of every pair, on all threads.
template <class Body>
void for_each_chunk(const PairList& list, const Body& body) {
  std::vector<int64_t> first(list.Q + 1, 0);  // first[q]: the first chunk of pair q
  int64_t elements = 0;
  for (int32_t q = 0; q < list.Q; ++q) {
    first[q + 1] = first[q] + list.B * chunks_per_sample(list.pair[q]);
    elements += list.B * list.pair[q].N;
  }
  const int64_t total = first[list.Q];
  if (total == 0) return;
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread * total / std::max<int64_t>(1, elements));
  parallel_for(total, grain, [&](int64_t begin, int64_t end) {
    int32_t q = static_cast<int32_t>(std::upper_bound(first.begin(), first.end(), begin) - first.begin()) - 1;
    for (int64_t slot = begin; slot < end; ++slot) {
      while (slot >= first[q + 1]) ++q;
      const Pair& pair = list.pair[q];
      const int64_t chunks = chunks_per_sample(pair);
      const int64_t b = (slot - first[q]) / chunks, e = (slot - first[q]) % chunks * kChunk;
      body(slot, pair, b, q, e, std::min(kChunk, pair.N - e));
    }
  });
}

const char* at(const void* base, DType dtype, int64_t element) {
  return static_cast<const char*>(base) + element * kItemSize[index_of(dtype)];
}
char* at(void* base, DType dtype, int64_t element) {
  return const_cast<char*>(at(static_cast<const void*>(base), dtype, element));
}

// alpha[T] of one sample and student layer from its T weights or energies.
template <class R>
void allocate_attention(const R* weight, const Weighting& weighting, double* alpha) {
  const int32_t T = weighting.T;
  if (!weighting.softmax) {
    for (int32_t j = 0; j < T; ++j) alpha[j] = weight[j];
    return;
  }
  double largest = weight[0], sum = 0;
  for (int32_t j = 1; j < T; ++j) largest = std::max<double>(largest, weight[j]);
  for (int32_t j = 0; j < T; ++j) sum += alpha[j] = std::exp(weight[j] - largest);
  for (int32_t j = 0; j < T; ++j) alpha[j] /= sum;
}

// Calls body(row, alpha) for every sample and student layer; a row holds the T entries from row * T on.
template <class R, class Body>
void for_each_row(const PairList& list, const Weighting& weighting, const Body& body) {
  const R* weight = static_cast<const R*>(weighting.weight);
  std::vector<double> alpha(weighting.T);
  for (int64_t row = 0; row < list.B * weighting.S; ++row) {
    allocate_attention(weight + row * weighting.T, weighting, alpha.data());
    body(row, alpha.data());
  }
}

template <class R>
void forward(const PairList& list, const Weighting& weighting, R* pair_mse, R* loss) {
  const PairLossKernels& kernels = pair_loss_kernels();
  std::vector<double> mse(list.B * list.Q, 0.0);
  {
    int64_t slots = 0;
    for (int32_t q = 0; q < list.Q; ++q) slots += list.B * chunks_per_sample(list.pair[q]);
    std::vector<double> partial(slots);
    for_each_chunk(list, [&](int64_t slot, const Pair& pair, int64_t b, int32_t, int64_t e, int64_t count) {
      const auto sum_squared = kernels.sum_squared[index_of(pair.s_dtype)][index_of(pair.t_dtype)];
      partial[slot] = sum_squared(at(pair.s, pair.s_dtype, b * pair.s_stride + e),
                                  at(pair.t, pair.t_dtype, b * pair.t_stride + e), count);
    });
    const double* next = partial.data();
    for (int32_t q = 0; q < list.Q; ++q)
      for (int64_t b = 0; b < list.B; ++b) {
        double& sum = mse[b * list.Q + q];
        for (int64_t chunk = chunks_per_sample(list.pair[q]); chunk > 0; --chunk) sum += *next++;
        sum /= static_cast<double>(list.pair[q].N);
      }
  }
  for (size_t i = 0; i < mse.size(); ++i) pair_mse[i] = static_cast<R>(mse[i]);
  if (!loss) return;
  double sum = 0;
  for_each_row<R>(list, weighting, [&](int64_t row, const double* alpha) {
    for (int32_t j = 0; j < weighting.T; ++j) sum += alpha[j] * mse[row * weighting.T + j];
  });
  *loss = static_cast<R>(sum / std::max<double>(1, static_cast<double>(list.B) * weighting.S));
}

// coef [B, Q] from the loss's gradient, and the gradient of the weight on the way.
template <class R>
void coefficients_from_loss(const PairList& list, const Weighting& weighting, R d_loss, const R* pair_mse, double* coef,
                            R* d_weight) {
  const double unit = static_cast<double>(d_loss) / (static_cast<double>(list.B) * weighting.S);
  for_each_row<R>(list, weighting, [&](int64_t row, const double* alpha) {
    const int64_t first = row * weighting.T;
    for (int32_t j = 0; j < weighting.T; ++j) {
      coef[first + j] = unit * alpha[j];
      double slope = pair_mse[first + j];
      if (weighting.softmax) {
        // alpha_j (D_j - sum_k alpha_k D_k), as a sum of differences: large errors that differ little cancel exactly
        slope = 0;
        for (int32_t k = 0; k < weighting.T; ++k)
          slope += alpha[j] * alpha[k] * (static_cast<double>(pair_mse[first + j]) - pair_mse[first + k]);
      }
      d_weight[first + j] = static_cast<R>(unit * slope);
    }
  });
}

template <class R>
void backward(const PairList& list, const Weighting& weighting, const R* d_loss, const R* pair_mse, const R* d_pair_mse,
              R* d_weight) {
  const PairLossKernels& kernels = pair_loss_kernels();
  std::vector<double> coef(list.B * list.Q);
  if (d_loss) {
    coefficients_from_loss(list, weighting, *d_loss, pair_mse, coef.data(), d_weight);
  } else {
    for (size_t i = 0; i < coef.size(); ++i) coef[i] = d_pair_mse[i];
  }
  for_each_chunk(list, [&](int64_t, const Pair& pair, int64_t b, int32_t q, int64_t e, int64_t count) {
    if (!pair.d_s && !pair.d_t) return;
    const auto difference = kernels.scaled_difference[index_of(pair.s_dtype)][index_of(pair.t_dtype)];
    difference(coef[b * list.Q + q] * 2 / static_cast<double>(pair.N), at(pair.s, pair.s_dtype, b * pair.s_stride + e),
               at(pair.t, pair.t_dtype, b * pair.t_stride + e),
               pair.d_s ? at(pair.d_s, pair.s_dtype, b * pair.d_s_stride + e) : nullptr,
               pair.d_t ? at(pair.d_t, pair.t_dtype, b * pair.d_t_stride + e) : nullptr, count);
  });
}

}  // namespace

void pair_loss_fwd(const PairList& list, const Weighting& weighting, void* pair_mse, void* loss) {
  if (accumulates_in_double(list)) {
    forward(list, weighting, static_cast<double*>(pair_mse), static_cast<double*>(loss));
  } else {
    forward(list, weighting, static_cast<float*>(pair_mse), static_cast<float*>(loss));
  }
}

void pair_loss_bwd(const PairList& list, const Weighting& weighting, const void* d_loss, const void* pair_mse,
                   const void* d_pair_mse, void* d_weight) {
  if (accumulates_in_double(list)) {
    backward(list, weighting, static_cast<const double*>(d_loss), static_cast<const double*>(pair_mse),
             static_cast<const double*>(d_pair_mse), static_cast<double*>(d_weight));
  } else {
    backward(list, weighting, static_cast<const float*>(d_loss), static_cast<const float*>(pair_mse),
             static_cast<const float*>(d_pair_mse), static_cast<float*>(d_weight));
  }
}

}  // namespace semckd
