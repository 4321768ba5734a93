// Vectors as wide as the instruction set this file is compiled for, and how elements get in and
// out.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace fastcnn::FASTCNN_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// For a lambda whose captures belong in registers.
#define FASTCNN_INLINE __attribute__((always_inline))

template <class A>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));
  using Int = int32_t;
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
  using Int = int64_t;
};

template <class A>
using Vec = typename Lanes<A>::V;
template <class A>
using IntVec = typename Lanes<A>::I;
template <class A>
using Int = typename Lanes<A>::Int;
template <class A>
constexpr int lanes = kVectorBytes / sizeof(A);

template <class V, class E>
inline V load(const E* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class E>
inline void store(E* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// The first n values of a vector; the others are 0, and their memory is not touched.
template <class V, class E>
inline V load_first(const E* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(E) == 8) return (V)_mm512_maskz_loadu_epi64((1u << n) - 1, p);
  if constexpr (sizeof(E) == 4) return (V)_mm512_maskz_loadu_epi32((1u << n) - 1, p);
  if constexpr (sizeof(E) == 2) return (V)_mm256_maskz_loadu_epi16((1u << n) - 1, p);
#else
  V v = {};
  std::memcpy(&v, p, n * sizeof(E));
  return v;
#endif
}

template <class V, class E>
inline void store_first(E* p, V v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(E) == 8) _mm512_mask_storeu_epi64(p, (1u << n) - 1, (__m512i)v);
  if constexpr (sizeof(E) == 4) _mm512_mask_storeu_epi32(p, (1u << n) - 1, (__m512i)v);
  if constexpr (sizeof(E) == 2) _mm256_mask_storeu_epi16(p, (1u << n) - 1, (__m256i)v);
#else
  std::memcpy(p, &v, n * sizeof(E));
#endif
}

// Whether v replaces m as a maximum: of equals the first stays, of NaNs the last, as in torch.
// NANS: there may be any.
template <bool NANS, class V>
inline auto beats(V v, V m) {
  if constexpr (NANS)
    return (v > m) | (v != v);
  else
    return v > m;
}

template <class A>
inline Vec<A> rectify(Vec<A> v) {
  const Vec<A> zero = {};
  return zero > v ? zero : v;  // a NaN stays
}

template <class A, int... i>
inline Vec<A> even_lanes(Vec<A> a, Vec<A> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i)...);
}

// Two neighbouring vectors' values at even places.
template <class A>
inline Vec<A> even_lanes(Vec<A> a, Vec<A> b) {
  return even_lanes<A>(a, b, std::make_integer_sequence<int, lanes<A>>());
}

template <class A, int... i>
inline void interleave(Vec<A> a, Vec<A> b, A* out, std::integer_sequence<int, i...>) {
  constexpr int L = lanes<A>;
  store(out, __builtin_shufflevector(a, b, (i / 2 + i % 2 * L)...));
  store(out + L, __builtin_shufflevector(a, b, (L / 2 + i / 2 + i % 2 * L)...));
}

// a[0], b[0], a[1], b[1] and so on: two vectors.
template <class A>
inline void interleave(Vec<A> a, Vec<A> b, A* out) {
  interleave<A>(a, b, out, std::make_integer_sequence<int, lanes<A>>());
}

template <class A, int FROM, int... i>
inline Vec<A> lanes_from(Vec<A> a, Vec<A> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (FROM + i)...);
}

// A vector of the lanes of a and b, which follow each other, from lane FROM on.
template <class A, int FROM>
inline Vec<A> lanes_from(Vec<A> a, Vec<A> b) {
  return lanes_from<A, FROM>(a, b, std::make_integer_sequence<int, lanes<A>>());
}

template <class A, int H, int... i>
inline void exchange(Vec<A>& a, Vec<A>& b, std::integer_sequence<int, i...>) {
  constexpr int L = lanes<A>;
  const Vec<A> first = __builtin_shufflevector(a, b, (i & H ? L + i - H : i)...);
  b = __builtin_shufflevector(a, b, (i & H ? L + i : i + H)...);
  a = first;
}

// As many vectors as lanes, rows and columns exchanged: blocks of H of them, then of half as many.
template <class A, int H = lanes<A> / 2>
inline void transpose(Vec<A>* v) {
  constexpr int L = lanes<A>;
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k)
    if (!(k & H)) exchange<A, H>(v[k], v[k + H], std::make_integer_sequence<int, L>());
  if constexpr (H > 1) transpose<A, H / 2>(v);
}

// v with zeros from lane n on.
template <class A>
inline Vec<A> first_lanes(Vec<A> v, int64_t n) {
  IntVec<A> lane;
  for (int l = 0; l < lanes<A>; ++l) lane[l] = l;
  return lane < Int<A>(n) ? v : Vec<A>{};
}

