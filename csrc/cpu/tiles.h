// The arithmetic of a direct convolution: sums for a tile of neighbouring outputs, held in
// registers.
#pragma once

#include <cmath>

#include "geometry.h"
#include "lanes.h"

namespace fastcnn::FASTCNN_ISA {

// Registers for sums; the others hold weights and a value of the input.
#if defined(__AVX512F__)
constexpr int kSums = 28;
#else
constexpr int kSums = 12;
#endif
constexpr int kLanes = lanes<float>;
constexpr int kPixelVectors = 2;           // of a channel's pixels, at a time
constexpr int kTilePlanes = kSums / 4;     // output channels, at a time: 7 or 3
constexpr int64_t kBandBytes = 96 * 1024;  // of a band's convolution: it stays in the L2 cache
constexpr int64_t kTapsAtOnce = 64;        // products in one sum, at least

// The input that a band sees, in float32: c channels of rows of `pitch` values.
struct Input {
  const float* data;
  int64_t plane, pitch;
};

// Calls run for each of an output channel's weights, with where it lies from the first on.
template <class Run>
inline void for_taps(const ConvParams& p, const Tensor& weight, Run run) {
  for (int64_t c = 0; c < p.C / p.groups; ++c)
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; ++j) run(c * weight.c + i * weight.h + j * weight.w);
}

// Shared by a convolution's tasks: its parameters and derived sizes.
struct Direct {
  const ConvParams& p;
  int64_t group_in, group_out, taps;  // channels of a group; products in a value
  int64_t channels_at_once;           // in one sum
  int64_t width;                      // columns of a padded row: those that are read
  bool by_pixels;

  explicit Direct(const ConvParams& params)
      : p(params),
        group_in(p.C / p.groups),
        group_out(p.after.C / p.groups),
        taps(group_in * p.kh * p.kw),
        channels_at_once(std::max<int64_t>(1, taps_at_once() / (p.kh * p.kw))),
        width((p.after.W - 1) * p.sw + (p.kw - 1) * p.dw + 1),
        by_pixels(leaves_fewer_idle()) {}

  // Products in one sum: a long one loses digits, and so do many short ones, least at the root.
  int64_t taps_at_once() const { return std::max(kTapsAtOnce, int64_t(std::sqrt(double(taps)))); }

  // Padded rows that so many rows of the convolution read.
  int64_t input_rows(int64_t rows) const { return (rows - 1) * p.sh + (p.kh - 1) * p.dh + 1; }

  // Lanes lie over output channels, or, where few are idle so, over neighbouring pixels: all of a
  // band as one row, of which `width` - W values at each row's end are thrown away.
  bool leaves_fewer_idle() const {
    if (p.sh != 1 || p.sw != 1 || p.after.channels_last) return false;
    return group_out * width < p.after.W * round_up(group_out, kLanes);
  }

  // Lanes of the block of output channels that begins at o.
  int64_t lanes_at(int64_t o) const {
    return std::min<int64_t>(2 * kLanes, round_up(group_out - o, kLanes));
  }

  int64_t packed_group() const {
    return by_pixels ? group_out * taps : round_up(group_out, kLanes) * taps;
  }
  int64_t packed_size() const { return p.groups * packed_group() + 2 * kLanes; }

  // Output channels side by side in the packed weights from channel o of a group on.
  int64_t channels_at(int64_t o) const {
    return by_pixels ? std::min<int64_t>(kTilePlanes, group_out - o) : lanes_at(o);
  }

  // Weights in float32 as (block of output channels, tap, channel), with zeros past the last one.
  template <class T>
  void pack(float* out) const {
    const Tensor weight = p.weight;
    const bool dense = weight.w == 1 && weight.h == p.kw && weight.c == p.kh * p.kw;
    for (int64_t g = 0; g < p.groups; ++g)
      for (int64_t o = 0, n = 0; o < group_out; o += n) {
        n = channels_at(o);
        const int64_t real = std::min(n, group_out - o);
        const T* first = static_cast<const T*>(weight.data) + (g * group_out + o) * weight.n;
        if (dense && !by_pixels) {
          for (int64_t part = 0; part < n; part += kLanes)
            pack_lanes(first + part * weight.n, std::min<int64_t>(kLanes, real - part), out + part,
                       n);
          out += taps * n;
          continue;
        }
        for_taps(p, weight, [=, &out](int64_t at) FASTCNN_INLINE {
          const T* from = first + at;
          for (int64_t l = 0; l < real; ++l, from += weight.n) out[l] = T::get(*from);
          std::fill(out + real, out + n, 0.f);
          out += n;
        });
      }
  }

