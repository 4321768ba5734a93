#include <algorithm>

#include "maxima.h"
#include "powers.h"
#include "select.h"

namespace fastcnn::cuda::special {

namespace {

// So much that every GPU has it without being asked, and that four blocks fit where 200 KB do.
constexpr int kSharedBytes = 48 << 10;

template <class T, class Layout>
struct Forward : Lanes<T, Layout> {
  using Base = Lanes<T, Layout>;
  using Base::V, Base::H, Base::p;

  float least;  // of a ReLU

  explicit Forward(const EpilogueParams& params)
      : Base(params), least(params.relu ? 0 : -INFINITY) {}

  // Loads the bias of a thread's channels, neighbours included.
  template <int Halo>
  __device__ void load_bias(const Channels& of, float (&bias)[V + 2 * Halo]) const {
#pragma unroll
    for (int i = 0; i < V + 2 * Halo; ++i) bias[i] = -0.0f;  // which leaves even -0 as it is
    if (p.bias) Loaded<T, Layout, V, Halo>(static_cast<const T*>(p.bias), 1, of).unpack(bias);
  }

  // r = max(a + bias, 0), a NaN staying one.
  template <int Halo>
  __device__ void rectified(const Loaded<T, Layout, V, Halo>& a, const float (&bias)[V + 2 * Halo],
                            float (&r)[V + 2 * Halo]) const {
    a.unpack(r);
#pragma unroll
    for (int i = 0; i < V + 2 * Halo; ++i) r[i] = max_or_nan(r[i] + bias[i], least);
  }

  // o = r d^-3/4.
  __device__ void normalised(const float (&r)[V + 2 * H], float (&o)[V]) const {
    Base::denominators(r, o);
#pragma unroll
    for (int i = 0; i < V; ++i) o[i] = r[i + H] * minus_three_quarters<T>(o[i]);
  }
};

// All but pooling after an LRN: an output pixel's channels from the inputs under it, whose overlap
// with the next pixel's comes from L1.
template <class T, class Layout, bool kLrn, int K, bool kSave>
__global__ void __launch_bounds__(kThreads, kLrn && K && !Layout::channels_last ? 1 : 2)
    each_output(Forward<T, Layout> s) {
  using F = Forward<T, Layout>;
  constexpr int V = F::V, H = kLrn ? F::H : 0, W = V + 2 * H;
  const EpilogueParams& p = s.p;
  const Channels of = s.channels(blockIdx.x % s.chunks);
  if (of.c >= of.end) return;
  float bias[W];
  s.template load_bias<H>(of, bias);

  // Not unrolled: what a thread waits for, those of the other blocks fill.
  const int step = int(gridDim.x / s.chunks * blockDim.y);
  const int pixels = int(p.N * p.OH * p.OW), OH = int(p.OH), OW = int(p.OW);
#pragma unroll 1
  for (int i = int(blockIdx.x / s.chunks * blockDim.y + threadIdx.y); i < pixels; i += step) {
    const int row = i / OW, ow = i - row * OW, n = row / OH, oh = row - n * OH;
    float r[W];
    if constexpr (K == 0) {
      s.template rectified<H>(F::template load<H>(p.x, n, oh, ow, of), bias, r);
    } else {
      const Window<K> window(p, oh, ow);
      Largest<W, kSave> best(p.relu ? kNoPlace : window.first(), s.least);
      const auto take = [&](int place, int h, int w) {
        float v[W];
        F::template load<H>(p.x, n, h, w, of).unpack(v);
#pragma unroll
        for (int j = 0; j < W; ++j) v[j] += bias[j];
        best.take(v, place);
      };
      if constexpr (Layout::channels_last && !kLrn)
        window.each(take);
      else
        window.one_by_one(take);  // the registers do not do for all loads at once
#pragma unroll
      for (int j = 0; j < W; ++j) r[j] = best.value[j];
      if constexpr (kSave) store_argmax<V, Layout>(p.argmax, n, oh, ow, of, best.place + H);
    }
    if constexpr (kLrn) {
      if (p.r.data) F::store(p.r, n, oh, ow, of, r + H);
      float o[V];
      s.normalised(r, o);
      F::store(p.y, n, oh, ow, of, o);
    } else {
      F::store(p.y, n, oh, ow, of, r);
    }
  }
}

// How an output map falls into tiles: so many rows and columns of outputs in each, at most.
struct Tiles {
  int rows, columns, down, across;

