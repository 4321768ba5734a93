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

template <class T, class Layout>
struct Backward : Lanes<T, Layout> {
  using Base = Lanes<T, Layout>;
  using Base::V, Base::H, Base::p;

  int down, across, parts;  // squares of an image; in how many parts all of them are taken

  Backward(const EpilogueParams& params, int stride)
      : Base(params),
        down(int((p.H + p.pool.ph + stride - 1) / stride)),
        across(int((p.W + p.pool.pw + stride - 1) / stride)) {
    // Enough blocks for any GPU, of some squares for each thread.
    const int a_block_takes = 4 * int(Base::block().y);
    parts = std::min((squares() + a_block_takes - 1) / a_block_takes,
                     (2048 + Base::chunks - 1) / Base::chunks);
  }

  __host__ __device__ int squares() const { return int(p.N) * down * across; }

  // The gradient g at the LRN's output as that at its input, with r of two more channels on either
  // side: dr[i] = g[i] d[i]^-3/4 - slope r[i] sum of g[j] r[j] d[j]^-3/4 / d[j] over the window.
  __device__ void through_lrn(const float (&g)[V + 2 * H], const float (&r)[V + 4 * H],
                              float (&to)[V]) const {
    float d[V + 2 * H], power[V + 2 * H], term[V + 2 * H];
    Base::denominators(r, d);
#pragma unroll
    for (int i = 0; i < V + 2 * H; ++i) {
      power[i] = minus_three_quarters<T>(d[i]);
      term[i] = g[i] * r[i + H] * power[i] * inverse<T>(d[i], power[i]);
    }
    float seen[V];
    sums_of_five(term, seen);
#pragma unroll
    for (int i = 0; i < V; ++i)
      to[i] = g[i + H] * power[i + H] - Base::slope * r[i + 2 * H] * seen[i];
  }

  // The gradient at the output of LRN and ReLU as that at their input; at: a pixel of r.
  template <bool kLrn, int Halo>
  __device__ void through(const float (&g)[V + 2 * Halo], int n, int h, int w, const Channels& of,
                          float (&to)[V]) const {
    constexpr int R = kLrn ? 2 * H : 0;
    float r[V + 2 * R] = {};
    if (kLrn || p.relu) Base::template load<R>(p.r, n, h, w, of).unpack(r);
    if constexpr (kLrn) {
      through_lrn(g, r, to);
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = g[i + Halo];
    }
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (p.relu && r[i + R] <= 0) to[i] = 0;
  }
};

// The gradients at a square's inputs: for each the sum over the windows whose maximum was there.
// kAtOnce: windows whose loads are in flight together, by the registers that there are.
template <class T, class Layout, int K, int Halo, int kAtOnce>
struct Unpooled {
  using B = Backward<T, Layout>;
  static constexpr int S = Square<K>::S, E = Square<K>::E, W = B::V + 2 * Halo;
  float g[S * S][W] = {};

  // get(g, row, column) gives an output's gradient.
  template <class Get>
  __device__ Unpooled(const B& s, int n, int a, int b, const Channels& of, Get get) {
#pragma unroll kAtOnce
    for (int e = 0; e < E * E; ++e) {
      const int oh = a - e / E, ow = b - e % E;
      if (unsigned(oh) >= unsigned(s.p.OH) || unsigned(ow) >= unsigned(s.p.OW)) continue;
      const auto places = B::template load<Halo, uint8_t>(s.p.offsets, n, oh, ow, of);
      float from[W];
      get(from, oh, ow);
      add(from, places, e / E * S, e % E * S);
    }
  }

  // A window that begins so many rows and columns before the square.
  template <class Places>
  __device__ void add(const float (&from)[W], const Places& places, int row, int column) {
#pragma unroll
    for (int i = 0; i < S * S; ++i) {
      const int h = row + i / S, w = column + i % S;
      if (h >= K || w >= K) continue;
#pragma unroll
      for (int c = 0; c < W; ++c)
        if (places.at(c) == h * K + w) g[i][c] += from[c];
    }
  }
};

