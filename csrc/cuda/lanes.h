// The values of a thread of the fast kernels: V neighbouring channels of a pixel, in registers.
// Loads and stores of them are the only thing in which the layouts differ.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../params.h"
#include "elements.h"

namespace fastcnn::cuda::special {

constexpr int kThreads = 256;

// Values that lie side by side, moved by accesses of at most 16 bytes.
template <class T, int W>
struct __attribute__((may_alias, aligned(W * sizeof(T) < 16 ? W * sizeof(T) : 16))) Pack {
  T at[W];
};
template <class T>
struct Pack<T, 0> {};

// The same in 32-bit words, as registers are: 16-bit values one by one, a compiler takes apart and
// puts together at every turn.
template <class T, int W>
struct __attribute__((may_alias, aligned(W * sizeof(T) < 16 ? W * sizeof(T) : 16))) Words {
  uint32_t at[W * sizeof(T) / 4];

  Words() = default;
  __device__ explicit Words(const float* from) {
#pragma unroll
    for (int i = 0; i < W * int(sizeof(T)) / 4; ++i)
      if constexpr (sizeof(T) == 4)
        at[i] = bits<uint32_t>(from[i]);
      else
        at[i] = bits<uint32_t>(Element<T>::put_two(from[2 * i], from[2 * i + 1]));
  }

  __device__ void unpack(float* to) const {
#pragma unroll
    for (int i = 0; i < W * int(sizeof(T)) / 4; ++i)
      if constexpr (sizeof(T) == 4) {
        to[i] = bits<float>(at[i]);
      } else {
        const float2 two = Element<T>::get_two(at[i]);
        to[2 * i] = two.x, to[2 * i + 1] = two.y;
      }
  }
};
template <class T>
struct Words<T, 0> {};

// Some of the channels of an LRN group, begin to end: a thread's are those from c on.
struct Channels {
  int c, begin, end;
};

// channels_last: a pixel's channels side by side, a warp reads 512 bytes at once. A group holds
// whole vectors, so that a neighbour's part of one is inside it or outside.
struct Pixels {
  static constexpr bool channels_last = true;
  template <class T>
  static constexpr int width = 16 / sizeof(T);
  static constexpr int vectors = 8;  // of channels in a block, at most: 128 bytes
  static constexpr int blocks =
      4;  // that tiles in shared memory leave room for on a multiprocessor

  template <class T, int W>
  using Vector = std::conditional_t<sizeof(T) == 1, Pack<T, W>, Words<T, W>>;

  // A thread's own channels, or of a neighbour's those from so many after on.
  template <int W, class T>
  static __device__ Vector<T, W> load(const T* pixel, int64_t, const Channels& of, int after) {
    const int c = of.c + after;
    Vector<T, W> values{};
    if (after == 0 || (c >= of.begin && c < of.end))
      values = *reinterpret_cast<const Vector<T, W>*>(pixel + c);
    return values;
  }
  template <class T, class Values>
  static __device__ void store(T* pixel, int64_t, const Channels& of, const Values& values) {
    *reinterpret_cast<Values*>(pixel + of.c) = values;
  }
};

// NCHW, or any strides: a channel at a time, a warp's threads on neighbouring pixels.
struct Planes {
  static constexpr bool channels_last = false;
  template <class T>
  static constexpr int width = 8;
  static constexpr int vectors = 1;
  static constexpr int blocks = 2;

  template <class T, int W>
  using Vector = Pack<T, W>;

  template <int W, class T>
  static __device__ Pack<T, W> load(const T* pixel, int64_t stride, const Channels& of, int after) {
    const int c = of.c + after;
    Pack<T, W> values{};
    pixel += c * stride;
#pragma unroll
    for (int i = 0; i < W; ++i)
      if (c + i >= of.begin && c + i < of.end) values.at[i] = pixel[i * int(stride)];
    return values;
  }
  template <class T, int W>
  static __device__ void store(T* pixel, int64_t stride, const Channels& of,
                               const Pack<T, W>& values) {
    pixel += of.c * stride;
#pragma unroll
    for (int i = 0; i < W; ++i)
      if (of.c + i < of.end) pixel[i * int(stride)] = values.at[i];
  }
  template <class T, int W>
  static __device__ void store(T* pixel, int64_t stride, const Channels& of,
                               const Words<T, W>& values) {
    store(pixel, stride, of, bits<Pack<T, W>>(values));
  }
};

// max(a + b, least), rounded as it is where it is stored.
template <class T, int W>
__device__ Words<T, W> rectified(Words<T, W> a, const Words<T, W>& b, float least) {
#pragma unroll
  for (int i = 0; i < W * int(sizeof(T)) / 4; ++i)
    if constexpr (sizeof(T) == 4) {
      a.at[i] = bits<uint32_t>(max_or_nan(bits<float>(a.at[i]) + bits<float>(b.at[i]), least));
    } else {
      using Pair = typename Element<T>::Pair;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // where what is below is many instructions
      const float2 x = Element<T>::get_two(a.at[i]), y = Element<T>::get_two(b.at[i]);
      a.at[i] = bits<uint32_t>(
          Element<T>::put_two(max_or_nan(x.x + y.x, least), max_or_nan(x.y + y.y, least)));
#else
      const Pair sum = __hadd2(bits<Pair>(a.at[i]), bits<Pair>(b.at[i]));
      a.at[i] = bits<uint32_t>(__hmax2_nan(sum, Element<T>::put_two(least, least)));
#endif
    }
  return a;
}
template <class T, int W>
__device__ Pack<T, W> rectified(const Pack<T, W>& a, const Pack<T, W>& b, float least) {
  using Whole = Words<T, W>;
  return bits<Pack<T, W>>(rectified(bits<Whole>(a), bits<Whole>(b), least));
}

// A thread's own channels as they come from memory, with so many of its neighbours' on either side;
// 0 for what is outside the group.
template <class T, class Layout, int V, int Halo>
struct Loaded {
  template <int W>
  using Vector = typename Layout::template Vector<T, W>;
  Vector<Halo> before{};
  Vector<V> own{};
  Vector<Halo> after{};

