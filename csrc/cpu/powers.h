// d^-beta for an LRN's d = k + alpha/size * sum of squares, by vectors: by a polynomial in the sum
// where that is small beside k, as it nearly always is, by one with a wider range else, and by the
// exact formula for what is left.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../math.h"
#include "../params.h"
#include "spans.h"

namespace fastcnn::FASTCNN_ISA {

// A polynomial of degree 6 for (1 + u)^-beta, 0 <= u <= kNear: the one that agrees with it at the
// Chebyshev points, within 4e-9 of it for beta up to 1 and 3e-8 up to 2.
constexpr double kNear = 0.25;

template <class A>
struct NearPower {
  static constexpr int kTerms = 7;
  A c[kTerms] = {};  // of u^0, u^1 and so on

  NearPower() = default;
  NearPower(double factor, double beta) {
    double u[kTerms], divided[kTerms];  // Newton's divided differences
    for (int i = 0; i < kTerms; ++i) {
      u[i] = kNear / 2 * (1 + std::cos((2 * i + 1) * M_PI / (2 * kTerms)));
      divided[i] = factor * std::pow(1 + u[i], -beta);
    }
    for (int order = 1; order < kTerms; ++order)
      for (int i = kTerms - 1; i >= order; --i)
        divided[i] = (divided[i] - divided[i - 1]) / (u[i] - u[i - order]);
    double sum[kTerms + 1] = {};
    for (int i = kTerms - 1; i >= 0; --i) {  // sum (x - u) + divided
      for (int j = kTerms; j > 0; --j) sum[j] = sum[j - 1] - u[i] * sum[j];
      sum[0] = divided[i] - u[i] * sum[0];
    }
    for (int i = 0; i < kTerms; ++i) c[i] = A(sum[i]);
  }

  Vec<A> operator()(Vec<A> u) const {
    Vec<A> sum = c[kTerms - 1] - Vec<A>{};
#pragma GCC unroll 8
    for (int i = kTerms - 2; i >= 0; --i) sum = sum * u + c[i];
    return sum;
  }
};

// An LRN's constants, in the precision of the arithmetic.
template <class A>
struct Norm {
  int64_t size, before, after;
  A scale, k, slope;
  double beta;
  A ratio;                             // u = ratio * sum of squares: d = k (1 + u)
  NearPower<A> near_power, near_next;  // d^-beta and d^(-beta-1) of such a u
  bool near;                           // whether these may be used
  bool far = false;  // the last span had a larger u: the next will too, most likely

  explicit Norm(const Lrn& lrn)
      : size(lrn.size),
        before(lrn.size / 2),
        after((lrn.size - 1) / 2),
        scale(A(lrn.alpha / std::max<int64_t>(1, lrn.size))),
        k(A(lrn.k)),
        slope(A(2 * lrn.alpha * lrn.beta / std::max<int64_t>(1, lrn.size))),
        beta(lrn.beta),
        ratio(scale / k),
        near(lrn.size > 0 && sizeof(A) == 4 && lrn.k > 1e-6 && lrn.k < 1e6 && lrn.beta >= 0 &&
             lrn.beta <= 1) {
    if (!near) return;
    near_power = {std::pow(lrn.k, -lrn.beta), lrn.beta};
    near_next = {std::pow(lrn.k, -lrn.beta - 1), lrn.beta + 1};
  }
};

// d^-3/4 for d from 2^-60 to 2^60: p from the exponent by integer arithmetic, 5 % off at most, then
// p (1 - e)^-1/4 with e = 1 - d^3 p^4, a polynomial in e that is the series with its tail
// economised for |e| < 0.17, and within 2e-8 where |e| is 0.173, its largest.
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

// The powers of d that backward needs: d^-beta, and g r d^(-beta-1).
template <class A>
struct Powers {
  Vec<A> power, next;

  Vec<A> cross(Vec<A> g, Vec<A> r) const { return g * r * next; }
};

// The same of any d, of which d^(-beta-1) alone may be too large or too small for its type.
template <class A>
struct WidePowers {
  Vec<A> power, d, next;  // next: where near
  IntVec<A> near;

  Vec<A> cross(Vec<A> g, Vec<A> r) const { return near ? g * r * next : g * power * r / d; }
};

// The least and the largest of vectors of floats that are 0 or more, by their bits: a NaN and what
// is negative count as largest of all.
struct Range {
  using Bits = uint32_t __attribute__((vector_size(kVectorBytes)));
  Bits least = Bits{} - 1, most = {};

