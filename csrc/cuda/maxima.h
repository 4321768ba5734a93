// Max pooling of the fast kernels: windows of K x K places two apart, and the largest of what is
// there.
#pragma once

#include "lanes.h"

namespace fastcnn::cuda::special {

// The window of an output.
template <int K>
struct Window {
  static constexpr int stride = 2;
  int h, w, H, W;

  __device__ Window(const EpilogueParams& p, int oh, int ow)
      : h(oh * stride - int(p.pool.ph)),
        w(ow * stride - int(p.pool.pw)),
        H(int(p.H)),
        W(int(p.W)) {}

  // The first of its places inside the map.
  __device__ int first() const { return (h < 0 ? -h * K : 0) + (w < 0 ? -w : 0); }

  __device__ bool inside() const { return h >= 0 && w >= 0 && h + K <= H && w + K <= W; }

  // visit(place, row, column) for its places inside the map, in row-major order. Where all are, as
  // most often, none is asked for: with a branch for each, a load waits for the one before it.
  template <class Visit>
  __device__ void each(Visit visit) const {
    if (inside()) {
#pragma unroll
      for (int i = 0; i < K * K; ++i) visit(i, h + i / K, w + i % K);
    } else {
      one_by_one(visit);
    }
  }
  template <class Visit>
  __device__ void one_by_one(Visit visit) const {
#pragma unroll
    for (int i = 0; i < K; ++i)
#pragma unroll
      for (int j = 0; j < K; ++j)
        if (unsigned(h + i) < unsigned(H) && unsigned(w + j) < unsigned(W))
          visit(i * K + j, h + i, w + j);
  }
};

// The largest so far of each lane, and its place: the last NaN, else the first of equals. It begins
// with what a ReLU makes of all that is not above it, which has no place; else at the window's
// first.
template <int W, bool kPlaces>
struct Largest {
  float value[W];
  int place[W];

  __device__ explicit Largest(int first, float least = -INFINITY) {
#pragma unroll
    for (int i = 0; i < W; ++i) value[i] = least, place[i] = first;
  }

  __device__ void take(const float (&v)[W], int at) {
#pragma unroll
    for (int i = 0; i < W; ++i)
      if constexpr (!kPlaces)
        value[i] = max_or_nan(v[i], value[i]);
      else if (v[i] > value[i] || v[i] != v[i])
        value[i] = v[i], place[i] = at;
  }
};

template <int V, class Layout>
__device__ void store_argmax(const Tensor& t, int n, int h, int w, const Channels& of,
                             const int* places) {
  Pack<uint8_t, V> bytes;
#pragma unroll
  for (int i = 0; i < V; ++i) bytes.at[i] = uint8_t(places[i]);
  uint8_t* pixel = static_cast<uint8_t*>(t.data) + n * t.n + (h * int(t.h) + w * int(t.w));
  Layout::store(pixel, t.c, of, bytes);
}

template <class T, int W>
__device__ Words<T, W> lowest() {
  float least[W];
#pragma unroll
  for (int i = 0; i < W; ++i) least[i] = -INFINITY;
  return Words<T, W>(least);
}

// Lane by lane, a NaN if either is one.
template <class T, int W>
__device__ Words<T, W> larger(Words<T, W> a, const Words<T, W>& b) {
#pragma unroll
  for (int i = 0; i < W * int(sizeof(T)) / 4; ++i)
    if constexpr (sizeof(T) == 4) {
      a.at[i] = bits<uint32_t>(max_or_nan(bits<float>(a.at[i]), bits<float>(b.at[i])));
    } else {
      using Pair = typename Element<T>::Pair;
      a.at[i] = bits<uint32_t>(__hmax2_nan(bits<Pair>(a.at[i]), bits<Pair>(b.at[i])));
    }
  return a;
}

}  // namespace fastcnn::cuda::special
