// The stages as formulas on spans: rows of arithmetic values in scratch memory, a vector at a time.
// Which values lie side by side (pixels of a channel, or channels of a pixel) is the callers'
// affair. Scratch spans may be read and written up to a vector past their end.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../math.h"
#include "../params.h"
#include "lanes.h"

namespace fastcnn::FASTCNN_ISA {

// out[i] = op(x[i * stride], i); out is written to its n-th element and no further.
template <class T, class Op>
inline void read(const T* x, int64_t stride, int64_t n, typename T::Acc* out, Op op) {
  using A = typename T::Acc;
  constexpr int L = lanes<A>;
  int64_t i = 0;
  if (stride == 1)
    for (; i + L <= n; i += L) store(out + i, op(T::get(x + i), i));
  for (; i < n; i += L) {
    const int64_t m = std::min<int64_t>(L, n - i);
    Vec<A> v = {};
    for (int64_t l = 0; l < m; ++l) v[l] = T::get(x[(i + l) * stride]);
    v = op(v, i);
    std::memcpy(out + i, &v, m * sizeof(A));
  }
}

template <class T>
inline void read(const T* x, int64_t stride, int64_t n, typename T::Acc* out) {
  read(x, stride, n, out, [](auto v, int64_t) { return v; });
}

template <class T>
inline void write(const typename T::Acc* in, int64_t n, T* out) {
  using A = typename T::Acc;
  constexpr int L = lanes<A>;
  int64_t i = 0;
  for (; i + L <= n; i += L) T::put(out + i, load<Vec<A>>(in + i));
  for (; i < n; ++i) out[i] = T::put(in[i]);
}

// An LRN's constants, in the precision of the arithmetic.
template <class A>
struct Norm {
  int64_t size, before, after;
  A scale, k, beta, slope;

  explicit Norm(const Lrn& lrn)
      : size(lrn.size),
        before(lrn.size / 2),
        after((lrn.size - 1) / 2),
        scale(A(lrn.alpha / std::max<int64_t>(1, lrn.size))),
        k(A(lrn.k)),
        beta(A(lrn.beta)),
        slope(A(2 * lrn.alpha * lrn.beta / std::max<int64_t>(1, lrn.size))) {}
};

// d = k + alpha/size * sum over the window of r^2. SIZE: the window's, where it is known; else 0.
template <class A, int SIZE>
inline Vec<A> denominator(const A* const* window, const Norm<A>& norm, int64_t i) {
  const int64_t size = SIZE ? SIZE : norm.size;
  Vec<A> sum = {};
#pragma GCC unroll 8
  for (int64_t j = 0; j < size; ++j) {
    const Vec<A> r = load<Vec<A>>(window[j] + i);
    sum += r * r;
  }
  return norm.k + norm.scale * sum;
}

// d^-3/4 for d from 2^-60 to 2^60: the exponent by integer arithmetic (4 % off), then twice
// p <- p (1 + e/4 + 5/32 e^2) with e = 1 - d^3 p^4, to one unit in the last place. Three times as
// fast as two square roots and a division.
inline Vec<float> fast_inverse_power(Vec<float> d) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const I bits = load<I>(&d);
  const I estimate = 0x6f150000 - (bits - (bits >> 2));
  V p = load<V>(&estimate);
#pragma GCC unroll 2
  for (int step = 0; step < 2; ++step) {
    const V t = p * p * d;
    const V e = 1.0f - t * t * d;
    p += p * e * (0.25f + 0.15625f * e);
  }
  return p;
}

// d^-beta for any d.
template <class A, Beta KIND>
inline Vec<A> exact_inverse_power(Vec<A> d, A beta) {
  for (int l = 0; l < lanes<A>; ++l) d[l] = inverse_power<KIND>(A(d[l]), beta);
  return d;
}

// Runs body(i, d^-beta's function) over a span; with the fast power, and once more if any d was out
// of its range (or NaN). Each value depends on its own d alone, whatever else is in the span.
template <class A, Beta KIND, class Body>
inline void with_power(int64_t n, A beta, Body body) {
  constexpr int L = lanes<A>;
  if constexpr (KIND == Beta::three_quarters && sizeof(A) == 4) {
    const auto usual = [](Vec<A> d) { return (d >= 0x1p-60f) & (d <= 0x1p60f); };
    IntVec<A> unusual = {};
    for (int64_t i = 0; i < n; i += L)
      body(i, [&](Vec<A> d) {
        unusual |= ~usual(d);
        return fast_inverse_power(d);
      });
    bool any = false;
    for (int l = 0; l < L; ++l) any |= unusual[l] != 0;
    if (!any) return;
    for (int64_t i = 0; i < n; i += L)
      body(i, [&](Vec<A> d) {
        return usual(d) ? fast_inverse_power(d) : exact_inverse_power<A, KIND>(d, beta);
      });
  } else {
    for (int64_t i = 0; i < n; i += L)
      body(i, [&](Vec<A> d) { return exact_inverse_power<A, KIND>(d, beta); });
  }
}

// out = r d^-beta, with r the window's middle.
template <class A, int SIZE, Beta KIND>
void normalise(const A* const* window, const Norm<A>& norm, int64_t n, A* out) {
  const A* r = window[norm.before];
  with_power<A, KIND>(n, norm.beta, [&](int64_t i, auto power) {
    store(out + i, load<Vec<A>>(r + i) * power(denominator<A, SIZE>(window, norm, i)));
  });
}

