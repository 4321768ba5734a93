#include <algorithm>

#include "powers.h"
#include "select.h"

namespace fastcnn::cuda::special {

namespace {

// Inputs are taken by squares of S x S, S being the pooling's stride: those from where a window
// begins. E x E windows reach into a square, each read once for all its inputs.
template <int K>
struct Square {
  static constexpr int S = K ? 2 : 1;
  static constexpr int E = K > 2 ? 2 : 1;
};

__device__ inline int nearest(int i, int64_t size) { return min(max(i, 0), int(size) - 1); }

// The gradients of C channels at a square's inputs: for each input the sum over the windows whose
// maximum was there.
template <int K, int C>
struct Unpooled {
  static constexpr int S = Square<K>::S, E = Square<K>::E;
  float g[S * S][C] = {};

  // The e-th of E x E windows, from the one that begins with the square on backwards; there:
  // whether it is one of the map's.
  template <class Places>
  __device__ void add(int e, const float (&from)[C], const Places& places, bool there) {
#pragma unroll
    for (int i = 0; i < S * S; ++i) {
      const int row = i / S + e / E * S, column = i % S + e % E * S;
      if (row >= K || column >= K) continue;
      const int want = there ? row * K + column : -1;
#pragma unroll
      for (int c = 0; c < C; ++c)
        if (places.at(c) == want) g[i][c] += from[c];
    }
  }
};

// Two of a thread's values and two of its last for the threads beside it. Two sets in turns, so
// that one barrier does: whoever writes a set again has passed the barrier after its last reading.
struct Edges {
  float4* shared;
  int turn = 0;

  // own, with the neighbours' two on either side, 0 where outside the group. All of a block come
  // here.
  template <int V>
  __device__ void add_to(const float (&own)[V], const Channels& of, float (&all)[V + 4]) {
    float4* const mine = shared + turn * kThreads + threadIdx.y * blockDim.x + threadIdx.x;
    *mine = {own[0], own[1], own[V - 2], own[V - 1]};
    turn ^= 1;
    __syncthreads();
    const bool left = of.c > of.begin, right = of.c + V < of.end;
    const float4 before = mine[left ? -1 : 0], after = mine[right ? 1 : 0];
    all[0] = left ? before.z : 0, all[1] = left ? before.w : 0;
#pragma unroll
    for (int i = 0; i < V; ++i) all[i + 2] = own[i];
    all[V + 2] = right ? after.x : 0, all[V + 3] = right ? after.y : 0;
  }
};

template <class T, class Layout, bool kLrn>
struct Backward : Lanes<T, Layout> {
  using Base = Lanes<T, Layout>;
  using Base::V, Base::H, Base::p;

  // Neighbours' terms of an LRN's gradient: in channels_last from their threads, which are in the
  // same block; in NCHW made again, from their gradients and r of two more on either side.
  static constexpr bool kShares = kLrn && Layout::channels_last;
  static constexpr int Halo = kLrn && !kShares ? H : 0, W = V + 2 * Halo;
  static constexpr int R = kLrn ? H + Halo : 0;

  int down, across, parts;  // squares of an image; in how many parts all of them are taken

  Backward(const EpilogueParams& params, int stride)
      : Base(params, kShares),
        down(int((p.H + p.pool.ph + stride - 1) / stride)),
        across(int((p.W + p.pool.pw + stride - 1) / stride)) {
    // Enough blocks for any GPU, of some squares for each thread.
    const int a_block_takes = 4 * int(Base::block().y);
    parts = std::min((squares() + a_block_takes - 1) / a_block_takes,
                     (2048 + Base::chunks - 1) / Base::chunks);
  }

  __host__ __device__ int squares() const { return int(p.N) * down * across; }

