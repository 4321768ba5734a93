// The gradient of a convolution's input: dx is the convolution of da, the gradient of its output,
// with zeros between da's values for a stride, and with the weights turned by half a turn.
#pragma once

#include "gradients.h"

namespace fastcnn::FASTCNN_ISA {

// The convolution that makes dx of da's planes.
inline ConvParams turned(const ConvParams& p) {
  ConvParams t;
  t.C = p.after.C, t.groups = p.groups;
  t.H = p.H + (p.kh - 1) * p.dh, t.W = p.W + (p.kw - 1) * p.dw;
  t.kh = p.kh, t.kw = p.kw, t.dh = p.dh, t.dw = p.dw;
  t.x = {nullptr, t.C * t.H * t.W, t.H * t.W, t.W, 1};
  t.after.dtype = p.after.dtype;
  t.after.N = 1, t.after.C = p.C, t.after.H = t.after.OH = p.H, t.after.W = t.after.OW = p.W;
  t.after.y = p.grad_x;
  t.after.channels_last = p.grad_x.c == 1 && p.C > 1;
  return t;
}

// The weights as `turned` has them: (C, outputs of a group, kh, kw), from last to first.
template <class T>
inline void turn_weights(const ConvParams& p, float* out) {
  const Tensor& w = p.weight;
  const int64_t in = p.C / p.groups, of = p.after.C / p.groups;
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t c = 0; c < in; ++c)
      for (int64_t o = g * of; o < (g + 1) * of; ++o)
        for (int64_t i = p.kh; i-- > 0;)
          for (int64_t j = p.kw; j-- > 0;)
            *out++ = T::get(static_cast<const T*>(w.data)[o * w.n + c * w.c + i * w.h + j * w.w]);
}

// Packed for the convolution that `turned` describes.
template <class T>
inline std::vector<float> packed_turned(const ConvParams& p) {
  ConvParams t = turned(p);
  const int64_t size = p.kh * p.kw, outputs = p.after.C / p.groups;
  std::vector<float> weights(p.C * outputs * size);
  turn_weights<T>(p, weights.data());
  t.weight = {weights.data(), outputs * size, size, p.kw, 1};
  std::vector<float> packed(Direct(t).packed_size());
  Direct(t).pack<F32>(packed.data());
  return packed;
}

// An image's da, in the layout that the turned convolution reads, and that.
template <class T>
class InputGradient {
 public:
  // packed: packed_turned's; empty where the gradient is not needed.
  InputGradient(const ConvParams& params, const std::vector<float>& packed, Scratch& scratch)
      : p(params),
        turned_(turned(params)),
        convolution_(turned_, packed.data(), scratch),
        down_((p.kh - 1) * p.dh - p.top),
        right_((p.kw - 1) * p.dw - p.left) {
    planes_ = scratch.span<float>(p.grad_x.data ? turned_.C * turned_.H * turned_.W : 0);
    turned_.x.data = planes_;
  }

  void clear(int64_t c) { std::fill(plane(c), plane(c + 1), 0.f); }

  // Sets da[c, h, w]; what meets the padding alone is left out.
  void put(int64_t c, int64_t h, int64_t w, float da) {
    const int64_t row = h * p.sh + down_, column = w * p.sw + right_;
    if (row >= 0 && row < turned_.H && column >= 0 && column < turned_.W)
      plane(c)[row * turned_.W + column] += da;
  }

  void write(int64_t n) {
    turned_.after.y.data = static_cast<T*>(p.grad_x.data) + n * p.grad_x.n;
    for (int64_t band = 0; band < convolution_.tasks(); ++band) convolution_.run(band);
  }

 private:
  float* plane(int64_t c) const { return planes_ + c * turned_.H * turned_.W; }

  const ConvParams& p;
  ConvParams turned_;
  DirectForward<T, F32> convolution_;
  int64_t down_, right_;
  float* planes_;
};

}  // namespace fastcnn::FASTCNN_ISA