 private:
  // As many output channels as lanes, `real` of them there, whose taps lie side by side.
  template <class T>
  void pack_lanes(const T* from, int64_t real, float* out, int64_t pitch) const {
    using Raw = typename T::Raw;
    for (int64_t t = 0; t < taps; t += kLanes) {
      const int64_t n = std::min<int64_t>(kLanes, taps - t);
      Vec<float> v[kLanes] = {};
      for (int64_t l = 0; l < real; ++l) {
        const T* at = from + l * p.weight.n + t;
        v[l] = T::widen(n == kLanes ? load<Raw>(at) : load_first<Raw>(at, n));
      }
      transpose<float>(v);
      for (int64_t i = 0; i < n; ++i) store(out + (t + i) * pitch, v[i]);
    }
  }
};

// The input rows that these output rows read, of group g's channels of image n: in place, or copied
// to `out` with zero padding.
template <class X>
inline Input padded_input(const Direct& d, int64_t n, int64_t g, Rows of, float* out) {
  const ConvParams& p = d.p;
  const X* x = static_cast<const X*>(p.x.data) + n * p.x.n + g * d.group_in * p.x.c;
  const int64_t top = of.begin * p.sh - p.top, rows = d.input_rows(of.count()), width = d.width;
  const bool inside = p.left == 0 && width <= p.W && top >= 0 && top + rows <= p.H;
  if constexpr (std::is_same_v<X, F32>)
    if (inside && !d.by_pixels && p.x.w == 1)  // whole vectors could end outside
      return {reinterpret_cast<const float*>(x + top * p.x.h), p.x.c, p.x.h};
  const int64_t left = std::min(p.left, width), there = clamp(width - left, 0, p.W);
  const Input in{out, rows * width, width};
  for (int64_t c = 0; c < d.group_in; ++c)
    for (int64_t h = top; h < top + rows; ++h, out += width) {
      const bool outside = h < 0 || h >= p.H;
      std::fill(out, outside ? out + width : out + left, 0.f);
      if (outside) continue;
      read(x + c * p.x.c + h * p.x.h, p.x.w, there, out + left);
      std::fill(out + left + there, out + width, 0.f);
    }
  return in;
}

// Keeps gcc from carrying values of one tap over to the next in registers: to move and broadcast
// them costs a quarter more than to load them again.
inline void forget_origin(const float*& tap) { asm("" : "+r"(tap)); }

// PX neighbouring pixels of VO vectors of output channels, with bias and ReLU.
struct Tile {
  const Direct& d;
  Input x;
  const float *weights, *bias;  // (tap, VO vectors), (VO vectors,)

  // UNIT: stride and dilation are 1.
  template <bool UNIT, int VO, int PX>
  void run(int64_t at, float* out) const {
    const ConvParams& p = d.p;
    const int64_t step = UNIT ? 1 : p.dw, stride = UNIT ? 1 : p.sw;
    const float* w = weights;
    for (int64_t c = 0; c < d.group_in;) {
      const int64_t first = c, end = std::min(c + d.channels_at_once, d.group_in);
      Vec<float> sums[PX][VO] = {};
      for (; c < end; ++c)
        for (int64_t i = 0; i < p.kh; ++i) {
          const float* tap = x.data + c * x.plane + i * p.dh * x.pitch + at;
          for (int64_t j = 0; j < p.kw; ++j, tap += step, w += VO * kLanes) {
            forget_origin(tap);
            Vec<float> ws[VO];
#pragma GCC unroll 2
            for (int v = 0; v < VO; ++v) ws[v] = load<Vec<float>>(w + v * kLanes);
#pragma GCC unroll 28
            for (int q = 0; q < PX; ++q)
#pragma GCC unroll 2
              for (int v = 0; v < VO; ++v) sums[q][v] += ws[v] * tap[q * stride];
          }
        }
#pragma GCC unroll 28
      for (int q = 0; q < PX; ++q)
#pragma GCC unroll 2
        for (int v = 0; v < VO; ++v) {
          float* to = out + (q * VO + v) * kLanes;
          Vec<float> sum = sums[q][v];
          if (first) sum += load<Vec<float>>(to);
          if (end == d.group_in) sum += load<Vec<float>>(bias + v * kLanes);
          store(to, end == d.group_in && p.after.relu ? rectify<float>(sum) : sum);
        }
    }
  }
};