  // The gradient g at the output of LRN and ReLU as that at their input, with r of the channels
  // that it needs. Through an LRN: dr[i] = g[i] d[i]^-3/4 - slope r[i] sum of g[j] r[j] d[j]^-3/4 /
  // d[j] over the window.
  __device__ void through(const float (&g)[W], const Loaded<T, Layout, V, R>& loaded,
                          const Channels& of, Edges& edges, float (&to)[V]) const {
    float r[V + 2 * R];
    loaded.unpack(r);
    if constexpr (kLrn) {
      float d[W], direct[W], term[W], terms[V + 2 * H], seen[V];
      Base::denominators(r, d);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const float power = minus_three_quarters<T>(d[i]);
        direct[i] = g[i] * power;
        term[i] = direct[i] * r[i + H] * inverse<T>(d[i], power);
      }
      if constexpr (kShares)
        edges.add_to(term, of, terms);
      else
        memcpy(terms, term, sizeof terms);
      sums_of_five(terms, seen);
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = direct[i + Halo] - Base::slope * r[i + R] * seen[i];
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = g[i];
    }
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (p.relu && r[i + R] <= 0) to[i] = 0;
  }

  // r as it was kept. Where neither LRN nor ReLU needs it there is none, and y's gradient, as
  // large, stands for it.
  __device__ Loaded<T, Layout, V, R> load_r(int n, int h, int w, const Channels& of) const {
    return Base::template load<R>(kLrn || p.relu ? p.r : p.y, n, h, w, of);
  }

