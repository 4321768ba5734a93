// Spans: rows of arithmetic values in scratch memory, taken a vector at a time, in and out of a
// tensor and through what needs no neighbours. Which values lie side by side (pixels of a channel,
// or channels of a pixel) is the callers' affair. Scratch spans may be read and written up to a
// vector past their end.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace fastcnn::FASTCNN_ISA {

// Asks for what will be read soon, wherever that is: memory then works while the arithmetic does
// (1.13 to 1.39 times as fast, docs/cpu.md). The hardware sees only what lies close ahead.
inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

// out[i] = op(x[i * stride], i); out is written to its n-th element and no further. ahead: from x
// to what is read next, where that is worth asking for.
template <class T, class Op>
inline void read(const T* x, int64_t stride, int64_t n, typename T::Acc* out, Op op,
                 int64_t ahead = 0) {
  using A = typename T::Acc;
  using Raw = typename T::Raw;
  constexpr int L = lanes<A>;
  if (stride == 1) {
    int64_t i = 0;
    for (; i + L <= n; i += L) {
      if (ahead) prefetch(x + i + ahead);
      store(out + i, op(T::widen(load<Raw>(x + i)), i));
    }
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

// Checks the sum of all values, one addition a vector: it is NaN if any value is, or if infinities
// of both signs occur.
template <class A>
inline bool may_have_nans(const A* in, int64_t n) {
  constexpr int L = lanes<A>, SUMS = 4;
  Vec<A> sums[SUMS] = {};
  int64_t i = 0;
  for (; i + SUMS * L <= n; i += SUMS * L)
    for (int s = 0; s < SUMS; ++s) sums[s] += load<Vec<A>>(in + i + s * L);
  for (; i + L <= n; i += L) sums[0] += load<Vec<A>>(in + i);
  A sum = 0;
  for (const Vec<A>& v : sums)
    for (int l = 0; l < L; ++l) sum += v[l];
  for (; i < n; ++i) sum += in[i];
  return sum != sum;
}

// Calls run with each flag as a compile-time constant.
template <class Run>
inline void with_flags(bool a, bool b, Run run) {
  using yes = std::true_type;
  using no = std::false_type;
  a ? b ? run(yes{}, yes{}) : run(yes{}, no{}) : b ? run(no{}, yes{}) : run(no{}, no{});
}

}  // namespace fastcnn::FASTCNN_ISA