// An element type: how one value, and a vector of them as they lie in memory (Raw), become
// arithmetic ones and come back. kZero: the largest value that comes back as 0.
struct F32 {
  using Acc = float;
  using Raw = Vec<float>;
  static constexpr float kZero = 0;
  float value;
  static float get(F32 x) { return x.value; }
  static F32 put(float a) { return {a}; }
  static Vec<float> widen(Raw v) { return v; }
  static Raw narrow(Vec<float> v) { return v; }
};

struct F64 {
  using Acc = double;
  using Raw = Vec<double>;
  static constexpr double kZero = 0;
  double value;
  static double get(F64 x) { return x.value; }
  static F64 put(double a) { return {a}; }
  static Vec<double> widen(Raw v) { return v; }
  static Raw narrow(Vec<double> v) { return v; }
};

// The element type that needs no conversion.
template <class A>
using Plain = std::conditional_t<sizeof(A) == 4, F32, F64>;

using Halves = uint16_t __attribute__((vector_size(kVectorBytes / 2)));

// The upper half of a float, rounded to nearest even.
struct BF16 {
  using Acc = float;
  using Raw = Halves;
  using Bits = uint32_t __attribute__((vector_size(kVectorBytes)));
  static constexpr float kZero = 0x1p-134f;
  uint16_t bits;

  template <class U>
  static U round(U u) {
    return (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  }
  static float get(BF16 x) {
    const uint32_t u = uint32_t(x.bits) << 16;
    float a;
    std::memcpy(&a, &u, 4);
    return a;
  }
  static BF16 put(float a) {
    uint32_t u;
    std::memcpy(&u, &a, 4);
    return {uint16_t(a != a ? 0x7fc0 : round(u))};
  }
  static Vec<float> widen(Raw v) {
    const Bits u = wide(v) << 16;
    return load<Vec<float>>(&u);
  }
  static Raw narrow(Vec<float> v) {
    const Bits nan = Bits{} + 0x7fc0;
    return low_halves(v != v ? nan : round(load<Bits>(&v)));
  }

 private:
#if defined(__AVX512F__)  // one instruction, where gcc 12 makes several of the conversion
  static Bits wide(Raw v) { return (Bits)_mm512_cvtepu16_epi32((__m256i)v); }
  static Raw low_halves(Bits u) { return (Raw)_mm512_cvtepi32_epi16((__m512i)u); }
#else
  static Bits wide(Raw v) { return __builtin_convertvector(v, Bits); }
  static Raw low_halves(Bits u) { return __builtin_convertvector(u, Raw); }
#endif
};

// IEEE binary16: by F16C where the instruction set has it, else bit by bit.
struct F16 {
  using Acc = float;
  using Raw = Halves;
  static constexpr float kZero = 0x1p-25f;
  uint16_t bits;

#if defined(__F16C__)
  static float get(F16 x) { return _cvtsh_ss(x.bits); }
  static F16 put(float a) { return {uint16_t(_cvtss_sh(a, _MM_FROUND_TO_NEAREST_INT))}; }
#else
  static float get(F16 x) {
    const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude < 0x400) {  // zero and subnormals: multiples of 2^-24
      const float a = float(magnitude) * 0x1p-24f;
      return sign ? -a : a;
    }
    const uint32_t exponent = magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u;
    const uint32_t u = sign | ((magnitude << 13) + exponent);
    float a;
    std::memcpy(&a, &u, 4);
    return a;
  }
  static F16 put(float a) {
    uint32_t u;
    std::memcpy(&u, &a, 4);
    const uint16_t sign = uint16_t((u >> 16) & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (u >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
    if (u < 0x38800000) {  // the float adder rounds to a multiple of 2^-24 for us
      float m;
      std::memcpy(&m, &u, 4);
      m += 0.5f;
      std::memcpy(&u, &m, 4);
      return {uint16_t(sign | (u - 0x3f000000))};
    }
    return {uint16_t(sign | ((u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13))};
  }
#endif

#if defined(__AVX512F__)
  static Vec<float> widen(Raw v) { return (Vec<float>)_mm512_cvtph_ps((__m256i)v); }
  static Raw narrow(Vec<float> v) {
    return (Raw)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  }
#elif defined(__F16C__)
  static Vec<float> widen(Raw v) { return (Vec<float>)_mm256_cvtph_ps((__m128i)v); }
  static Raw narrow(Vec<float> v) {
    return (Raw)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  }
#else
  static Vec<float> widen(Raw v) {
    Vec<float> a;
    for (int l = 0; l < lanes<float>; ++l) a[l] = get(F16{v[l]});
    return a;
  }
  static Raw narrow(Vec<float> v) {
    Raw r;
    for (int l = 0; l < lanes<float>; ++l) r[l] = put(v[l]).bits;
    return r;
  }
#endif
};

}  // namespace fastcnn::FASTCNN_ISA
