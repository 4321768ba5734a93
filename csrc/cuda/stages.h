// The stages at one place of a tensor, for any option, size and stride. Each value is computed from
// the tensors as they are, so that what several windows share is read (from cache) and computed
// again for each: this is the path for what no faster kernel takes.
#pragma once

#include <cstdint>

#include "../math.h"
#include "../params.h"
#include "elements.h"

namespace fastcnn::cuda::general {

struct Place {
  int64_t n, c, h, w;
};

template <class T>
struct Stages {
  using A = typename Element<T>::Acc;

  EpilogueParams p;
  Beta kind;
  bool lrn, pool, pool_first;
  int64_t channels, before, after;  // channels: of an LRN group; before, after: of a window

  explicit Stages(const EpilogueParams& params)
      : p(params),
        kind(kind_of(params.lrn.beta)),
        lrn(params.lrn.size > 0),
        pool(params.pool.kh > 0),
        pool_first(pool && (params.pool.first || !lrn)),
        channels(params.C / params.lrn.groups),
        before(params.lrn.size / 2),
        after((params.lrn.size - 1) / 2) {}

  static __device__ int64_t offset(const Tensor& t, Place at) {
    return at.n * t.n + at.c * t.c + at.h * t.h + at.w * t.w;
  }
  static __device__ A load(const Tensor& t, Place at) {
    return Element<T>::get(static_cast<const T*>(t.data)[offset(t, at)]);
  }
  static __device__ void store(const Tensor& t, Place at, A a) {
    static_cast<T*>(t.data)[offset(t, at)] = Element<T>::put(a);
  }

  // The i-th place of a tensor with H rows and W columns, in the order of its memory.
  __device__ Place place(int64_t i, int64_t H, int64_t W) const {
    Place at;
    if (p.channels_last) {
      at.c = i % p.C, i /= p.C;
      at.w = i % W, i /= W;
      at.h = i % H, at.n = i / H;
    } else {
      at.w = i % W, i /= W;
      at.h = i % H, i /= H;
      at.c = i % p.C, at.n = i / p.C;
    }
    return at;
  }

  // d^-beta.
  __device__ A power(A d) const {
    switch (kind) {
      case Beta::three_quarters:
        return inverse_power<Beta::three_quarters>(d, p.lrn.beta);
      case Beta::half:
        return inverse_power<Beta::half>(d, p.lrn.beta);
      case Beta::one:
        return inverse_power<Beta::one>(d, p.lrn.beta);
      default:
        return inverse_power<Beta::other>(d, p.lrn.beta);
    }
  }

  // The sum of value(place) over the channels from `back` before a place's own to `ahead` after it,
  // within its group.
  template <class Value>
  __device__ A over_window(Place at, int64_t back, int64_t ahead, Value value) const {
    const int64_t begin = at.c / channels * channels;
    const int64_t first = at.c - back > begin ? at.c - back : begin;
    const int64_t last = at.c + ahead < begin + channels ? at.c + ahead : begin + channels - 1;
    A sum = 0;
    for (at.c = first; at.c <= last; ++at.c) sum += value(at);
    return sum;
  }

  // d = k + alpha/size * sum of r^2, with r a function of the place.
  template <class R>
  __device__ A denominator(Place at, R r) const {
    const A sum = over_window(at, before, after, [&](Place j) {
      const A v = r(j);
      return v * v;
    });
    return A(p.lrn.k) + A(p.lrn.alpha / double(p.lrn.size)) * sum;
  }

  // v = a + bias, r = max(v, 0).
  __device__ A rectified(const Tensor& a, const void* bias, Place at) const {
    A v = load(a, at);
    if (bias) v += Element<T>::get(static_cast<const T*>(bias)[at.c]);
    return p.relu && v < 0 ? A(0) : v;  // a NaN stays
  }

  // o = r d^-beta.
  template <class R>
  __device__ A normalised(Place at, R r) const {
    return r(at) * power(denominator(at, r));
  }

  struct Largest {
    A value;
    int32_t place;  // in its window, row-major
  };

  // The maximum of value(place) over the window of an output: the last NaN, else the first of
  // equals.
  template <class Value>
  __device__ Largest largest(Place out, Value value) const {
    const Pool& pool = p.pool;
    Largest best{-A(INFINITY), kNoPlace};
    for (int64_t i = 0; i < pool.kh; ++i) {
      const int64_t h = out.h * pool.sh - pool.ph + i * pool.dh;
      if (h < 0 || h >= p.H) continue;
      for (int64_t j = 0; j < pool.kw; ++j) {
        const int64_t w = out.w * pool.sw - pool.pw + j * pool.dw;
        if (w < 0 || w >= p.W) continue;
        const A v = value(Place{out.n, out.c, h, w});
        if (best.place < 0 || v > best.value || v != v) best = {v, int32_t(i * pool.kw + j)};
      }
    }
    return best;
  }

  __device__ void store_argmax(Place at, Largest best) const {
    if (!p.argmax.data) return;
    const int64_t i = offset(p.argmax, at);
    const int32_t place = p.relu && pool_first && best.value <= 0 ? kNoPlace : best.place;
    if (p.argmax_bytes == 1)
      static_cast<uint8_t*>(p.argmax.data)[i] = uint8_t(place);
    else
      static_cast<int32_t*>(p.argmax.data)[i] = place;
  }
  __device__ int32_t load_argmax(Place at) const {
    const int64_t i = offset(p.argmax, at);
    return p.argmax_bytes == 1 ? int32_t(static_cast<const uint8_t*>(p.argmax.data)[i])
                               : static_cast<const int32_t*>(p.argmax.data)[i];
  }

  // The sum of g(output) over the windows whose maximum was at a place.
  template <class G>
  __device__ A unpooled(Place at, G g) const {
    const Pool& pool = p.pool;
    A sum = 0;
    for (int64_t i = 0; i < pool.kh; ++i) {
      const int64_t top = at.h + pool.ph - i * pool.dh;
      if (top < 0 || top % pool.sh != 0 || top / pool.sh >= p.OH) continue;
      for (int64_t j = 0; j < pool.kw; ++j) {
        const int64_t left = at.w + pool.pw - j * pool.dw;
        if (left < 0 || left % pool.sw != 0 || left / pool.sw >= p.OW) continue;
        const Place out{at.n, at.c, top / pool.sh, left / pool.sw};
        if (load_argmax(out) == int32_t(i * pool.kw + j)) sum += g(out);
      }
    }
    return sum;
  }

  // The gradient g at the LRN's output, or the ReLU's, as that at the input to both:
  // dr[i] = g[i] d[i]^-beta - (2 alpha beta/size) r[i] sum of g[j] r[j] d[j]^(-beta-1) over the j
  // whose window holds i, and 0 where the ReLU let nothing through. What was kept may be r still
  // without its bias and ReLU; that of a whole r is r again. It is rounded as it is where stored.
  template <class G>
  __device__ A through(Place at, G g) const {
    if (!p.r.data) return g(at);
    const auto r = [&](Place j) {
      return Element<T>::get(Element<T>::put(rectified(p.r, p.r_bias, j)));
    };
    if (p.relu && r(at) <= 0) return A(0);
    if (!lrn) return g(at);
    const A seen = over_window(at, after, before, [&](Place j) {
      const A d = denominator(j, r);
      return g(j) * r(j) * power(d) / d;
    });
    const A slope = A(2 * p.lrn.alpha * p.lrn.beta / double(p.lrn.size));
    return g(at) * power(denominator(at, r)) - slope * r(at) * seen;
  }
};

}  // namespace fastcnn::cuda::general