  // The largest that fits, of even shares.
  Tiles(const EpilogueParams& p, int most_rows, int most_columns)
      : rows(share(int(p.OH), most_rows)),
        columns(share(int(p.OW), most_columns)),
        down((int(p.OH) + rows - 1) / rows),
        across((int(p.OW) + columns - 1) / columns) {}

  static int share(int size, int most) {
    const int pieces = (size + most - 1) / most;
    return (size + pieces - 1) / pieces;
  }
};

// The inputs that a tile needs along one axis, and those of them that no tile before or after has.
struct Span {
  int begin, end, own_end;

  // Outputs first to last, of so many; the axis' size, the pooling's padding.
  __device__ Span(int first, int last, int outputs, int size, int padding)
      : begin(first ? first * 2 - padding : 0),
        end(last < outputs ? (last - 1) * 2 - padding + 3 : size),
        own_end(last < outputs ? last * 2 - padding : size) {
    if (end > size) end = size;
    if (own_end > size) own_end = size;
  }
};

// A place in a row-major region, and how to get to the one so many further on.
struct Walk {
  int h, w;

  __device__ Walk(int places, int row, int column, int column_end) {
    const int width = column_end - column, rows = places / width;
    h = row + rows, w = column + places - rows * width;
  }

  __device__ void advance(const Walk& step, int column, int column_end) {
    h += step.h, w += step.w;
    if (w >= column_end) w -= column_end - column, ++h;
  }
};

// Vectors of values in shared memory, in planes of 16 bytes of each: threads side by side then
// reach all banks.
template <class S, int V>
struct Tile {
  using Part = Words<float, 4>;
  static constexpr int kParts = sizeof(Words<S, V>) / sizeof(Part);
  Part* parts;
  int vectors;

  __device__ void store(int i, const Words<S, V>& from) const {
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      Part part;
#pragma unroll
      for (int j = 0; j < 4; ++j) part.at[j] = from.at[4 * k + j];
      parts[k * vectors + i] = part;
    }
  }
  __device__ Words<S, V> load(int i) const {
    Words<S, V> to;
#pragma unroll
    for (int k = 0; k < kParts; ++k) {
      const Part part = parts[k * vectors + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) to.at[4 * k + j] = part.at[j];
    }
    return to;
  }
};

// LRN, then 3/2 pooling: each LRN value of a tile once, into shared memory; then the pooled ones
// from there. S: the type they wait in; rounded ones where only the largest's value is wanted.
template <class T, class Layout, bool kSave>
__global__ void __launch_bounds__(kThreads, Layout::blocks)
    normalise_then_pool(Forward<T, Layout> s, Tiles tiles) {
  using F = Forward<T, Layout>;
  using S = std::conditional_t<kSave, float, T>;
  constexpr int V = F::V, H = F::H;
  FASTCNN_SHARED(float4, shared);
  const EpilogueParams& p = s.p;

  unsigned block = blockIdx.x;
  const Channels of = s.channels(block % s.chunks);
  block /= s.chunks;
  const int column = block % tiles.across * tiles.columns;
  block /= tiles.across;
  const int row = block % tiles.down * tiles.rows;
  const int n = int(block) / tiles.down;
  const int row_end = min(row + tiles.rows, int(p.OH));
  const int column_end = min(column + tiles.columns, int(p.OW));
  const Span rows(row, row_end, int(p.OH), int(p.H), int(p.pool.ph));
  const Span columns(column, column_end, int(p.OW), int(p.W), int(p.pool.pw));
  const int width = columns.end - columns.begin;
  const int pixels = (rows.end - rows.begin) * width;
  const Tile<S, V> tile{reinterpret_cast<Words<float, 4>*>(shared), pixels * int(blockDim.x)};

  // The next pixel is asked for while this one is computed.
  const Walk first(int(threadIdx.y), rows.begin, columns.begin, columns.end);
  if (of.c < of.end && first.h < rows.end) {
    float bias[V + 2 * H];
    s.template load_bias<H>(of, bias);
    const Walk step(int(blockDim.y), 0, 0, width);
    auto next = F::template load<H>(p.x, n, first.h, first.w, of);
    int to = int(threadIdx.y * blockDim.x + threadIdx.x);
    for (Walk at = first; at.h < rows.end; to += int(blockDim.x * blockDim.y)) {
      const auto a = next;
      const Walk here = at;
      at.advance(step, columns.begin, columns.end);
      next = F::template load<H>(p.x, n, min(at.h, rows.end - 1), at.w, of);

      float r[V + 2 * H], o[V];
      s.template rectified<H>(a, bias, r);
      if (kSave && p.r.data && here.h < rows.own_end && here.w < columns.own_end)
        F::store(p.r, n, here.h, here.w, of, r + H);
      s.normalised(r, o);
      tile.store(to, Words<S, V>(o));
    }
  }
  __syncthreads();
  if (of.c >= of.end) return;

  const int pooled = tiles.columns * (row_end - row);
  for (int i = threadIdx.y; i < pooled; i += blockDim.y) {
    const int down = i / tiles.columns, oh = row + down, ow = column + i - down * tiles.columns;
    if (ow >= column_end) continue;
    const Window<3> window(p, oh, ow);
    const auto in_tile = [&](int h, int w) {
      const int pixel = (h - rows.begin) * width + w - columns.begin;
      return tile.load(pixel * int(blockDim.x) + int(threadIdx.x));
    };
    if constexpr (kSave) {
      Largest<V, true> best(window.first());
      window.each([&](int place, int h, int w) {
        float o[V];
        in_tile(h, w).unpack(o);
        best.take(o, place);
      });
      store_argmax<V, Layout>(p.argmax, n, oh, ow, of, best.place);
      F::store(p.y, n, oh, ow, of, best.value);
    } else {
      Words<T, V> best = lowest<T, V>();
      window.each([&](int, int h, int w) { best = larger(best, in_tile(h, w)); });
      F::store(p.y, n, oh, ow, of, best);
    }
  }
}

template <class T, class Layout>
struct Launch {
  const EpilogueParams& p;
  cudaStream_t stream;

