// Max pooling on spans, and its gradient.
#pragma once

#include <limits>

#include "../params.h"
#include "spans.h"

namespace fastcnn::FASTCNN_ISA {

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

// Loads a vector of every stride-th value from `in` on, at most n of them. STRIDE 0: any stride.
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

// The largest pooled value that the ReLU just before cut; NaN, above which is everything, for none.
template <class T>
inline typename T::Acc largest_cut(const EpilogueParams& p) {
  const bool cuts = p.relu && (p.pool.first || !p.lrn.size);
  return cuts ? T::kZero : std::numeric_limits<typename T::Acc>::quiet_NaN();
}

// Takes the places from pooled values that were cut.
template <class A>
inline void take_cut(const A* value, int64_t n, A cut, Int<A>* place) {
  for (int64_t i = 0; i < n && cut == cut; i += lanes<A>) {
    const auto taken = load<Vec<A>>(value + i) <= cut;
    store(place + i, taken ? IntVec<A>{} + Int<A>(kNoPlace) : load<IntVec<A>>(place + i));
  }
}

// Writes n argmax from the one at `at` on, from places that are `stride` apart.
template <class I>
inline void write_argmax(const EpilogueParams& p, int64_t at, const I* place, int64_t n,
                         int64_t stride = 1) {
  const auto write = [=](auto* out) {
    if (stride == 1) return void(std::copy_n(place, n, out));
    for (int64_t i = 0; i < n; ++i) out[i] = place[i * stride];
  };
  if (p.argmax_bytes == 1)
    write(static_cast<uint8_t*>(p.argmax.data) + at);
  else
    write(static_cast<int32_t*>(p.argmax.data) + at);
}

// A pooled row whose windows hold an input row: its gradients, its argmax, and which place the
// input row's first column has in the windows.
template <class A>
struct Holder {
  const A* g;
  const Int<A>* argmax;
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
      const auto here = load<IntVec<A>>(holders[i].argmax + window) == holders[i].place + Int<A>(j);
      sum += here ? load<Vec<A>>(holders[i].g + window) : Vec<A>{};
    }
  }
  return sum;
}

// out: an input row of n columns, of which the first is column `column` of the first window. Where
// the holders have no window, their argmax must name no place.
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