  // The input of an LRN that directly follows bias and ReLU: max(r + bias, 0). Applied twice, it is
  // the same.
  __device__ Loaded<T, Layout, V, R> rectified(const Loaded<T, Layout, V, R>& r,
                                               const Loaded<T, Layout, V, R>& bias) const {
    if constexpr (kLrn)
      return r.rectified(bias, p.relu ? 0 : -INFINITY);
    else
      return r;
  }
  __device__ Loaded<T, Layout, V, R> load_bias(const Channels& of) const {
    if (kLrn && p.r_bias) return {static_cast<const T*>(p.r_bias), 1, of};
    return {};
  }
};

// Sums V values of each thread over the block's pixels, in double and always in the same order.
template <int V>
__device__ void add_up(const float (&sum)[V], const Channels& of, int part, int parts,
                       double* sums) {
  __shared__ double shared[V][kThreads];
  const int me = int(threadIdx.y * blockDim.x + threadIdx.x);
#pragma unroll
  for (int i = 0; i < V; ++i) shared[i][me] = double(sum[i]);
  for (int left = int(blockDim.y); left > 1;) {
    __syncthreads();
    const int half = (left + 1) / 2;
    if (int(threadIdx.y) < left - half)
#pragma unroll
      for (int i = 0; i < V; ++i) shared[i][me] += shared[i][me + half * int(blockDim.x)];
    left = half;
  }
  if (threadIdx.y > 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (of.c + i < of.end) sums[int64_t(of.c + i) * parts + part] = shared[i][me];
}

// A thread has its channels of one square after another, and their sum for the bias. All loads of a
// square are asked for before the first is used: they are made whether or not the place is inside,
// from the nearest one that is.
template <class T, class Layout, bool kLrn, int K, bool kPoolFirst>
__global__ void __launch_bounds__(kThreads, kLrn && !Layout::channels_last ? 1 : 2)
    each_square(Backward<T, Layout, kLrn> s, double* sums) {
  using B = Backward<T, Layout, kLrn>;
  constexpr int V = B::V, W = B::W, S = Square<K>::S, E = Square<K>::E;
  [[maybe_unused]] constexpr int kAtOnce =
      Layout::channels_last ? E * E : 1;  // else the registers do not do
  __shared__ float4 shared[B::kShares ? 2 * kThreads : 1];
  Edges edges{shared};
  const EpilogueParams& p = s.p;
  const Channels of = s.channels(blockIdx.x % s.chunks);
  const int part = blockIdx.x / s.chunks;
  const int share = (s.squares() + s.parts - 1) / s.parts;
  const int end = min((part + 1) * share, s.squares());

  const auto bias = s.load_bias(of);

  float sum[V] = {};
#pragma unroll 1
  for (int first = part * share; first < end; first += int(blockDim.y)) {
    const int q = min(first + int(threadIdx.y), end - 1);
    const bool mine = q == first + int(threadIdx.y) && of.c < of.end;
    const int row = q / s.across, b = q - row * s.across, n = row / s.down, a = row - n * s.down;
    const int h = a * S - int(p.pool.ph), w = b * S - int(p.pool.pw);  // where the square begins
    const auto inside = [&](int i) {
      return mine && unsigned(h + i / S) < unsigned(p.H) && unsigned(w + i % S) < unsigned(p.W);
    };
    const auto store = [&](int i, const float* g) {
      if (!inside(i)) return;
      B::store(p.x, n, h + i / S, w + i % S, of, g);
#pragma unroll
      for (int c = 0; c < V; ++c) sum[c] += g[c];
    };

    if constexpr (K == 0) {
      const auto loaded = B::template load<B::Halo>(p.y, n, a, b, of);
      const auto r = s.load_r(n, a, b, of);
      float g[W], to[V];
      loaded.unpack(g);
      s.through(g, s.rectified(r, bias), of, edges, to);
      store(0, to);
    } else {
      Unpooled<K, kPoolFirst ? V : W> square;
#pragma unroll kAtOnce
      for (int e = 0; e < E * E; ++e) {
        const int oh = nearest(a - e / E, p.OH), ow = nearest(b - e % E, p.OW);
        const bool there = oh == a - e / E && ow == b - e % E;
        const auto loaded = B::template load<B::Halo>(p.y, n, oh, ow, of);
        const auto places =
            B::template load<kPoolFirst ? 0 : B::Halo, uint8_t>(p.argmax, n, oh, ow, of);
        float g[W];
        loaded.unpack(g);
        if constexpr (kLrn && kPoolFirst) {
          float to[V];
          s.through(g, s.load_r(n, oh, ow, of), of, edges, to);
          if (Layout::channels_last || there) square.add(e, to, places, there);
        } else {
          if (Layout::channels_last || there) square.add(e, g, places, there);
        }
      }
      if constexpr (kPoolFirst) {
#pragma unroll
        for (int i = 0; i < S * S; ++i) store(i, square.g[i]);
      } else {
        const auto load = [&](int i) {
          return s.load_r(n, nearest(h + i / S, p.H), nearest(w + i % S, p.W), of);
        };
        [[maybe_unused]] auto next = load(0);
#pragma unroll
        for (int i = 0; i < S * S; ++i) {
          if (!B::kShares && !inside(i)) continue;  // the registers do not do for two
          const auto r = B::kShares ? next : load(i);
          if (B::kShares && i + 1 < S * S) next = load(i + 1);  // before the barrier in through
          float to[V];
          s.through(square.g[i], s.rectified(r, bias), of, edges, to);
          store(i, to);
        }
      }
    }
  }
  if (sums) add_up(sum, of, part, s.parts, sums);
}

template <class T, class Layout>
struct Launch {
  const EpilogueParams& p;
  cudaStream_t stream;
  double* sums;

  template <bool kLrn, int K>
  void run() const {
    if constexpr (kLrn && K > 0)
      if (!p.pool.first) return squares<kLrn, K, false>();
    squares<kLrn, K, true>();
  }

  template <bool kLrn, int K, bool kPoolFirst>
  void squares() const {
    const Backward<T, Layout, kLrn> s(p, Square<K>::S);
    constexpr auto kernel = &each_square<T, Layout, kLrn, K, kPoolFirst>;
    FASTCNN_LAUNCH(kernel, dim3(s.chunks * s.parts), s.block(), 0, stream, s, sums);
    check(cudaGetLastError(), "fastcnn::cuda::special::each_square");
  }
};

}  // namespace

void backward(const EpilogueParams& p, cudaStream_t stream, double* sums) {
  select(p, [&](auto* type, auto layout, auto lrn, auto k) {
    using T = std::remove_pointer_t<decltype(type)>;
    Launch<T, decltype(layout)>{p, stream, sums}.template run<lrn.value, k.value>();
  });
}

int64_t parts(const EpilogueParams& p) {
  int64_t parts = 0;
  select(p, [&](auto* type, auto layout, auto lrn, auto k) {
    using T = std::remove_pointer_t<decltype(type)>;
    parts = Backward<T, decltype(layout), lrn.value>(p, Square<k.value>::S).parts;
  });
  return parts;
}

}  // namespace fastcnn::cuda::special
