// dx of a direct convolution behind which values were pooled: most of da, the gradient of the
// convolution's output, is zeros. What is left at (h, w) of it is summed over output channels, and
// lies over a window of the input:
//   dx[c, h + i, w ..] += sum over o of da[o, h, w] * weight[o, c, i, :]
// with lanes along the kernel's rows. An image's sums are in one order.
#pragma once

#include "gradients.h"

namespace fastcnn::FASTCNN_ISA {

// A part of a row of the kernel: rows are short, and whole cache lines at any address are slow.
constexpr int kPart = kLanes < 8 ? kLanes : 8;
typedef float PartVec __attribute__((vector_size(kPart * sizeof(float))));
constexpr int64_t kPartsAtOnce = 8;

struct Part {
  int64_t at;    // where it lies, from a window's first value on
  int64_t tap;   // its first
  int64_t taps;  // at most kPart; with dilation one
};

// Shared by a backward's tasks: where the parts of a window lie, and the weights as (output
// channel, part, lane), with zeros in the lanes that a part leaves.
template <class T>
struct Windows {
  Direct direct;
  int64_t plane;  // of an input channel, with the padding that windows see
  std::vector<Part> parts;
  std::vector<float> weights;  // where dx is needed
  bool finite = true;          // are they; an infinite one makes a NaN of a gradient of zero

  explicit Windows(const ConvParams& p)
      : direct(p), plane(direct.input_rows(p.after.H) * direct.width) {
    direct.by_pixels = true;  // whole vectors may end past the input: it is always copied
    const int64_t most = p.dw == 1 ? kPart : 1;
    for (int64_t c = 0; c < direct.group_in; ++c)
      for (int64_t i = 0; i < p.kh; ++i)
        for (int64_t j = 0; j < p.kw; j += most)
          parts.push_back({c * plane + i * p.dh * direct.width + j * p.dw,
                           (c * p.kh + i) * p.kw + j, std::min(most, p.kw - j)});
    for (int64_t o = 0; p.grad_x.data && o < p.after.C; ++o) add_weights(o);
  }

 private:
  void add_weights(int64_t o) {
    const Tensor& w = direct.p.weight;
    const T* from = static_cast<const T*>(w.data) + o * w.n;
    std::vector<float> taps;
    for_taps(direct.p, w, [&](int64_t at) { taps.push_back(T::get(from[at])); });
    for (float tap : taps) finite &= tap - tap == 0;
    for (const Part& part : parts)
      for (int64_t l = 0; l < kPart; ++l)
        weights.push_back(l < part.taps ? taps[part.tap + l] : 0.f);
  }
};

inline PartVec first_lanes(PartVec v, int64_t n) {
  typedef int32_t Lanes __attribute__((vector_size(sizeof(PartVec))));
  Lanes lane;
  for (int l = 0; l < kPart; ++l) lane[l] = l;
  return lane < int32_t(n) ? v : PartVec{};
}

// A gradient of one output channel.
struct Given {
  float g;
  int64_t weights;  // where that channel's are
};

// Adds to the windows' parts, COUNT of them, what a pixel's gradients give.
template <int COUNT>
inline void spread_parts(const Given* given, int64_t count, const float* weights, const Part* parts,
                         float* window) {
  PartVec totals[COUNT] = {};
  for (int64_t i = 0; i < count; ++i)
#pragma GCC unroll 8
    for (int k = 0; k < COUNT; ++k)
      totals[k] += load<PartVec>(weights + given[i].weights + k * kPart) * given[i].g;
  for (int k = 0; k < COUNT; ++k) {
    // The lanes that a part leaves may hold a NaN, of an infinite gradient.
    float* to = window + parts[k].at;
    store(to, load<PartVec>(to) + first_lanes(totals[k], parts[k].taps));
  }
}

using SpreadParts = void (*)(const Given*, int64_t, const float*, const Part*, float*);

constexpr SpreadParts kSpreadParts[] = {&spread_parts<1>, &spread_parts<2>, &spread_parts<3>,
                                        &spread_parts<4>, &spread_parts<5>, &spread_parts<6>,
                                        &spread_parts<7>, &spread_parts<8>};

template <class T>
class PooledInputGradient {
 public:
  PooledInputGradient(const Windows<T>& windows, Scratch& scratch)
      : windows_(windows), direct_(windows.direct), p(direct_.p) {
    if (!p.grad_x.data) return;
    da_ = scratch.span<float>(p.after.H * p.after.W * direct_.group_out);
    given_ = scratch.span<Given>(direct_.group_out + 1);
    dx_ = scratch.span<float>(direct_.group_in * windows.plane);
  }

  void clear() {
    std::fill_n(da_, p.after.H * p.after.W * direct_.group_out, 0.f);
    std::fill_n(dx_, direct_.group_in * windows_.plane, 0.f);
  }

  // Adds to da of a group's channel o.
  void put(int64_t o, int64_t pixel, float g) { da_[pixel * direct_.group_out + o] += g; }

  // Writes dx of image n's group g.
  void write(int64_t n, int64_t g) {
    const float* da = da_;
    for (int64_t h = 0; h < p.after.H; ++h)
      for (int64_t w = 0; w < p.after.W; ++w, da += direct_.group_out)
        spread(g, da, dx_ + h * p.sh * direct_.width + w * p.sw);
    for (int64_t c = 0; c < direct_.group_in; ++c)
      for (int64_t h = 0; h < p.H; ++h)
        write_row(n, g * direct_.group_in + c, h, dx_ + c * windows_.plane);
  }

 private:
  void spread(int64_t g, const float* da, float* window) {
    const int64_t parts = windows_.parts.size();
    int64_t count = 0;
    for (int64_t o = 0; o < direct_.group_out; ++o) {
      given_[count] = {da[o], (g * direct_.group_out + o) * parts * kPart};
      count += da[o] != 0 || !windows_.finite;
    }
    for (int64_t k = 0, n = 0; count && k < parts; k += n) {
      n = std::min(kPartsAtOnce, parts - k);
      kSpreadParts[n - 1](given_, count, windows_.weights.data() + k * kPart, &windows_.parts[k],
                          window);
    }
  }

  // Inputs that no window covers have gradient 0.
  void write_row(int64_t n, int64_t c, int64_t h, const float* plane) {
    const Tensor& x = p.grad_x;
    T* to = static_cast<T*>(x.data) + n * x.n + c * x.c + h * x.h;
    const float* row = plane + (h + p.top) * direct_.width + p.left;
    const bool reached = (h + p.top) * direct_.width < windows_.plane;
    const int64_t there = reached ? clamp(direct_.width - p.left, 0, p.W) : 0;
    if (x.w == 1)
      fastcnn::FASTCNN_ISA::write<T>(row, there, to);
    else
      for (int64_t w = 0; w < there; ++w) to[w * x.w] = T::put(row[w]);
    for (int64_t w = there; w < p.W; ++w) to[w * x.w] = T::put(0);
  }

  const Windows<T>& windows_;
  const Direct& direct_;
  const ConvParams& p;
  float *da_ = nullptr, *dx_ = nullptr;
  Given* given_ = nullptr;
};

}  // namespace fastcnn::FASTCNN_ISA
