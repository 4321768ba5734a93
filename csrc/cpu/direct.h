// A convolution without a matrix product behind it: for few channels or small maps, where setting
// one up costs more than the arithmetic. y[o] = sum over c, i, j of w[o, c, i, j] * x[c, i, j],
// then bias, ReLU and max pooling while a band of rows is in cache. Sums are float32, the bias
// comes last. A task is a band of rows of one image, so neither the batch nor the threads change a
// bit.
#pragma once

#include <limits>

#include "plane_pooling.h"
#include "tiles.h"

namespace fastcnn::FASTCNN_ISA {

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
    place_ = scratch.span<int32_t>(after_.argmax.data ? values : 0);
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
    int32_t* place = after_.argmax.data ? place_ : nullptr;
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
      if (after_.argmax.data)
        for (int64_t q = 0; q < pixels; ++q) write_places(q * n, 1, real, q * y.w + c);
      return;
    }
    for (int64_t l = 0; l < real; l += kLanes) {
      const int64_t channels = std::min<int64_t>(kLanes, real - l);
      for (int64_t q = 0; q < pixels; q += kLanes)
        write_block(in + q * n + l, n, channels, std::min(pixels - q, int64_t(kLanes)),
                    out + (c + l) * y.c + q);
    }
    for (int64_t l = 0; l < real && after_.argmax.data; ++l)
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
    at += n_ * after_.argmax.n + out_.begin * after_.argmax.h;
    write_argmax(after_, at, place_ + from, count, stride);
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