  template <bool kLrn, int K>
  void run() const {
    if constexpr (kLrn && K > 0)
      if (!p.pool.first) return p.argmax.data ? tiled<true>() : tiled<false>();
    return p.argmax.data ? untiled<kLrn, K, true>() : untiled<kLrn, K, false>();
  }

  template <bool kLrn, int K, bool kSave>
  void untiled() const {
    const Forward<T, Layout> s(p);
    // A pixel for each thread, or from so many blocks on that every GPU is full, up to four.
    const int rows = int(s.block().y), most = int((p.N * p.OH * p.OW + rows - 1) / rows);
    const int parts = std::max(std::min(most, 2048 / s.chunks + 1), (most + 3) / 4);
    constexpr auto kernel = &each_output < T, Layout, kLrn, K, kSave && (K > 0) > ;
    FASTCNN_LAUNCH(kernel, dim3(s.chunks * parts), s.block(), 0, stream, s);
    check(cudaGetLastError(), "fastcnn::cuda::special::each_output");
  }

  template <bool kSave>
  void tiled() const {
    const Forward<T, Layout> s(p);
    const int bytes = int(s.block().x * s.V * (kSave ? sizeof(float) : sizeof(T)));
    const Tiles tiles = tiles_of(bytes);
    const int shared = bytes * inputs(tiles.rows) * inputs(tiles.columns);
    const unsigned blocks = unsigned(p.N * tiles.down * tiles.across * s.chunks);
    constexpr auto kernel = &normalise_then_pool<T, Layout, kSave>;
    FASTCNN_LAUNCH(kernel, dim3(blocks), s.block(), shared, stream, s, tiles);
    check(cudaGetLastError(), "fastcnn::cuda::special::normalise_then_pool");
  }

  // Rows or columns of inputs that a tile of outputs can have: one more than its windows at the end
  // of a map.
  static int inputs(int outputs) { return 2 * outputs + 2; }

  // bytes: of a pixel in shared memory. NCHW reads rows, the longer the better.
  Tiles tiles_of(int bytes) const {
    const int most = Layout::channels_last ? 9 : 32;
    for (int rows = 9;; --rows) {
      const Tiles tiles(p, rows, rows * most / 9);
      if (rows == 1 || bytes * inputs(tiles.rows) * inputs(tiles.columns) <= kSharedBytes)
        return tiles;
    }
  }
};

}  // namespace

void forward(const EpilogueParams& p, cudaStream_t stream) {
  select(p, [&](auto* type, auto layout, auto lrn, auto k) {
    using T = std::remove_pointer_t<decltype(type)>;
    Launch<T, decltype(layout)>{p, stream}.template run<lrn.value, k.value>();
  });
}

}  // namespace fastcnn::cuda::special
