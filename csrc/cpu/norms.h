// The LRN on spans, forward and backward.
#pragma once

#include "powers.h"

namespace fastcnn::FASTCNN_ISA {

// The spans of an LRN's window. SIZE: how many, where that is known, so that they stay in
// registers; else 0.
template <class A, int SIZE>
struct Window {
  const A* spans[SIZE];

  Window(const A* const* window, int64_t) { std::copy_n(window, SIZE, spans); }
  static constexpr int64_t size() { return SIZE; }
};

template <class A>
struct Window<A, 0> {
  const A* const* spans;
  int64_t count;

  Window(const A* const* window, int64_t size) : spans(window), count(size) {}
  int64_t size() const { return count; }
};

// The sum of the first n spans' squares.
template <class A, class Window>
inline Vec<A> sum_of_squares(const Window& window, int64_t n, int64_t i) {
  Vec<A> sum = {};
#pragma GCC unroll 8
  for (int64_t j = 0; j < n; ++j) {
    const Vec<A> r = load<Vec<A>>(window.spans[j] + i);
    sum += r * r;
  }
  return sum;
}

// out = r d^-beta, with r the window's middle. Returns true only if the output is guaranteed free
// of NaN.
template <class A, int SIZE, Beta KIND>
bool normalise(const A* const* spans, Norm<A>& norm, int64_t n, A* out) {
  const Window<A, SIZE> window(spans, norm.size);
  const A* r = spans[norm.before];
  return with_powers<A, KIND>(norm, [=](auto& powers) FASTCNN_INLINE {
    for (int64_t i = 0; i < n; i += lanes<A>) {
      const Vec<A> sum = sum_of_squares<A>(window, window.size(), i);
      store(out + i, load<Vec<A>>(r + i) * powers(sum).power);
    }
  });
}

// A channel's values on their way in: n from x on, plus bias, and none below `least`.
template <class T>
struct Source {
  using A = typename T::Acc;
  const T* x;
  int64_t n, ahead;  // ahead: from x to what is taken next
  A bias, least;     // -0 and -inf where there is neither