// Sums a value of each thread over the block's pixels, in double and always in the same order.
template <int V>
__device__ void add_up(const float (&sum)[V], const Channels& of, int part, int parts,
                       double* sums) {
  __shared__ double shared[kThreads];
  const int me = int(threadIdx.y * blockDim.x + threadIdx.x), rows = int(blockDim.y);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    shared[me] = double(sum[i]);
    for (int left = rows; left > 1;) {
      __syncthreads();
      const int half = (left + 1) / 2;
      if (int(threadIdx.y) < left - half) shared[me] += shared[me + half * int(blockDim.x)];
      left = half;
    }
    if (threadIdx.y == 0 && of.c + i < of.end) sums[int64_t(of.c + i) * parts + part] = shared[me];
    __syncthreads();
  }
}

// A thread has its channels of one square after another, and their sum for the bias.
template <class T, class Layout, bool kLrn, int K, bool kPoolFirst>
__global__ void __launch_bounds__(kThreads, kLrn && K && kPoolFirst ? 1 : 2)
    each_square(Backward<T, Layout> s, double* sums) {
  using B = Backward<T, Layout>;
  constexpr int V = B::V, S = Square<K>::S, Halo = kLrn ? B::H : 0, W = V + 2 * Halo;
  const EpilogueParams& p = s.p;
  const Channels of = s.channels(blockIdx.x % s.chunks);
  const int part = blockIdx.x / s.chunks;

  float sum[V] = {};
  const int squares = s.squares(), share = (squares + s.parts - 1) / s.parts;
  const int end = min((part + 1) * share, squares);
#pragma unroll 1
  for (int q = part * share + int(threadIdx.y); q < end && of.c < of.end; q += int(blockDim.y)) {
    const int row = q / s.across, b = q - row * s.across, n = row / s.down, a = row - n * s.down;

    const auto given = [&](float (&g)[W], int oh, int ow) {
      B::template load<Halo>(p.y, n, oh, ow, of).unpack(g);
    };
    const auto store = [&](int h, int w, const float (&g)[V]) {
      B::store(p.x, n, h, w, of, g);
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] += g[i];
    };
    const auto each = [&](auto visit) {
#pragma unroll
      for (int i = 0; i < S * S; ++i) {
        const int h = a * S - int(p.pool.ph) + i / S, w = b * S - int(p.pool.pw) + i % S;
        if (unsigned(h) < unsigned(p.H) && unsigned(w) < unsigned(p.W)) visit(i, h, w);
      }
    };

    if constexpr (K == 0) {
      float g[W], to[V];
      given(g, a, b);
      s.template through<kLrn, Halo>(g, n, a, b, of, to);
      store(a, b, to);
    } else if constexpr (kPoolFirst) {
      const Unpooled<T, Layout, K, 0, kLrn ? 1 : 4> square(
          s, n, a, b, of, [&](float (&to)[V], int oh, int ow) {
            float g[W];
            given(g, oh, ow);
            s.template through<kLrn, Halo>(g, n, oh, ow, of, to);
          });
      each([&](int i, int h, int w) { store(h, w, square.g[i]); });
    } else {
      const Unpooled<T, Layout, K, Halo, 4> square(s, n, a, b, of, given);
      each([&](int i, int h, int w) {
        float to[V];
        s.template through<kLrn, Halo>(square.g[i], n, h, w, of, to);
        store(h, w, to);
      });
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
    const Backward<T, Layout> s(p, Square<K>::S);
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
  select(p, [&](auto* type, auto layout, auto, auto k) {
    using T = std::remove_pointer_t<decltype(type)>;
    parts = Backward<T, decltype(layout)>(p, Square<k.value>::S).parts;
  });
  return parts;
}

}  // namespace fastcnn::cuda::special
