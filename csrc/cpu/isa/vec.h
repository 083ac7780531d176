// Vectors as wide as the registers of the instruction set, and the conversions of the four map types. (Of wider ones
// compilers make element by element what they have no single instruction for, and keep them in memory.) Included only
// by files that are compiled once per instruction set, so everything has internal linkage.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace semckd {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
template <class R>
constexpr int64_t kLanes = kVectorBytes / sizeof(R);

using F32s = float __attribute__((vector_size(kVectorBytes)));
using F64s = double __attribute__((vector_size(kVectorBytes)));
using U32s = uint32_t __attribute__((vector_size(kVectorBytes)));
using U16s = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

// Storage types. Distinct structs, so that templates and overloads tell the two 16-bit formats apart.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class V>
inline V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
inline void store_as(void* p, const V& v) {
  std::memcpy(p, &v, sizeof(V));
}
template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  return load_as<To>(&from);
}
#if defined(__AVX512F__)
// spelled out: gcc 12 takes four instructions where there is one
inline U32s widen(U16s v) { return U32s(_mm512_cvtepu16_epi32(__m256i(v))); }
inline U16s narrow(U32s v) { return U16s(_mm512_cvtepi32_epi16(__m512i(v))); }
#else
inline U32s widen(U16s v) { return __builtin_convertvector(v, U32s); }
inline U16s narrow(U32s v) { return __builtin_convertvector(v, U16s); }
#endif

// What sums over maps of type T are kept in: floats, or doubles for double maps.
template <class T>
struct Accumulator {
  using Type = float;
  using Vec = F32s;
};
template <>
struct Accumulator<double> {
  using Type = double;
  using Vec = F64s;
};
template <class T>
using AccType = typename Accumulator<T>::Type;
template <class T>
using AccVec = typename Accumulator<T>::Vec;

inline F32s load(const float* p) { return load_as<F32s>(p); }
inline F64s load(const double* p) { return load_as<F64s>(p); }
inline F32s load(const BFloat16* p) { return bit_cast<F32s>(widen(load_as<U16s>(p)) << 16); }

inline void store(float* p, F32s v) { store_as(p, v); }
inline void store(double* p, F64s v) { store_as(p, v); }
inline void store(BFloat16* p, F32s v) {
  const U32s u = bit_cast<U32s>(v);
  const U32s nearest_even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  // a NaN, which alone is not equal to itself, stays one: rounding could carry it into infinity
  store_as(p, narrow(v != v ? (u >> 16) | 0x40 : nearest_even));
}

#if defined(__AVX512F__)
inline F32s load(const Half* p) { return F32s(_mm512_cvtph_ps(load_as<__m256i>(p))); }
inline void store(Half* p, F32s v) { store_as(p, _mm512_cvtps_ph(__m512(v), _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__F16C__)
inline F32s load(const Half* p) { return F32s(_mm256_cvtph_ps(load_as<__m128i>(p))); }
inline void store(Half* p, F32s v) { store_as(p, _mm256_cvtps_ph(__m256(v), _MM_FROUND_TO_NEAREST_INT)); }
#else
inline F32s load(const Half* p) {
  const U32s h = widen(load_as<U16s>(p));
  const U32s magnitude = h & 0x7fff;
  // the exponent field moves to its place in a float; the product corrects the bias, subnormals included
  const F32s scaled = bit_cast<F32s>(magnitude << 13) * 0x1p112f;
  const U32s bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000 : bit_cast<U32s>(scaled);
  return bit_cast<F32s>(bits | ((h & 0x8000) << 16));
}
inline void store(Half* p, F32s v) {
  const U32s u = bit_cast<U32s>(v);
  const U32s sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffff;
  // normal numbers: move the exponent's bias, round the 13 bits that go to nearest even; overflow carries into inf
  const U32s normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // subnormal numbers: adding 0.5 lets the float adder align and round the mantissa
  const U32s subnormal = bit_cast<U32s>(bit_cast<F32s>(magnitude) + 0.5f) - 0x3f000000;
  const U32s special = v != v ? U32s{} + 0x7e00 : U32s{} + 0x7c00;
  const U32s finite = magnitude < (113u << 23) ? subnormal : normal;
  store_as(p, narrow((magnitude >= (143u << 23) ? special : finite) | sign));
}
#endif

// The first `count` (< lanes) elements, zeros behind them; and its counterpart.
template <class T, class V>
inline V load_first(const T* p, int64_t count) {
  T padded[sizeof(V) / sizeof(V{}[0])] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <class T, class V>
inline void store_first(T* p, V v, int64_t count) {
  T padded[sizeof(V) / sizeof(V{}[0])];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

template <class V>
inline double sum_of_lanes(V v) {
  double sum = 0;
  for (unsigned lane = 0; lane < sizeof(v) / sizeof(v[0]); ++lane) sum += v[lane];
  return sum;
}

}  // namespace
}  // namespace semckd