  Vec<A> operator()(int64_t i) const {
    using Raw = typename T::Raw;
    prefetch(x + i + ahead);
    const bool whole = i + lanes<A> <= n;
    const Vec<A> v = T::widen(whole ? load<Raw>(x + i) : load_first<Raw>(x + i, n - i)) + bias;
    const Vec<A> low = least - Vec<A>{};
    return low > v ? low : v;  // a NaN stays
  }
};

// The same, for windows of which the last span, `newest`, is yet to come from a source, so that
// memory works while the arithmetic does.
template <class T, int SIZE, Beta KIND>
bool take_and_normalise(const Source<T>& source, typename T::Acc* newest,
                        const typename T::Acc* const* spans, Norm<typename T::Acc>& norm,
                        typename T::Acc* out) {
  using A = typename T::Acc;
  const Window<A, SIZE> window(spans, norm.size);
  const A* r = spans[norm.before];
  return with_powers<A, KIND>(norm, [=](auto& powers) FASTCNN_INLINE {
    for (int64_t i = 0; i < source.n; i += lanes<A>) {
      const Vec<A> last = source(i);
      store(newest + i, last);
      const Vec<A> sum = sum_of_squares<A>(window, window.size() - 1, i) + last * last;
      store(out + i, load<Vec<A>>(r + i) * powers(sum).power);
    }
  });
}

// A row of pixels on its way in, channels side by side: n pixels, `pitch` apart, of groups of
// channels; plus bias (null for none), and none below `least`.
template <class T>
struct PixelRow {
  using A = typename T::Acc;
  const T* x;
  int64_t n, pitch, groups, channels;
  const A* bias;
  A least;
  T* keep;  // where the values go as they are before the LRN; null for nowhere
  int64_t keep_pitch;
};

// out, the groups one behind the other: r d^-beta, each over 5 channels of its group. A vector of
// channels finds its neighbours in the two beside it, in registers: as loads, four of five would
// straddle cache lines. Returns as above.
template <class T, Beta KIND>
bool normalise_pixels(const PixelRow<T>& row, Norm<typename T::Acc>& norm, typename T::Acc* out) {
  using A = typename T::Acc;
  using V = Vec<A>;
  using Raw = typename T::Raw;
  constexpr int L = lanes<A>;
  return with_powers<A, KIND>(norm, [=](auto& powers) FASTCNN_INLINE {
    const int64_t channels = row.channels;
    const V least = row.least - V{};
    A* to = out;
    for (int64_t w = 0; w < row.n; ++w)
      for (int64_t g = 0; g < row.groups; ++g, to += channels) {
        const T* x = row.x + w * row.pitch + g * channels;
        T* keep = row.keep ? row.keep + w * row.keep_pitch + g * channels : nullptr;
        const auto take = [&](int64_t c)
                              FASTCNN_INLINE -> V {  // channels c and on, zeros past the last
          const int64_t left = channels - c;
          if (left <= 0) return V{};
          V r = T::widen(left >= L ? load<Raw>(x + c) : load_first<Raw>(x + c, left));
          if (row.bias) r += load<V>(row.bias + g * channels + c);
          r = least > r ? least : r;  // a NaN stays
          if (keep && left >= L) store(keep + c, T::narrow(r));
          if (keep && left < L) store_first(keep + c, T::narrow(r), left);
          return left >= L ? r : first_lanes<A>(r, left);
        };
        V r = take(0), square = r * r;
        V pairs_before = lanes_from<A, 1>(V{}, square);  // pairs: each channel's and the next one's
        for (int64_t c = 0; c < channels; c += L) {
          const V r_after = take(c + L), square_after = r_after * r_after;
          const V pairs = square + lanes_from<A, 1>(square, square_after);
          const V sum = lanes_from<A, L - 2>(pairs_before, pairs) + pairs +
                        lanes_from<A, 2>(square, square_after);
          store(to + c, r * powers(sum).power);
          pairs_before = pairs, r = r_after, square = square_after;
        }
      }
  });
}

// direct = g d^-beta and cross = g r d^(-beta-1), the two terms of the LRN's gradient.
template <class A, int SIZE, Beta KIND>
void gradient_terms(const A* g, const A* const* spans, Norm<A>& norm, int64_t n, A* direct,
                    A* cross) {
  const Window<A, SIZE> window(spans, norm.size);
  const A* r = spans[norm.before];
  with_powers<A, KIND>(norm, [=](auto& powers) FASTCNN_INLINE {
    for (int64_t i = 0; i < n; i += lanes<A>) {
      const auto d = powers(sum_of_squares<A>(window, window.size(), i));
      const Vec<A> g_i = load<Vec<A>>(g + i);
      store(direct + i, g_i * d.power);
      store(cross + i, d.cross(g_i, load<Vec<A>>(r + i)));
    }
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

// The LRN's functions for one window size and one exponent, chosen once per launch; those on pixels
// are null where there is none.
template <class T>
struct NormFunctions {
  using A = typename T::Acc;
  bool (*normalise)(const A* const*, Norm<A>&, int64_t, A*);
  bool (*take_and_normalise)(const Source<T>&, A*, const A* const*, Norm<A>&, A*);
  void (*gradient_terms)(const A*, const A* const*, Norm<A>&, int64_t, A*, A*);
  void (*gradient)(const A*, const A*, const A* const*, const Norm<A>&, int64_t, A*);
  bool (*take_and_normalise_pixels)(const PixelRow<T>&, Norm<A>&, A*) = nullptr;
  bool (*normalise_pixels)(const PixelRow<Plain<A>>&, Norm<A>&, A*) = nullptr;

  template <int SIZE, Beta KIND>
  static NormFunctions of() {
    return {&FASTCNN_ISA::normalise<A, SIZE, KIND>, &FASTCNN_ISA::take_and_normalise<T, SIZE, KIND>,
            &FASTCNN_ISA::gradient_terms<A, SIZE, KIND>, &FASTCNN_ISA::gradient<A, SIZE>};
  }
  static NormFunctions of(const Lrn& lrn) {
    switch (kind_of(lrn.beta)) {
      case Beta::three_quarters: {
        if (lrn.size != 5) return of<0, Beta::three_quarters>();
        NormFunctions usual = of<5, Beta::three_quarters>();
        usual.take_and_normalise_pixels = &FASTCNN_ISA::normalise_pixels<T, Beta::three_quarters>;
        usual.normalise_pixels = &FASTCNN_ISA::normalise_pixels<Plain<A>, Beta::three_quarters>;
        return usual;
      }
      case Beta::half:
        return of<0, Beta::half>();
      case Beta::one:
        return of<0, Beta::one>();
      default:
        return of<0, Beta::other>();
    }
  }
};

}  // namespace fastcnn::FASTCNN_ISA
