// What the processor's arithmetic can do: independent chains of fused multiply-adds in registers, on every thread.
//
// bench/fma_peak.py compiles this for the machine it runs on. The vectors are the widest that the compiler finds there.
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

// two pipes of a latency of five want ten chains, four pipes of four sixteen; all must fit the registers beside a and b
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif

typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / sizeof(float);

// the compiler must not know the factors, or take equal chains for one
volatile float scale = 0.999f, offset = 0.001f;

float sum_lanes(Vector x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

float run_fp32(int64_t steps) {
  Vector chains[kChains];
  const Vector a = scale - Vector{}, b = offset - Vector{};
  for (int k = 0; k < kChains; ++k) chains[k] = static_cast<float>(k) - Vector{};
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int k = 0; k < kChains; ++k) chains[k] = chains[k] * a + b;
  }
  Vector total = chains[0];
  for (int k = 1; k < kChains; ++k) total += chains[k];
  return sum_lanes(total);
}

#if defined(__AVX512BF16__)
constexpr int64_t kBf16Operations = 4 * kLanes;

float run_bf16(int64_t steps) {
  __m512 chains[kChains];
  const __m512 wide = _mm512_set1_ps(offset);
  const __m512bh a = _mm512_cvtne2ps_pbh(wide, wide);
  for (int k = 0; k < kChains; ++k) chains[k] = _mm512_set1_ps(static_cast<float>(k));
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (int k = 0; k < kChains; ++k) chains[k] = _mm512_dpbf16_ps(chains[k], a, a);
  }
  __m512 total = chains[0];
  for (int k = 1; k < kChains; ++k) total = _mm512_add_ps(total, chains[k]);
  return sum_lanes(total);
}
#else
constexpr int64_t kBf16Operations = 0;

float run_bf16(int64_t) { return 0; }
#endif

}  // namespace

extern "C" {

// Floating-point operations of a step on one thread, a multiply-add being two; 0 where there are no such instructions.
int64_t fma_operations(int bf16) { return kChains * (bf16 ? kBf16Operations : 2 * kLanes); }

// That many steps on each of so many threads; what comes back keeps the compiler from leaving them out.
float fma_run(int bf16, int64_t steps, int threads) {
  std::vector<float> results(threads);
  const auto work = [&](int n) { results[n] = bf16 ? run_bf16(steps) : run_fp32(steps); };
  std::vector<std::thread> others;
  for (int n = 1; n < threads; ++n) others.emplace_back(work, n);
  work(0);
  for (std::thread& other : others) other.join();
  float sum = 0;
  for (const float result : results) sum += result;
  return sum;
}
}
