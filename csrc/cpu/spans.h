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
  using Raw = typename T::Raw;
  constexpr int L = lanes<A>;
  if (stride == 1) {
    int64_t i = 0;
    for (; i + L <= n; i += L) store(out + i, op(T::widen(load<Raw>(x + i)), i));
    if (i < n) store_first(out + i, op(T::widen(load_first<Raw>(x + i, n - i)), i), n - i);
    return;
  }
  for (int64_t i = 0; i < n; i += L) {
    const int64_t m = std::min<int64_t>(L, n - i);
    Vec<A> v = {};
    for (int64_t l = 0; l < m; ++l) v[l] = T::get(x[(i + l) * stride]);
    store_first(out + i, op(v, i), m);
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
  for (; i + L <= n; i += L) store(out + i, T::narrow(load<Vec<A>>(in + i)));
  if (i < n) store_first(out + i, T::narrow(load<Vec<A>>(in + i)), n - i);
}

// An LRN's constants, in the precision of the arithmetic.
template <class A>
struct Norm {
  int64_t size, before, after;
  A scale, k, slope;
  double beta;

  explicit Norm(const Lrn& lrn)
      : size(lrn.size),
        before(lrn.size / 2),
        after((lrn.size - 1) / 2),
        scale(A(lrn.alpha / std::max<int64_t>(1, lrn.size))),
        k(A(lrn.k)),
        slope(A(2 * lrn.alpha * lrn.beta / std::max<int64_t>(1, lrn.size))),
        beta(lrn.beta) {}
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

// d^-3/4 for d from 2^-60 to 2^60: p from the exponent by integer arithmetic, 4 % off at most, then
// p (1 - e)^-1/4 with e = 1 - d^3 p^4, a polynomial in e that is the series with its tail
// economised for |e| < 0.17. Four times as fast as two square roots and a division.
inline Vec<float> fast_inverse_power(Vec<float> d) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const I bits = load<I>(&d);
  const I estimate = 0x6f144000 - (bits - (bits >> 2));
  const V p = load<V>(&estimate);
  const V t = p * p * d;
  const V e = 1.0f - t * t * d;
  V sum = V{} + 0.0747205f;
  for (const float c : {0.0837669f, 0.0951446f, 0.1171563f, 0.1562503f, 0.25f}) sum = sum * e + c;
  return p + p * e * sum;
}

// d^-beta for d from 2^-60 to 2^60 and any beta, in double, to some 1e-9: d = 2^k m with m within
// sqrt(2) of 1, log2 m by the series in f = (m - 1)/(m + 1), 2^-n by that of the exponential.
inline Vec<double> fast_inverse_power(Vec<double> d, double beta) {
  using V = Vec<double>;
  using I = IntVec<double>;
  const I bits = load<I>(&d);
  const I k = (bits - 0x3fe6a09e667f3bcd) >> 52;
  const I mantissa = bits - (k << 52);
  const V m = load<V>(&mantissa), f = (m - 1.0) / (m + 1.0), s = f * f;
  V log2 = V{} + 0.22195308321368667;
  for (const double c : {0.2623081892525388, 0.3205988979753252, 0.4121985831111324,
                         0.5770780163555853, 0.9617966939259756, 2.8853900817779268})
    log2 = log2 * s + c;
  constexpr double kWhole = 0x1.8p52;  // added to a number, leaves its whole part in the last bits
  const V y = -beta * (log2 * f + __builtin_convertvector(k, V));
  const V low = V{} - 1000.0, high = V{} + 1000.0;  // past what floats reach, within double's
  const V n = y < low ? low : y > high ? high : y;
  const V whole = n + kWhole, g = n - (whole - kWhole);
  V power = V{} + 1.3215486790144305e-06;
  for (const double c :
       {1.5252733804059838e-05, 0.00015403530393381606, 0.0013333558146428441, 0.009618129107628477,
        0.055504108664821576, 0.2402265069591007, 0.6931471805599453, 1.0})
    power = power * g + c;
  const I result = load<I>(&power) + (load<I>(&whole) << 52);
  return load<V>(&result);
}

template <Beta KIND>
inline Vec<float> fast_inverse_power(Vec<float> d, double beta) {
  if constexpr (KIND == Beta::three_quarters) return fast_inverse_power(d);
  typedef float Half __attribute__((vector_size(kVectorBytes / 2)));
  Half halves[2];
  std::memcpy(halves, &d, sizeof d);
  for (Half& half : halves)
    half = __builtin_convertvector(
        fast_inverse_power(__builtin_convertvector(half, Vec<double>), beta), Half);
  return load<Vec<float>>(halves);
}