  Loaded() = default;  // zeros
  __device__ Loaded(const T* pixel, int64_t stride, const Channels& of)
      : own(Layout::template load<V>(pixel, stride, of, 0)) {
    if constexpr (Halo > 0) {
      before = Layout::template load<Halo>(pixel, stride, of, -Halo);
      after = Layout::template load<Halo>(pixel, stride, of, V);
    }
  }

  // r = max(a + bias, least) of all of them.
  __device__ Loaded rectified(const Loaded& bias, float least) const {
    Loaded r;
    r.own = special::rectified(own, bias.own, least);
    if constexpr (Halo > 0) {
      r.before = special::rectified(before, bias.before, least);
      r.after = special::rectified(after, bias.after, least);
    }
    return r;
  }

  __device__ T at(int i) const {
    if constexpr (Halo > 0) {
      if (i < Halo) return before.at[i];
      if (i >= Halo + V) return after.at[i - Halo - V];
    }
    return own.at[i - Halo];
  }

  __device__ void unpack(float (&to)[V + 2 * Halo]) const {
    if constexpr (Halo > 0) unpack(before, to);
    unpack(own, to + Halo);
    if constexpr (Halo > 0) unpack(after, to + Halo + V);
  }

 private:
  template <int W>
  static __device__ void unpack(const Words<T, W>& values, float* to) {
    values.unpack(to);
  }
  template <int W>
  static __device__ void unpack(const Pack<T, W>& values, float* to) {
#pragma unroll
    for (int i = 0; i < W; ++i) to[i] = Element<T>::get(values.at[i]);
  }
};

// The sums of N windows of five. Neighbours share four values, the next two share two of those:
// half the additions.
template <int N>
__device__ void sums_of_five(const float (&x)[N + 4], float (&sums)[N]) {
  float two[N / 2 + 1];
#pragma unroll
  for (int i = 0; i <= N / 2; ++i) two[i] = x[2 * i + 1] + x[2 * i + 2];
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i] = two[i / 2] + two[i / 2 + 1] + x[i % 2 ? i + 4 : i];
}

// How the channels fall to blocks and threads: a block's threads are vectors of channels (x) at
// several pixels (y).
template <class T, class Layout>
struct Lanes {
  static constexpr int V = Layout::template width<T>;
  static constexpr int H = 2;  // neighbours that an LRN of 5 sees on either side

  EpilogueParams p;
  int group, per_group, vectors;  // channels of an LRN group; vectors of one; all vectors
  int chunks, width;              // blocks for all vectors; vectors of a block
  float alpha, slope, k;          // d = k + alpha sum of r^2; the gradient's 2 beta alpha

  // whole: whether the vectors of a group stay in one block.
  explicit Lanes(const EpilogueParams& params, bool whole = false)
      : p(params),
        group(int(p.C / p.lrn.groups)),
        per_group((group + V - 1) / V),
        vectors(per_group * int(p.lrn.groups)),
        alpha(p.lrn.size ? float(p.lrn.alpha / double(p.lrn.size)) : 0),
        slope(float(2 * p.lrn.beta) * alpha),
        k(float(p.lrn.k)) {
    const int unit = whole ? per_group : 1, units = vectors / unit;
    const int most = std::max(1, Layout::vectors / unit);
    chunks = (units + most - 1) / most;
    width = (units + chunks - 1) / chunks * unit;
  }

  dim3 block() const { return dim3(width, kThreads / width); }

  // chunk: which of the chunks of vectors. Where there are fewer vectors than threads, none of
  // them, at the first.
  __device__ Channels channels(int chunk) const {
    const int vector = chunk * int(blockDim.x) + int(threadIdx.x);
    if (vector >= vectors) return {0, 0, 0};
    const int begin = vector / per_group * group;
    const int c = begin + vector % per_group * V;
    return {c, begin, begin + group};
  }

  // The channel 0 of a pixel; within an image 32 bits count.
  template <class E>
  static __device__ E* pixel(const Tensor& t, int n, int h, int w) {
    return static_cast<E*>(t.data) + n * t.n + (h * int(t.h) + w * int(t.w));
  }

  template <int Halo, class E = T>
  static __device__ Loaded<E, Layout, V, Halo> load(const Tensor& t, int n, int h, int w,
                                                    const Channels& of) {
    return {pixel<const E>(t, n, h, w), t.c, of};
  }

  static __device__ void store(const Tensor& t, int n, int h, int w, const Channels& of,
                               const Words<T, V>& values) {
    Layout::store(pixel<T>(t, n, h, w), t.c, of, values);
  }
  static __device__ void store(const Tensor& t, int n, int h, int w, const Channels& of,
                               const float* values) {
    store(t, n, h, w, of, Words<T, V>(values));
  }

  // d of N channels, given r of those and of two more on either side.
  template <int N>
  __device__ void denominators(const float (&r)[N + 4], float (&d)[N]) const {
    float squares[N + 4];
#pragma unroll
    for (int i = 0; i < N + 4; ++i) squares[i] = r[i] * r[i];
    sums_of_five(squares, d);
#pragma unroll
    for (int i = 0; i < N; ++i) d[i] = k + alpha * d[i];
  }
};

}  // namespace fastcnn::cuda::special