  void add(Vec<float> v) {
    const Bits bits = load<Bits>(&v);
    least = bits < least ? bits : least;
    most = bits > most ? bits : most;
  }
  bool within(float low, float high) const {
    uint32_t from, to, bits[2][lanes<float>];
    std::memcpy(&from, &low, 4);
    std::memcpy(&to, &high, 4);
    store(bits[0], least);
    store(bits[1], most);
    bool all = true;
    for (int l = 0; l < lanes<float>; ++l) all &= bits[0][l] >= from && bits[1][l] <= to;
    return all;
  }
};

// The three formulas, each as the powers of d for a sum of squares; and within(), whether all sums
// so far were within its range.

template <class A>
struct NearPowers {
  NearPower<A> power, next;
  A ratio;
  Range range;

  explicit NearPowers(const Norm<A>& norm)
      : power(norm.near_power), next(norm.near_next), ratio(norm.ratio) {}

  Powers<A> operator()(Vec<A> sum) {
    const Vec<A> u = ratio * sum;
    range.add(u);
    return {power(u), next(u)};
  }
  bool within() const { return range.within(0, kNear); }
};

template <class A, Beta KIND>
struct FarPowers {
  static constexpr float kLow = 0x1p-60f, kHigh = 0x1p60f;
  NearPowers<A> near;
  IntVec<A> may_be_near;
  A scale, k;
  double beta;
  Range range;

  explicit FarPowers(const Norm<A>& norm)
      : near(norm),
        may_be_near(IntVec<A>{} - Int<A>(norm.near)),
        scale(norm.scale),
        k(norm.k),
        beta(norm.beta) {}

  Vec<A> d(Vec<A> sum) const { return k + scale * sum; }

  WidePowers<A> operator()(Vec<A> sum) {
    const Vec<A> d = this->d(sum), u = near.ratio * sum;
    range.add(d);
    Vec<A> far;
    if constexpr (KIND == Beta::half || KIND == Beta::one)
      far = exact_inverse_power<A, KIND>(d, beta);
    else
      far = fast_inverse_power<KIND>(d, beta);
    const Powers<A> close = near(sum);
    const IntVec<A> is_near = (u >= 0) & (u <= A(kNear)) & may_be_near;
    return {is_near ? close.power : far, d, close.next, is_near};
  }
  bool within() const { return range.within(kLow, kHigh); }
};

template <class A, Beta KIND>
struct AllPowers {
  FarPowers<A, KIND> far;

  WidePowers<A> operator()(Vec<A> sum) {
    WidePowers<A> result = far(sum);
    const Vec<A> d = result.d, exact = exact_inverse_power<A, KIND>(d, far.beta);
    result.power = (d >= far.kLow) & (d <= far.kHigh) ? result.power : exact;
    return result;
  }
};

template <Beta KIND>
struct DoublePowers {
  const Norm<double>& norm;

  WidePowers<double> operator()(Vec<double> sum) const {
    const Vec<double> d = norm.k + norm.scale * sum;
    return {exact_inverse_power<double, KIND>(d, norm.beta), d, Vec<double>{}, IntVec<double>{}};
  }
};

// Runs pass(powers), which goes over some values and calls powers(sum of squares) for each vector
// of them: with the near formula, and once or twice more over all of them if some sum asks for one
// with a wider range. Each value depends on its own sum alone, whatever else is in the pass.
// Returns whether every sum was finite, as far as it knows.
template <class A, Beta KIND, class Pass>
inline bool with_powers(Norm<A>& norm, Pass pass) {
  if constexpr (sizeof(A) == 8) {
    DoublePowers<KIND> powers{norm};
    pass(powers);
    return false;
  } else {
    if (norm.near && !norm.far) {
      NearPowers<A> near(norm);
      pass(near);
      if (near.within()) return true;
    }
    FarPowers<A, KIND> far(norm);
    pass(far);
    norm.far = !far.near.within();
    if (far.within()) return KIND != Beta::other;  // of which a power of such a d may be infinite
    AllPowers<A, KIND> all{FarPowers<A, KIND>(norm)};
    pass(all);
    return false;
  }
}

}  // namespace fastcnn::FASTCNN_ISA