using RunTile = void (Tile::*)(int64_t at, float* out) const;

template <int VO, int... px>
inline RunTile tile_of(bool unit, int64_t pixels, std::integer_sequence<int, px...>) {
  static constexpr RunTile tiles[][sizeof...(px)] = {{&Tile::run<false, VO, px + 1>...},
                                                     {&Tile::run<true, VO, px + 1>...}};
  return tiles[unit][pixels - 1];
}

// A row of pixels in tiles of about the same size; the last may compute some again.
template <int VO>
struct TiledRow {
  static constexpr int kMost = kSums / VO;
  int64_t width, count, pixels;
  RunTile run;

  explicit TiledRow(const ConvParams& p)
      : width(p.after.W),
        count((width + kMost - 1) / kMost),
        pixels((width + count - 1) / count),
        run(tile_of<VO>(p.sw == 1 && p.dw == 1, pixels, std::make_integer_sequence<int, kMost>())) {
  }

  void operator()(const Tile& tile, int64_t at, float* out) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t q = std::min(i * pixels, width - pixels);
      (tile.*run)(at + q * tile.d.p.sw, out + q * VO * kLanes);
    }
  }
};

// PLANES output channels at kPixelVectors vectors of pixels, with bias and ReLU. w: (tap, PLANES).
template <int PLANES>
inline void tile_planes(const Direct& d, Input x, const float* w, const float* bias, float* out,
                        int64_t out_plane) {
  const ConvParams& p = d.p;
  for (int64_t c = 0; c < d.group_in;) {
    const int64_t first = c, end = std::min(c + d.channels_at_once, d.group_in);
    Vec<float> sums[PLANES][kPixelVectors] = {};
    for (; c < end; ++c)
      for (int64_t i = 0; i < p.kh; ++i) {
        const float* tap = x.data + c * x.plane + i * p.dh * x.pitch;
        for (int64_t j = 0; j < p.kw; ++j, tap += p.dw, w += PLANES) {
          forget_origin(tap);
          Vec<float> values[kPixelVectors];
#pragma GCC unroll 2
          for (int v = 0; v < kPixelVectors; ++v) values[v] = load<Vec<float>>(tap + v * kLanes);
#pragma GCC unroll 7
          for (int o = 0; o < PLANES; ++o)
#pragma GCC unroll 2
            for (int v = 0; v < kPixelVectors; ++v) sums[o][v] += values[v] * w[o];
        }
      }
#pragma GCC unroll 7
    for (int o = 0; o < PLANES; ++o)
#pragma GCC unroll 2
      for (int v = 0; v < kPixelVectors; ++v) {
        float* to = out + o * out_plane + v * kLanes;
        Vec<float> sum = sums[o][v];
        if (first) sum += load<Vec<float>>(to);
        if (end == d.group_in) sum += bias[o];
        store(to, end == d.group_in && p.after.relu ? rectify<float>(sum) : sum);
      }
  }
}

using RunPlanes = void (*)(const Direct&, Input, const float*, const float*, float*, int64_t);

template <int... n>
inline RunPlanes planes_of(int64_t planes, std::integer_sequence<int, n...>) {
  static constexpr RunPlanes tiles[] = {&tile_planes<n + 1>...};
  return tiles[planes - 1];
}

}  // namespace fastcnn::FASTCNN_ISA
