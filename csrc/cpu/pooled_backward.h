// The gradients of a direct convolution behind which values were pooled. Of each window one value
// alone has a gradient, and a ReLU leaves fewer, so these are walked one by one; g at (h, w) gives
//   db[o] += g;  dw[o, c, i, :] += g * x[c, h + i, w ..]
// with lanes along the kernel's rows. dx is as pooled_input_gradient.h has it.
#pragma once

#include "pooled_input_gradient.h"

namespace fastcnn::FASTCNN_ISA {

// A value with a gradient: its place in the convolution's output, and where its window begins in
// the input.
struct Chosen {
  float g;
  int64_t pixel, at;
};

// A place of a pooling's window, counted from its first in rows and columns, in pixels of the
// convolution's output, and in values of its input.
struct Place {
  int64_t h, w, pixels, values;
};

// Adds to COUNT parts' sums what all chosen values give.
template <int COUNT>
inline void add_parts(const float* x, const Chosen* chosen, int64_t count, const Part* parts,
                      float* sums) {
  PartVec totals[COUNT] = {};
  const float* from[COUNT];
  for (int k = 0; k < COUNT; ++k) from[k] = x + parts[k].at;
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k)
      totals[k] += load<PartVec>(from[k] + chosen[i].at) * chosen[i].g;
  for (int k = 0; k < COUNT; ++k)
    for (int64_t j = 0; j < parts[k].taps; ++j) sums[parts[k].tap + j] += totals[k][j];
}

using AddParts = void (*)(const float*, const Chosen*, int64_t, const Part*, float*);

constexpr AddParts kAddParts[] = {&add_parts<1>, &add_parts<2>, &add_parts<3>, &add_parts<4>,
                                  &add_parts<5>, &add_parts<6>, &add_parts<7>, &add_parts<8>};

template <class T>
class PooledBackward {
 public:
  PooledBackward(const Windows<T>& windows, const Gradients<T>& gradients, Scratch& scratch)
      : p(windows.direct.p),
        after_(p.after),
        gradients_(gradients),
        direct_(windows.direct),
        parts_(windows.parts),
        of_input_(windows, scratch) {
    input_ = scratch.span<float>(p.grad_weight.data ? direct_.group_in * windows.plane : 0);
    g_ = scratch.span<float>(after_.OH * after_.OW);
    chosen_ = scratch.span<Chosen>(after_.OH * after_.OW + 1);
    const Pool& pool = after_.pool;
    for (int64_t i = 0; i < pool.kh * pool.kw; ++i) {
      const int64_t h = i / pool.kw * pool.dh, w = i % pool.kw * pool.dw;
      places_.push_back({h, w, pixel(h, w), value(h, w)});
    }
    places_.push_back({after_.H + pool.ph, 0, 0, 0});  // outside
  }

  int64_t tasks() const { return gradients_.tasks(); }

  void run(int64_t task) {
    const Rows images = gradients_.images(task);
    for (n_ = images.begin; n_ < images.end; ++n_) {
      for (int64_t g = 0; g < p.groups; ++g) {
        if (p.grad_weight.data) padded_input<T>(direct_, n_, g, {0, after_.H}, input_);
        if (p.grad_x.data) of_input_.clear();
        for (int64_t o = 0; o < direct_.group_out; ++o)
          add_channel(task, g * direct_.group_out + o);
        if (p.grad_x.data) of_input_.write(n_, g);
      }
    }
  }

 private:
  void add_channel(int64_t task, int64_t o) {
    read_plane<T>(after_, after_.y, n_, o, g_);
    const int64_t at = n_ * after_.argmax.n + o * after_.argmax.c;
    const void* argmax = after_.argmax.data;
    const int64_t count = after_.argmax_bytes == 1
                              ? choose(static_cast<const uint8_t*>(argmax) + at)
                              : choose(static_cast<const int32_t*>(argmax) + at);
    double even = 0, odd = 0;  // two sums: an addition waits for the one before
    int64_t i = 0;
    for (; i + 1 < count; i += 2) even += chosen_[i].g, odd += chosen_[i + 1].g;
    if (i < count) even += chosen_[i].g;
    gradients_.of_bias(task)[o] += float(even + odd);
    for (i = 0; p.grad_x.data && i < count; ++i)
      of_input_.put(o % direct_.group_out, chosen_[i].pixel, chosen_[i].g);
    const int64_t parts = p.grad_weight.data ? int64_t(parts_.size()) : 0;
    float* of_taps = gradients_.of_weight(task) + o * direct_.taps;
    for (int64_t k = 0, n = 0; k < parts; k += n) {
      n = std::min(kPartsAtOnce, parts - k);
      kAddParts[n - 1](input_, chosen_, count, &parts_[k], of_taps);
    }
  }

  int64_t pixel(int64_t h, int64_t w) const { return h * after_.W + w; }
  int64_t value(int64_t h, int64_t w) const { return h * p.sh * direct_.width + w * p.sw; }

  // The values that were chosen and have a gradient; a window without a place inside has none. No
  // branch depends on values: half of them would be foreseen wrongly.
  template <class Argmax>
  int64_t choose(const Argmax* argmax) {
    const Pool& pool = after_.pool;
    const float* g = g_;
    int64_t count = 0;
    for (int64_t oh = 0; oh < after_.OH; ++oh)
      for (int64_t ow = 0; ow < after_.OW; ++ow, ++g) {
        const int64_t top = oh * pool.sh - pool.ph, left = ow * pool.sw - pool.pw;
        // A saved-tensor hook may have changed the argmax: clamp it to a valid place.
        const uint32_t named = argmax[oh * after_.argmax.h + ow * after_.argmax.w];
        const Place& place = places_[std::min<size_t>(named, places_.size() - 1)];
        const int64_t h = top + place.h, w = left + place.w;
        chosen_[count] = {*g, pixel(top, left) + place.pixels, value(top, left) + place.values};
        count += (*g != 0) & (h >= 0) & (h < after_.H) & (w >= 0) & (w < after_.W);
      }
    return count;
  }

  const ConvParams& p;
  const EpilogueParams& after_;
  const Gradients<T>& gradients_;
  const Direct& direct_;
  const std::vector<Part>& parts_;
  PooledInputGradient<T> of_input_;
  int64_t n_ = 0;
  std::vector<Place> places_;  // of a pooling's window
  float *input_, *g_;
  Chosen* chosen_;
};

}  // namespace fastcnn::FASTCNN_ISA
