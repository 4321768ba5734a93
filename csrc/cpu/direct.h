// A convolution without a matrix product behind it: for few channels or small maps, where setting
// one up costs more than the arithmetic. y[o] = sum over c, i, j of w[o, c, i, j] * x[c, i, j],
// then bias, ReLU and max pooling while a band of rows is in cache. Sums are float32, the bias
// comes last. A task is a band of rows of one image, so neither the batch nor the threads change a
// bit.
#pragma once

#include <cmath>
#include <limits>

#include "maxima.h"
#include "planes.h"

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

// X: the elements of the input.
template <class T, class X = T>
class DirectForward {
 public:
  // packed: Direct::pack's.
  DirectForward(const ConvParams& params, const float* packed, Scratch& scratch)
      : p(params),
        direct_(params),
        after_(params.after),
        geometry_(params.after),
        packed_(packed),
        bands_(after_.N, after_.OH, 1, band_rows(), forward_tasks(after_)),
        rows_(rows_of_band()),
        pool_(after_, scratch, direct_.by_pixels && geometry_.pooled ? rows_ : 0,
              direct_.by_pixels && geometry_.pooled ? bands_.band : 0, direct_.width,
              largest_cut<T>(after_)) {
    const int64_t lanes = direct_.by_pixels ? 1 : 2 * kLanes;
    in_ = scratch.span<float>(direct_.group_in * direct_.input_rows(rows_) * direct_.width +
                              2 * kPixelVectors * kLanes);
    bias_ = scratch.span<float>(round_up(direct_.group_out, kLanes) + kLanes);
    plane_ = direct_.by_pixels ? round_up(rows_ * direct_.width, kPixelVectors * kLanes) : 0;
    sums_ =
        scratch.span<float>(direct_.by_pixels ? kTilePlanes * plane_ : rows_ * after_.W * lanes);
    const int64_t values = bands_.band * after_.OW * lanes;
    pooled_ = scratch.span<float>(geometry_.pooled ? values : 0);
    spans_ = scratch.span<const float*>(after_.pool.kh * after_.pool.kw);
    places_ = scratch.span<int32_t>(after_.pool.kh * after_.pool.kw);
    place_ = scratch.span<int32_t>(after_.offsets.data ? values : 0);
  }

  int64_t tasks() const { return after_.N * bands_.per_image; }

  void run(int64_t task) {
    n_ = bands_.image(task);
    out_ = bands_(task);
    have_ = geometry_.inputs_of(out_);
    have_.end = std::max(have_.end, have_.begin + 1);  // all windows may lie in the padding
    for (int64_t g = 0; g < p.groups; ++g) {
      const Input in = padded_input<X>(direct_, n_, g, have_, in_);
      read_bias(g);
      const float* weights = packed_ + g * direct_.packed_group();
      const int64_t first = g * direct_.group_out;
      if (direct_.by_pixels)
        over_pixels(in, weights, first);
      else
        over_channels(in, weights, first);
    }
  }

 private:
  // Output rows of which the convolution's fit into the budget.
  int64_t band_rows() const {
    const int64_t lanes = direct_.by_pixels ? kTilePlanes : 2 * kLanes;
    const int64_t rows =
        kBandBytes / (int64_t(sizeof(float)) * lanes * std::max<int64_t>(1, p.after.W));
    const int64_t step = geometry_.pooled ? p.after.pool.sh : 1;
    const int64_t most = std::max<int64_t>(1, rows / step);
    if (after_.N > 1) return most;
    const int64_t bands = round_up((after_.OH + most - 1) / most, after_.threads);
    return std::max<int64_t>(1, (after_.OH + bands - 1) / bands);  // as many for each thread
  }

  int64_t rows_of_band() const {
    int64_t most = 1;
    for (int64_t b = 0; b < bands_.per_image; ++b)
      most = std::max(most, geometry_.inputs_of(bands_(b)).count());
    return most;
  }

  void read_bias(int64_t g) {
    const int64_t n = direct_.group_out;
    if (!after_.bias) return std::fill(bias_, bias_ + n, 0.f);
    read(static_cast<const T*>(after_.bias) + g * n, 1, n, bias_);
  }

  void over_channels(Input in, const float* weights, int64_t first) {
    for (int64_t o = 0, n = 0; o < direct_.group_out; o += n) {
      n = direct_.lanes_at(o);
      n == kLanes ? convolve_rows<1>(in, weights, bias_ + o)
                  : convolve_rows<2>(in, weights, bias_ + o);
      weights += n * direct_.taps;
      const int64_t real = std::min(n, direct_.group_out - o);
      if (geometry_.pooled) pool_pixels(n);
      write_pixels(geometry_.pooled ? pooled_ : sums_, n, first + o, real);
    }
  }

  template <int VO>
  void convolve_rows(Input in, const float* weights, const float* bias) {
    const TiledRow<VO> row(p);
    const Tile tile{direct_, in, weights, bias};
    for (int64_t h = 0; h < have_.count(); ++h)
      row(tile, h * p.sh * in.pitch, sums_ + h * after_.W * VO * kLanes);
  }

