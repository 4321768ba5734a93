// The gradients of a direct convolution behind which values were pooled. Of each window one value
// alone has a gradient, and a ReLU leaves fewer, so these are walked one by one; g at (h, w) gives
//   db[o] += g;  dw[o, c, i, :] += g * x[c, h + i, w ..]
// with lanes along the kernel's rows. dx is as input_gradient.h has it.
#pragma once

#include "input_gradient.h"

namespace fastcnn::FASTCNN_ISA {

// A part of a row of the kernel: rows are short, and whole cache lines at any address are slow.
constexpr int kPart = kLanes < 8 ? kLanes : 8;
typedef float PartVec __attribute__((vector_size(kPart * sizeof(float))));

struct Part {
  int64_t at;    // where it reads, from a window's first value on
  int64_t tap;   // its first
  int64_t taps;  // at most kPart; with dilation one
};

inline std::vector<Part> parts_of(const ConvParams& p, int64_t plane, int64_t pitch) {
  std::vector<Part> parts;
  const int64_t most = p.dw == 1 ? kPart : 1;
  for (int64_t c = 0; c < p.C / p.groups; ++c)
    for (int64_t i = 0; i < p.kh; ++i)
      for (int64_t j = 0; j < p.kw; j += most)
        parts.push_back({c * plane + i * p.dh * pitch + j * p.dw, (c * p.kh + i) * p.kw + j,
                         std::min(most, p.kw - j)});
  return parts;
}

// A value with a gradient: where its window begins in the input.
struct Chosen {
  float g;
  int64_t at;
};

struct Place {
  int64_t h, w;
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
constexpr int64_t kPartsAtOnce = 8;

template <class T>
class PooledBackward {
 public:
  // packed: the weights for dx.
  PooledBackward(const ConvParams& params, const Gradients<T>& gradients,
                 const std::vector<float>& packed, Scratch& scratch)
      : p(params),
        after_(params.after),
        gradients_(gradients),
        direct_(params),
        of_input_(params, packed, scratch),
        plane_(direct_.input_rows(after_.H) * direct_.width),
        parts_(parts_of(params, plane_, direct_.width)) {
    direct_.by_pixels = true;  // whole vectors may end past the input: it is always copied
    input_ = scratch.span<float>(p.grad_weight.data ? direct_.group_in * plane_ + kLanes : 0);
    g_ = scratch.span<float>(after_.OH * after_.OW);
    r_ = scratch.span<float>(after_.OH * after_.OW);
    chosen_ = scratch.span<Chosen>(after_.OH * after_.OW);
    const Pool& pool = after_.pool;
    for (int64_t i = 0; i < pool.kh * pool.kw; ++i)
      places_.push_back({i / pool.kw * pool.dh, i % pool.kw * pool.dw});
  }

  int64_t tasks() const { return gradients_.tasks(); }

  void run(int64_t task) {
    const Rows images = gradients_.images(task);
    for (n_ = images.begin; n_ < images.end; ++n_) {
      for (int64_t g = 0; g < p.groups; ++g) {
        if (p.grad_weight.data) padded_input<T>(direct_, n_, g, {0, after_.H}, input_);
        for (int64_t o = 0; o < direct_.group_out; ++o)
          add_channel(task, g * direct_.group_out + o);
      }
      if (p.grad_x.data) of_input_.write(n_);
    }
  }

 private:
  void add_channel(int64_t task, int64_t o) {
    read_gradient<T>(after_, n_, o, g_, r_);
    if (p.grad_x.data) of_input_.clear(o);
    const int64_t at = n_ * after_.offsets.n + o * after_.offsets.c;
    const void* offsets = after_.offsets.data;
    const int64_t count = after_.offset_bytes == 1
                              ? choose(o, static_cast<const uint8_t*>(offsets) + at)
                              : choose(o, static_cast<const int32_t*>(offsets) + at);
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += chosen_[i].g;
    gradients_.of_bias(task)[o] += float(sum);
    const int64_t parts = p.grad_weight.data ? int64_t(parts_.size()) : 0;
    float* sums = gradients_.of_weight(task) + o * direct_.taps;
    for (int64_t k = 0, n = 0; k < parts; k += n) {
      n = std::min(kPartsAtOnce, parts - k);
      kAddParts[n - 1](input_, chosen_, count, &parts_[k], sums);
    }
  }

  // The values that were chosen and have a gradient; a window without a place inside has none.
  template <class Offset>
  int64_t choose(int64_t o, const Offset* offsets) {
    const Pool& pool = after_.pool;
    const float* g = g_;
    int64_t count = 0;
    for (int64_t oh = 0; oh < after_.OH; ++oh)
      for (int64_t ow = 0; ow < after_.OW; ++ow, ++g) {
        const uint32_t place = offsets[oh * after_.offsets.h + ow * after_.offsets.w];
        if (*g == 0 || place >= uint64_t(pool.kh * pool.kw)) continue;
        const Place from = places_[place];
        const int64_t h = oh * pool.sh - pool.ph + from.h, w = ow * pool.sw - pool.pw + from.w;
        // What a saved-tensor hook brought back may name any place.
        if (h < 0 || h >= after_.H || w < 0 || w >= after_.W) continue;
        chosen_[count++] = {*g, h * p.sh * direct_.width + w * p.sw};
        if (p.grad_x.data) of_input_.put(o, h, w, *g);
      }
    return count;
  }

  const ConvParams& p;
  const EpilogueParams& after_;
  const Gradients<T>& gradients_;
  Direct direct_;
  InputGradient<T> of_input_;
  int64_t plane_, n_ = 0;
  std::vector<Part> parts_;
  std::vector<Place> places_;  // of a pooling's window
  float *input_, *g_, *r_;
  Chosen* chosen_;
};

}  // namespace fastcnn::FASTCNN_ISA