// d^-beta for any d.
template <class A, Beta KIND>
inline Vec<A> exact_inverse_power(Vec<A> d, double beta) {
  for (int l = 0; l < lanes<A>; ++l) d[l] = inverse_power<KIND>(A(d[l]), beta);
  return d;
}

// Runs body(i, d^-beta's function) over a span; with the fast power, and once more if any d was out
// of its range (or NaN). Each value depends on its own d alone, whatever else is in the span.
template <class A, Beta KIND, class Body>
inline void with_power(int64_t n, double beta, Body body) {
  constexpr int L = lanes<A>;
  if constexpr ((KIND == Beta::three_quarters || KIND == Beta::other) && sizeof(A) == 4) {
    const auto usual = [](Vec<A> d) { return (d >= 0x1p-60f) & (d <= 0x1p60f); };
    using Bits =
        uint32_t __attribute__((vector_size(kVectorBytes)));  // NaN and negative: the largest
    Bits least = Bits{} - 1, most = {};
    for (int64_t i = 0; i < n; i += L)
      body(i, [&](Vec<A> d) {
        const Bits bits = load<Bits>(&d);
        least = bits < least ? bits : least;
        most = bits > most ? bits : most;
        return fast_inverse_power<KIND>(d, beta);
      });
    bool all = true;
    for (int l = 0; l < L; ++l) all &= least[l] >= 0x21800000 && most[l] <= 0x5d800000;
    if (all) return;
    for (int64_t i = 0; i < n; i += L)
      body(i, [&](Vec<A> d) {
        return usual(d) ? fast_inverse_power<KIND>(d, beta) : exact_inverse_power<A, KIND>(d, beta);
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

// A channel's values on their way in: n from x on, plus bias, and none below `least`.
template <class T>
struct Source {
  using A = typename T::Acc;
  const T* x;
  int64_t n;
  A bias, least;  // -0 and -inf where there is neither

  Vec<A> operator()(int64_t i) const {
    using Raw = typename T::Raw;
    const bool whole = i + lanes<A> <= n;
    const Vec<A> v = T::widen(whole ? load<Raw>(x + i) : load_first<Raw>(x + i, n - i)) + bias;
    const Vec<A> low = Vec<A>{} + least;
    return low > v ? low : v;  // a NaN stays
  }
};

// The same, for windows of which the last span, `newest`, is yet to come from a source: a tenth
// faster than reading it first, since memory and arithmetic then wait for each other less.
template <class T, int SIZE, Beta KIND>
void take_and_normalise(const Source<T>& source, typename T::Acc* newest,
                        const typename T::Acc* const* window, const Norm<typename T::Acc>& norm,
                        typename T::Acc* out) {
  using A = typename T::Acc;
  const A* r = window[norm.before];
  const int64_t others = (SIZE ? SIZE : norm.size) - 1;
  with_power<A, KIND>(source.n, norm.beta, [&](int64_t i, auto power) {
    const Vec<A> last = source(i);
    store(newest + i, last);
    Vec<A> sum = {};
#pragma GCC unroll 8
    for (int64_t j = 0; j < others; ++j) {
      const Vec<A> v = load<Vec<A>>(window[j] + i);
      sum += v * v;
    }
    sum += last * last;
    store(out + i, load<Vec<A>>(r + i) * power(norm.k + norm.scale * sum));
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
template <class T>
struct NormFunctions {
  using A = typename T::Acc;
  void (*normalise)(const A* const*, const Norm<A>&, int64_t, A*);
  void (*take_and_normalise)(const Source<T>&, A*, const A* const*, const Norm<A>&, A*);
  void (*gradient_terms)(const A*, const A* const*, const Norm<A>&, int64_t, A*, A*);
  void (*gradient)(const A*, const A*, const A* const*, const Norm<A>&, int64_t, A*);

  template <int SIZE, Beta KIND>
  static NormFunctions of() {
    return {&FASTCNN_ISA::normalise<A, SIZE, KIND>, &FASTCNN_ISA::take_and_normalise<T, SIZE, KIND>,
            &FASTCNN_ISA::gradient_terms<A, SIZE, KIND>, &FASTCNN_ISA::gradient<A, SIZE>};
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

template <class A>
inline bool any_nan(const A* in, int64_t n) {
  constexpr int L = lanes<A>;
  IntVec<A> nan = {};
  bool any = false;
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<A> v = load<Vec<A>>(in + i);
    nan |= v != v;
  }
  for (int l = 0; l < L; ++l) any |= nan[l] != 0;
  for (; i < n; ++i) any |= in[i] != in[i];
  return any;
}

// Calls run with each flag as a compile-time constant.
template <class Run>
inline void with_flags(bool a, bool b, Run run) {
  using yes = std::true_type;
  using no = std::false_type;
  a ? b ? run(yes{}, yes{}) : run(yes{}, no{}) : b ? run(no{}, yes{}) : run(no{}, no{});
}

// One window's candidates: where each place's values start, and which place it is (row-major).
template <class A>
struct Candidates {
  const A* const* spans;
  const int32_t* places;
  int64_t count;
};

// out = the largest candidate and place = where it was.
template <class A, int COUNT, bool NANS, bool PLACES>
inline void maximum(const Candidates<A>& from, int64_t n, A* out, Int<A>* place) {
  const int64_t count = COUNT ? COUNT : from.count;
  for (int64_t i = 0; i < n; i += lanes<A>) {
    Vec<A> best = load<Vec<A>>(from.spans[0] + i);
    IntVec<A> at = IntVec<A>{} + from.places[0];
#pragma GCC unroll 8
    for (int64_t j = 1; j < count; ++j) {
      const Vec<A> v = load<Vec<A>>(from.spans[j] + i);
      const auto better = beats<NANS>(v, best);
      best = better ? v : best;
      if constexpr (PLACES) at = better ? IntVec<A>{} + from.places[j] : at;
    }
    store(out + i, best);
    if constexpr (PLACES) store(place + i, at);
  }
}

// As above, with the common numbers of candidates (3x3, 2x2) unrolled; nans: there may be any;
// place may be null.
template <class A>
inline void maximum(const Candidates<A>& from, bool nans, int64_t n, A* out, Int<A>* place) {
  with_flags(nans, place != nullptr, [&](auto nans, auto places) {
    constexpr bool N = decltype(nans)::value, P = decltype(places)::value;
    if (from.count == 9) return maximum<A, 9, N, P>(from, n, out, place);
    if (from.count == 4) return maximum<A, 4, N, P>(from, n, out, place);
    return maximum<A, 0, N, P>(from, n, out, place);
  });
}

// Of the n values at every stride-th place from in on, a vector of the first. STRIDE 0: any.
template <class A, int STRIDE>
inline Vec<A> load_strided(const A* in, int64_t stride, int64_t n) {
  if constexpr (STRIDE == 1) return load<Vec<A>>(in);
  if constexpr (STRIDE == 2) return even_lanes<A>(load<Vec<A>>(in), load<Vec<A>>(in + lanes<A>));
  Vec<A> v = {};
  for (int64_t l = 0; l < std::min<int64_t>(lanes<A>, n); ++l) v[l] = in[l * stride];
  return v;
}

// Windows along one axis: places in a window, from one of them to the next, from window to window.
struct Axis {
  int64_t count, step, stride;
};

// Rows of values, and of where in its row's window each was; column is null where nobody asks.
template <class A>
struct Maxima {
  A* value;
  Int<A>* column;
  int64_t pitch;  // from one row to the next

  Maxima from(int64_t row) const {
    return {value + row * pitch, column ? column + row * pitch : nullptr, pitch};
  }
};

// Each row's maximum over the columns of each of n windows.
template <class A, int COUNT, int STRIDE, bool NANS, bool PLACES>
inline void maxima_across(const A* in, int64_t width, int64_t rows, Axis axis, int64_t n,
                          Maxima<A> out) {
  const int64_t count = COUNT ? COUNT : axis.count;
  for (; rows > 0; --rows, in += width, out.value += out.pitch) {
    for (int64_t i = 0; i < n; i += lanes<A>) {
      const A* first = in + i * axis.stride;
      Vec<A> best = load_strided<A, STRIDE>(first, axis.stride, n - i);
      IntVec<A> at = {};
#pragma GCC unroll 4
      for (int64_t j = 1; j < count; ++j) {
        const A* next = first + j * axis.step;
        const Vec<A> v = load_strided<A, STRIDE>(next, axis.stride, n - i);
        const auto better = beats<NANS>(v, best);
        best = better ? v : best;
        if constexpr (PLACES) at = better ? IntVec<A>{} + Int<A>(j) : at;
      }
      store(out.value + i, best);
      if constexpr (PLACES) store(out.column + i, at);
    }
    if constexpr (PLACES) out.column += out.pitch;
  }
}

// As above, with the common windows unrolled; nans: there may be any.
template <class A>
inline void maxima_across(const A* in, int64_t width, int64_t rows, Axis axis, bool nans, int64_t n,
                          Maxima<A> out) {
  with_flags(nans, out.column != nullptr, [&](auto nans, auto places) {
    constexpr bool N = decltype(nans)::value, P = decltype(places)::value;
    if (axis.stride == 2 && axis.count == 3)
      return maxima_across<A, 3, 2, N, P>(in, width, rows, axis, n, out);
    if (axis.stride == 2) return maxima_across<A, 0, 2, N, P>(in, width, rows, axis, n, out);
    if (axis.stride == 1) return maxima_across<A, 0, 1, N, P>(in, width, rows, axis, n, out);
    return maxima_across<A, 0, 0, N, P>(in, width, rows, axis, n, out);
  });
}

// out and place, `windows` rows of n: the maximum over the rows of each window, and where it was,
// row-major; in begins with the first window's first row, which is row `top` of a whole window of
// `width` columns.
template <class A, int COUNT, bool NANS, bool PLACES>
inline void maxima_down(Maxima<A> in, Axis axis, int64_t windows, int64_t top, int64_t width,
                        int64_t n, A* out, Int<A>* place) {
  const int64_t count = COUNT ? COUNT : axis.count, step = axis.step * in.pitch;
  for (; windows > 0; --windows, in.value += axis.stride * in.pitch, out += n) {
    for (int64_t i = 0; i < n; i += lanes<A>) {
      Vec<A> best = load<Vec<A>>(in.value + i);
      IntVec<A> at = {};
      if constexpr (PLACES) at = load<IntVec<A>>(in.column + i) + Int<A>(top * width);
#pragma GCC unroll 4
      for (int64_t j = 1; j < count; ++j) {
        const Vec<A> v = load<Vec<A>>(in.value + j * step + i);
        const auto better = beats<NANS>(v, best);
        best = better ? v : best;
        if constexpr (PLACES) {
          const IntVec<A> here = load<IntVec<A>>(in.column + j * step + i);
          at = better ? here + Int<A>((top + j) * width) : at;
        }
      }
      store(out + i, best);
      if constexpr (PLACES) store(place + i, at);
    }
    if constexpr (PLACES) in.column += axis.stride * in.pitch, place += n;
  }
}

// As above, with the common windows unrolled; nans: there may be any.
template <class A>
inline void maxima_down(Maxima<A> in, Axis axis, bool nans, int64_t windows, int64_t top,
                        int64_t width, int64_t n, A* out, Int<A>* place) {
  with_flags(nans, in.column != nullptr, [&](auto nans, auto places) {
    constexpr bool N = decltype(nans)::value, P = decltype(places)::value;
    if (axis.count == 3)
      return maxima_down<A, 3, N, P>(in, axis, windows, top, width, n, out, place);
    return maxima_down<A, 0, N, P>(in, axis, windows, top, width, n, out, place);
  });
}

// A pooled row whose windows hold an input row: its gradients, its offsets, and which place the
// input row's first column has in the windows.
template <class A>
struct Holder {
  const A* g;
  const Int<A>* offsets;
  Int<A> place;
};

// The gradients for which column, column + stride and so on are the places chosen.
template <class A, int COUNT, int STRIDE>
inline Vec<A> chosen(const Holder<A>* holders, int64_t count, Axis axis, int64_t column) {
  const int64_t places = COUNT ? COUNT : axis.count, stride = STRIDE ? STRIDE : axis.stride;
  Vec<A> sum = {};
#pragma GCC unroll 4
  for (int64_t j = 0; j < places; ++j, column -= axis.step) {
    if (column % stride != 0) continue;
    const int64_t window = column / stride;
    for (int64_t i = 0; i < count; ++i) {
      const auto here =
          load<IntVec<A>>(holders[i].offsets + window) == holders[i].place + Int<A>(j);
      sum += here ? load<Vec<A>>(holders[i].g + window) : Vec<A>{};
    }
  }
  return sum;
}

// out: an input row of n columns, of which the first is column `column` of the first window. Where
// the holders have no window, their offsets must name no place.
template <class A>
inline void gather(const Holder<A>* holders, int64_t count, Axis axis, int64_t column, int64_t n,
                   A* out) {
  constexpr int L = lanes<A>;
  const auto pairs = [&](auto of) {
    for (int64_t i = 0; i < n; i += 2 * L)
      interleave<A>(of(column + i), of(column + i + 1), out + i);
  };
  if (axis.stride == 2 && axis.count == 3 && axis.step == 1) {
    pairs([&](int64_t at) { return chosen<A, 3, 2>(holders, count, {3, 1, 2}, at); });
  } else if (axis.stride == 2) {
    pairs([&](int64_t at) { return chosen<A, 0, 2>(holders, count, axis, at); });
  } else if (axis.stride == 1) {
    for (int64_t i = 0; i < n; i += L)
      store(out + i, chosen<A, 0, 1>(holders, count, axis, column + i));
  } else {
    for (int64_t i = 0; i < n; i += axis.stride * L)
      for (int64_t m = i; m < std::min(i + axis.stride, n); ++m) {
        const Vec<A> v = chosen<A, 0, 0>(holders, count, axis, column + m);
        for (int64_t l = 0; l < L && m + l * axis.stride < n; ++l) out[m + l * axis.stride] = v[l];
      }
  }
}

}  // namespace fastcnn::FASTCNN_ISA