// direct = g d^-beta and cross = g r d^(-beta-1), the two terms of the LRN's gradient.
template <class A, int SIZE, Beta KIND>
void gradient_terms(const A* g, const A* const* window, const Norm<A>& norm, int64_t n, A* direct,
                    A* cross) {
  const A* r = window[norm.before];
  with_power<A, KIND>(n, norm.beta, [&](int64_t i, auto power) {
    const Vec<A> d = denominator<A, SIZE>(window, norm, i);
    const Vec<A> gp = load<Vec<A>>(g + i) * power(d);
    store(direct + i, gp);
    store(cross + i, gp * load<Vec<A>>(r + i) / d);
  });
}

// out = direct - (2 alpha beta/size) r sum of cross over the mirrored window.
template <class A, int SIZE>
void gradient(const A* direct, const A* r, const A* const* mirrored, const Norm<A>& norm, int64_t n,
              A* out) {
  const int64_t size = SIZE ? SIZE : norm.size;
  for (int64_t i = 0; i < n; i += lanes<A>) {
    Vec<A> sum = {};
#pragma GCC unroll 8
    for (int64_t j = 0; j < size; ++j) sum += load<Vec<A>>(mirrored[j] + i);
    store(out + i, load<Vec<A>>(direct + i) - norm.slope * load<Vec<A>>(r + i) * sum);
  }
}

// The LRN's functions for one window size and one exponent, chosen once per launch.
template <class A>
struct NormFunctions {
  void (*normalise)(const A* const*, const Norm<A>&, int64_t, A*);
  void (*gradient_terms)(const A*, const A* const*, const Norm<A>&, int64_t, A*, A*);
  void (*gradient)(const A*, const A*, const A* const*, const Norm<A>&, int64_t, A*);

  template <int SIZE, Beta KIND>
  static NormFunctions of() {
    return {&FASTCNN_ISA::normalise<A, SIZE, KIND>, &FASTCNN_ISA::gradient_terms<A, SIZE, KIND>,
            &FASTCNN_ISA::gradient<A, SIZE>};
  }
  static NormFunctions of(const Lrn& lrn) {
    switch (kind_of(lrn.beta)) {
      case Beta::three_quarters:
        return lrn.size == 5 ? of<5, Beta::three_quarters>() : of<0, Beta::three_quarters>();
      case Beta::half:
        return of<0, Beta::half>();
      case Beta::one:
        return of<0, Beta::one>();
      default:
        return of<0, Beta::other>();
    }
  }
};

// g = 0 where a ReLU's output (or the LRN's input after it) is not above 0; a NaN lets it pass.
template <class A>
inline void mask(const A* r, int64_t n, A* g) {
  for (int64_t i = 0; i < n; i += lanes<A>) {
    const Vec<A> zero = {};
    store(g + i, load<Vec<A>>(r + i) <= 0 ? zero : load<Vec<A>>(g + i));
  }
}

// The sum of a span, in double past the lanes' own sums.
template <class A>
inline double total(const A* g, int64_t n) {
  constexpr int L = lanes<A>;
  Vec<A> sums = {};
  int64_t i = 0;
  for (; i + L <= n; i += L) sums += load<Vec<A>>(g + i);
  double sum = 0;
  for (int l = 0; l < L; ++l) sum += sums[l];
  for (; i < n; ++i) sum += g[i];
  return sum;
}

// One window's candidates: where each place's values start, and which place it is (row-major).
template <class A>
struct Candidates {
  const A* const* spans;
  const int32_t* places;
  int64_t count;
};

// out = the largest candidate and place = where it was: the first of equals, the last NaN, as
// torch.
template <class A, int COUNT, bool PLACES>
inline void maximum(const Candidates<A>& from, int64_t n, A* out, Int<A>* place) {
  const int64_t count = COUNT ? COUNT : from.count;
  for (int64_t i = 0; i < n; i += lanes<A>) {
    Vec<A> best = load<Vec<A>>(from.spans[0] + i);
    IntVec<A> at = IntVec<A>{} + from.places[0];
#pragma GCC unroll 8
    for (int64_t j = 1; j < count; ++j) {
      const Vec<A> v = load<Vec<A>>(from.spans[j] + i);
      const auto better = beats(v, best);
      best = better ? v : best;
      if constexpr (PLACES) at = better ? IntVec<A>{} + from.places[j] : at;
    }
    store(out + i, best);
    if constexpr (PLACES) store(place + i, at);
  }
}

// As above, with the common numbers of candidates (3x3, 2x2) unrolled; place may be null.
template <class A>
inline void maximum(const Candidates<A>& from, int64_t n, A* out, Int<A>* place) {
  const auto run = [&](auto places) {
    constexpr bool PLACES = decltype(places)::value;
    if (from.count == 9) return maximum<A, 9, PLACES>(from, n, out, place);
    if (from.count == 4) return maximum<A, 4, PLACES>(from, n, out, place);
    return maximum<A, 0, PLACES>(from, n, out, place);
  };
  return place ? run(std::true_type{}) : run(std::false_type{});
}

}  // namespace fastcnn::FASTCNN_ISA