  // Pools each window, n lanes at a time.
  void pool_pixels(int64_t n) {
    float* out = pooled_;
    int32_t* place = after_.offsets.data ? place_ : nullptr;
    for (int64_t oh = out_.begin; oh < out_.end; ++oh) {
      const Rows inside = geometry_.inside(oh);
      for (int64_t ow = 0; ow < after_.OW; ++ow, out += n) {
        const Candidates<float> from = candidates(oh, inside, ow, n);
        if (from.count) {
          maximum(from, true, n, out, place);
        } else {
          std::fill(out, out + n, -std::numeric_limits<float>::infinity());
          if (place) std::fill(place, place + n, kNoPlace);
        }
        if (!place) continue;
        take_cut(out, n, largest_cut<T>(after_), place);
        place += n;
      }
    }
  }

  Candidates<float> candidates(int64_t oh, Rows inside, int64_t ow, int64_t n) {
    const Pool& pool = after_.pool;
    const int64_t left = ow * pool.sw - pool.pw;
    int64_t count = 0;
    for (int64_t i = inside.begin; i < inside.end; ++i) {
      const int64_t h = geometry_.top(oh) + i * pool.dh - have_.begin;
      for (int64_t j = 0; j < pool.kw; ++j) {
        const int64_t w = left + j * pool.dw;
        if (w < 0 || w >= after_.W) continue;
        spans_[count] = sums_ + (h * after_.W + w) * n;
        places_[count++] = int32_t(i * pool.kw + j);
      }
    }
    return {spans_, places_, count};
  }

  // in: (pixel, n lanes), of which `real` are channels from c on.
  void write_pixels(const float* in, int64_t n, int64_t c, int64_t real) {
    const Tensor& y = after_.y;
    const int64_t pixels = out_.count() * after_.OW;
    T* out = static_cast<T*>(y.data) + n_ * y.n + out_.begin * y.h;
    if (after_.channels_last) {
      for (int64_t q = 0; q < pixels; ++q) write(in + q * n, real, out + q * y.w + c);
      if (after_.offsets.data)
        for (int64_t q = 0; q < pixels; ++q) write_places(q * n, 1, real, q * y.w + c);
      return;
    }
    for (int64_t l = 0; l < real; l += kLanes) {
      const int64_t channels = std::min<int64_t>(kLanes, real - l);
      for (int64_t q = 0; q < pixels; q += kLanes)
        write_block(in + q * n + l, n, channels, std::min(pixels - q, int64_t(kLanes)),
                    out + (c + l) * y.c + q);
    }
    for (int64_t l = 0; l < real && after_.offsets.data; ++l)
      write_places(l, n, pixels, (c + l) * y.c);
  }

  // Some pixels of so many channels, from pixel-major order to a row for each channel.
  void write_block(const float* in, int64_t n, int64_t channels, int64_t pixels, T* out) const {
    Vec<float> v[kLanes] = {};
    if (pixels == kLanes) {
#pragma GCC unroll 16
      for (int q = 0; q < kLanes; ++q) v[q] = load<Vec<float>>(in + q * n);
    } else {
      for (int64_t q = 0; q < pixels; ++q) v[q] = load<Vec<float>>(in + q * n);
    }
    transpose<float>(v);
    for (int64_t l = 0; l < channels; ++l, out += after_.y.c) {
      if (pixels == kLanes)
        store(out, T::narrow(v[l]));
      else
        store_first(out, T::narrow(v[l]), pixels);
    }
  }

  // Writes the argmax from place `from` on; at: the first one's position after the band's first
  // row. The layout is y's.
  void write_places(int64_t from, int64_t stride, int64_t count, int64_t at) const {
    at += n_ * after_.offsets.n + out_.begin * after_.offsets.h;
    write_offsets(after_, at, place_ + from, count, stride);
  }

  void over_pixels(Input in, const float* weights, int64_t first) {
    const int64_t values = (have_.count() - 1) * direct_.width + after_.W;
    for (int64_t o = 0, planes = 0; o < direct_.group_out; o += planes) {
      planes = direct_.channels_at(o);
      const RunPlanes tile = planes_of(planes, std::make_integer_sequence<int, kTilePlanes>());
      for (int64_t q = 0; q < values; q += kPixelVectors * kLanes)
        tile(direct_, {in.data + q, in.plane, in.pitch}, weights, bias_ + o, sums_ + q, plane_);
      weights += planes * direct_.taps;
      for (int64_t i = 0; i < planes; ++i) write_plane(sums_ + i * plane_, first + o + i);
    }
  }

  // in: rows of `width` values, of which the first W are channel c's.
  void write_plane(const float* in, int64_t c) {
    T* y = static_cast<T*>(after_.y.data) + n_ * after_.y.n + c * after_.y.c;
    if (geometry_.pooled) {
      pool_.run(in, false, have_, out_, n_, c, pooled_);
      return write(pooled_, out_.count() * after_.OW, y + out_.begin * after_.y.h);
    }
    for (int64_t h = out_.begin; h < out_.end; ++h, in += direct_.width)
      write(in, after_.W, y + h * after_.y.h);
  }

  const ConvParams& p;
  Direct direct_;
  const EpilogueParams& after_;
  Geometry geometry_;
  const float* packed_;
  Bands bands_;
  int64_t rows_, plane_;
  PlanePool<float> pool_;
  float *in_, *bias_, *sums_, *pooled_;
  const float** spans_;
  int32_t *places_, *place_;
  int64_t n_ = 0;
  Rows out_{0, 0}, have_{0, 0};
};

}  // namespace fastcnn::FASTCNN_ISA
