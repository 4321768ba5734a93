// The gradients of a direct convolution with bias and ReLU behind it: with da the gradient of y
// where the ReLU let its value pass
//   db[o] = sum of da;  dw[o, c, i, j] = sum over images and pixels of da * x
// and dx as input_gradient.h has it.
#pragma once

#include "input_gradient.h"

namespace fastcnn::FASTCNN_ISA {

constexpr int64_t kPixelsAtOnce = 256;  // products in one sum of a weight's gradient

// TAPS neighbouring ones of a row of the kernel, for VO vectors of output channels: the products
// with `rows` rows of da, added to out.
template <int VO, int TAPS>
inline void add_products(const ConvParams& p, Input x, const float* g, int64_t pixel, int64_t rows,
                         float* out, int64_t out_tap) {
  Vec<float> sums[TAPS][VO] = {};
  for (int64_t h = 0; h < rows; ++h) {
    const float* row = x.data + h * p.sh * x.pitch;
    for (int64_t w = 0; w < p.after.W; ++w, g += pixel, row += p.sw) {
      forget_origin(row);
      Vec<float> gs[VO];
#pragma GCC unroll 2
      for (int v = 0; v < VO; ++v) gs[v] = load<Vec<float>>(g + v * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < TAPS; ++j)
#pragma GCC unroll 2
        for (int v = 0; v < VO; ++v) sums[j][v] += gs[v] * row[j * p.dw];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < TAPS; ++j)
#pragma GCC unroll 2
    for (int v = 0; v < VO; ++v) {
      float* at = out + j * out_tap + v * kLanes;
      store(at, load<Vec<float>>(at) + sums[j][v]);
    }
}

constexpr int kTapsInTile = kSums / 4 < 5 ? 5 : kSums / 4;

using AddProducts = void (*)(const ConvParams&, Input, const float*, int64_t, int64_t, float*,
                             int64_t);

template <int VO, int... n>
inline AddProducts products_of(int64_t taps, std::integer_sequence<int, n...>) {
  static constexpr AddProducts tiles[] = {&add_products<VO, n + 1>...};
  return tiles[taps - 1];
}

template <class T>
class DirectBackward {
 public:
  // packed: the weights for dx.
  DirectBackward(const ConvParams& params, const Gradients<T>& gradients,
                 const std::vector<float>& packed, Scratch& scratch)
      : p(params),
        after_(params.after),
        gradients_(gradients),
        direct_(params),
        of_input_(params, packed, scratch),
        lanes_(round_up(direct_.group_out, kLanes)),
        pixels_(after_.H * after_.W),
        plane_(round_up(pixels_, kLanes)),
        rows_(std::max<int64_t>(1, kPixelsAtOnce / std::max<int64_t>(1, after_.W))) {
    da_ = scratch.span<float>(kLanes * plane_);
    r_ = scratch.span<float>(pixels_);
    by_pixel_ = scratch.span<float>(p.grad_weight.data ? plane_ * lanes_ : 0);
    input_ = scratch.span<float>(
        p.grad_weight.data ? direct_.group_in * direct_.input_rows(after_.H) * direct_.width : 0);
  }

  int64_t tasks() const { return gradients_.tasks(); }

  void run(int64_t task) {
    const Rows images = gradients_.images(task);
    for (n_ = images.begin; n_ < images.end; ++n_) {
      for (int64_t g = 0; g < p.groups; ++g) {
        for (int64_t o = 0; o < direct_.group_out; o += kLanes) spread(task, g, o);
        if (p.grad_weight.data) multiply(task, g);
      }
      if (p.grad_x.data) of_input_.write(n_);
    }
  }

 private:
  // da of as many channels as lanes, from channel o of group g on: their biases' shares, and the
  // layouts that the two products want.
  void spread(int64_t task, int64_t g, int64_t o) {
    const int64_t first = g * direct_.group_out + o;
    const int64_t channels = std::min<int64_t>(kLanes, direct_.group_out - o);
    for (int64_t l = 0; l < channels; ++l) {
      float* da = da_ + l * plane_;
      read_gradient<T>(after_, n_, first + l, da, r_);
      gradients_.of_bias(task)[first + l] += float(total(da, pixels_));
      if (p.grad_x.data) put_plane(first + l, da);
    }
    for (int64_t q = 0; p.grad_weight.data && q < pixels_; q += kLanes) {
      Vec<float> v[kLanes] = {};
      for (int64_t l = 0; l < channels; ++l) v[l] = load<Vec<float>>(da_ + l * plane_ + q);
      transpose<float>(v);
      for (int64_t i = 0; i < kLanes; ++i) store(by_pixel_ + (q + i) * lanes_ + o, v[i]);
    }
  }

  void put_plane(int64_t c, const float* da) {
    of_input_.clear(c);
    for (int64_t h = 0; h < after_.H; ++h)
      for (int64_t w = 0; w < after_.W; ++w) of_input_.put(c, h, w, *da++);
  }

  // Adds group g's da * x to the task's sums: some rows of da at a time, which stay in cache.
  void multiply(int64_t task, int64_t g) {
    const Input in = padded_input<T>(direct_, n_, g, {0, after_.H}, input_);
    float* out = gradients_.of_weight(task) + g * direct_.taps * lanes_;
    for (int64_t h = 0; h < after_.H; h += rows_) {
      const Input from{in.data + h * p.sh * in.pitch, in.plane, in.pitch};
      const int64_t rows = std::min(rows_, after_.H - h);
      for (int64_t o = 0, n = 0; o < lanes_; o += n) {
        n = std::min<int64_t>(2 * kLanes, lanes_ - o);
        multiply_rows(from, by_pixel_ + h * after_.W * lanes_ + o, rows, n, out + o);
      }
    }
  }

  // n: lanes, of one or two vectors.
  void multiply_rows(Input x, const float* g, int64_t rows, int64_t n, float* out) const {
    constexpr auto tiles = std::make_integer_sequence<int, kTapsInTile>();
    for (int64_t c = 0; c < direct_.group_in; ++c)
      for (int64_t i = 0; i < p.kh; ++i)
        for (int64_t j = 0, taps = 0; j < p.kw; j += taps, out += taps * lanes_) {
          taps = std::min<int64_t>(kTapsInTile, p.kw - j);
          const AddProducts add =
              n == kLanes ? products_of<1>(taps, tiles) : products_of<2>(taps, tiles);
          const float* at = x.data + c * x.plane + i * p.dh * x.pitch + j * p.dw;
          add(p, {at, x.plane, x.pitch}, g, lanes_, rows, out, lanes_);
        }
  }

  const ConvParams& p;
  const EpilogueParams& after_;
  const Gradients<T>& gradients_;
  Direct direct_;
  InputGradient<T> of_input_;
  int64_t lanes_, pixels_, plane_, rows_, n_ = 0;
  float *da_, *r_, *by_pixel_, *input_;
};

}  // namespace fastcnn::FASTCNN_ISA
