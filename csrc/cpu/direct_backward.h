// The gradients of a direct convolution with bias, ReLU and max pooling behind it:
//   da: the pooled gradients at the places they came from, where the ReLU let them pass
//   db[o] = sum of da;  dw[o, c, i, j] = sum over images and pixels of da * x
//   dx = the convolution of da, with zeros between its values for a stride, with the weights turned
//        by half a turn
// A task is a fixed number of images, and their sums are added in order: the same bits every run.
#pragma once

#include <memory>

#include "direct.h"

namespace fastcnn::FASTCNN_ISA {

constexpr int64_t kGradientTasks = 16;
constexpr int64_t kPixelsAtOnce = 256;  // products in one sum of a weight's gradient
constexpr int64_t kTaskSums = 1 << 18;  // of all tasks: more take longer to add up than they help

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
  const T* w = static_cast<const T*>(p.weight);
  const int64_t in = p.C / p.groups, of = p.after.C / p.groups, size = p.kh * p.kw;
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t c = 0; c < in; ++c)
      for (int64_t o = 0; o < of; ++o)
        for (int64_t k = size; k-- > 0;) *out++ = T::get(w[((g * of + o) * in + c) * size + k]);
}

// What all tasks share: weights for dx, and each task's sums.
template <class T>
class Gradients {
 public:
  explicit Gradients(const ConvParams& params)
      : p(params), turned_(turned(params)), taps(p.C / p.groups * p.kh * p.kw) {
    const Direct direct(turned_);
    std::unique_ptr<float[]> weights(new float[p.grad_x.data ? p.after.C * taps : 0]);
    packed_.reset(new float[p.grad_x.data ? direct.packed_size() : 0]);
    if (p.grad_x.data) {
      turn_weights<T>(p, weights.get());
      turned_.weight = weights.get();
      direct.pack<F32>(packed_.get());
    }
    turned_.weight = nullptr;
    size_ = p.groups * round_up(p.after.C / p.groups, kLanes) * taps + p.after.C;
    sums_.reset(new float[tasks() * size_]());
  }

  int64_t images() const {
    const int64_t tasks = clamp(kTaskSums / size_, 1, kGradientTasks);
    return (p.after.N + tasks - 1) / tasks;
  }
  int64_t tasks() const { return (p.after.N + images() - 1) / images(); }
  const ConvParams& of_input() const { return turned_; }
  const float* packed() const { return packed_.get(); }

  // Of a task: (group, tap, lane of an output channel), and then each channel's of the bias.
  float* of_weight(int64_t task) const { return sums_.get() + task * size_; }
  float* of_bias(int64_t task) const { return of_weight(task) + size_ - p.after.C; }

  // Adds up the tasks' sums.
  void write() const {
    const int64_t of = p.after.C / p.groups, lanes = round_up(of, kLanes);
    const auto total = [&](int64_t at) {
      double sum = 0;
      for (int64_t t = 0; t < tasks(); ++t) sum += sums_[t * size_ + at];
      return T::put(float(sum));
    };
    for (int64_t o = 0; p.grad_weight && o < p.after.C; ++o)
      for (int64_t k = 0; k < taps; ++k)
        static_cast<T*>(p.grad_weight)[o * taps + k] = total((o / of * taps + k) * lanes + o % of);
    for (int64_t o = 0; p.grad_bias && o < p.after.C; ++o)
      static_cast<T*>(p.grad_bias)[o] = total(size_ - p.after.C + o);
  }

 private:
  const ConvParams& p;
  ConvParams turned_;
  int64_t taps, size_;
  std::unique_ptr<float[]> packed_, sums_;
};

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
  DirectBackward(const ConvParams& params, const Gradients<T>& gradients, Scratch& scratch)
      : p(params),
        after_(params.after),
        pool_(params.after.pool),
        gradients_(gradients),
        direct_(params),
        turned_(gradients.of_input()),
        of_input_(turned_, gradients.packed(), scratch),
        lanes_(round_up(direct_.group_out, kLanes)),
        pixels_(after_.H * after_.W),
        plane_(round_up(pixels_, kLanes)),
        rows_(std::max<int64_t>(1, kPixelsAtOnce / std::max<int64_t>(1, after_.W))) {
    da_ = scratch.span<float>(kLanes * plane_);
    g_ = scratch.span<float>(pool_.kh ? after_.OH * after_.OW : 0);
    r_ = scratch.span<float>(after_.OH * after_.OW);
    steps_ = scratch.span<int64_t>(pool_.kh * pool_.kw);
    for (int64_t i = 0; steps_ && i < pool_.kh * pool_.kw; ++i)
      steps_[i] = i / pool_.kw * pool_.dh * after_.W + i % pool_.kw * pool_.dw;
    by_pixel_ = scratch.span<float>(p.grad_weight ? plane_ * lanes_ : 0);
    input_ = scratch.span<float>(
        p.grad_weight ? direct_.group_in * direct_.input_rows(after_.H) * direct_.width : 0);
    planes_ = scratch.span<float>(p.grad_x.data ? turned_.C * turned_.H * turned_.W : 0);
    turned_.x.data = planes_;
  }

  int64_t tasks() const { return gradients_.tasks(); }

  void run(int64_t task) {
    const int64_t first = task * gradients_.images();
    const int64_t end = std::min(after_.N, first + gradients_.images());
    for (n_ = first; n_ < end; ++n_) {
      for (int64_t g = 0; g < p.groups; ++g) {
        for (int64_t o = 0; o < direct_.group_out; o += kLanes) spread(task, g, o);
        if (p.grad_weight) multiply(task, g);
      }
      if (!p.grad_x.data) continue;
      turned_.after.y.data = static_cast<T*>(p.grad_x.data) + n_ * p.grad_x.n;
      for (int64_t band = 0; band < of_input_.tasks(); ++band) of_input_.run(band);
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
      spread_plane(first + l, da);
      gradients_.of_bias(task)[first + l] += float(total(da, pixels_));
      if (p.grad_x.data) write_plane(da, planes_ + (first + l) * turned_.H * turned_.W);
    }
    for (int64_t q = 0; p.grad_weight && q < pixels_; q += kLanes) {
      Vec<float> v[kLanes] = {};
      for (int64_t l = 0; l < channels; ++l) v[l] = load<Vec<float>>(da_ + l * plane_ + q);
      transpose<float>(v);
      for (int64_t i = 0; i < kLanes; ++i) store(by_pixel_ + (q + i) * lanes_ + o, v[i]);
    }
  }

  // The gradients of channel c of y, at the places that they came from.
  void spread_plane(int64_t c, float* da) {
    float* g = pool_.kh ? g_ : da;
    read_plane(after_.y, c, g);
    if (after_.relu) {
      read_plane(after_.r, c, r_);
      mask(r_, after_.OH * after_.OW, g);
    }
    if (!pool_.kh) return;
    std::fill(da, da + pixels_, 0.f);
    const int64_t at = n_ * after_.offsets.n + c * after_.offsets.c;
    if (after_.offset_bytes == 1)
      add_at_places(static_cast<const uint8_t*>(after_.offsets.data) + at, da);
    else
      add_at_places(static_cast<const int32_t*>(after_.offsets.data) + at, da);
  }

  void read_plane(const Tensor& t, int64_t c, float* out) const {
    const T* x = static_cast<const T*>(t.data) + n_ * t.n + c * t.c;
    if (t.w == 1 && t.h == after_.OW) return read(x, 1, after_.OH * after_.OW, out);
    for (int64_t h = 0; h < after_.OH; ++h, out += after_.OW)
      read(x + h * t.h, t.w, after_.OW, out);
  }

  // A window without a place inside names none; what a saved-tensor hook brought back, any.
  template <class Offset>
  void add_at_places(const Offset* offsets, float* da) const {
    const uint64_t places = pool_.kh * pool_.kw;
    const float* g = g_;
    int64_t first = -pool_.ph * after_.W - pool_.pw;  // place 0 of the first window
    for (int64_t h = 0; h < after_.OH; ++h, first += pool_.sh * after_.W)
      for (int64_t w = 0; w < after_.OW; ++w, ++g) {
        const uint64_t place = uint64_t(offsets[h * after_.offsets.h + w * after_.offsets.w]);
        if (place >= places) continue;
        const int64_t to = first + w * pool_.sw + steps_[place];
        if (to >= 0 && to < pixels_) da[to] += *g;
      }
  }

  // da with the zeros around it, and for a stride between its values, that turned_ reads.
  void write_plane(const float* da, float* plane) const {
    if (p.sh * p.sw > 1) std::fill(plane, plane + turned_.H * turned_.W, 0.f);
    const int64_t down = (p.kh - 1) * p.dh - p.top, right = (p.kw - 1) * p.dw - p.left;
    for (int64_t h = 0; h < after_.H; ++h, da += after_.W) {
      const int64_t row = h * p.sh + down;
      if (row < 0 || row >= turned_.H) continue;
      for (int64_t w = 0; w < after_.W; ++w) {
        const int64_t column = w * p.sw + right;
        if (column >= 0 && column < turned_.W) plane[row * turned_.W + column] = da[w];
      }
    }
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
  const Pool& pool_;
  const Gradients<T>& gradients_;
  Direct direct_;
  ConvParams turned_;
  DirectForward<T, F32> of_input_;
  int64_t lanes_, pixels_, plane_, rows_, n_ = 0;
  float *da_, *g_, *r_, *by_pixel_, *input_, *planes_;
  int64_t* steps_;
};

}  // namespace fastcnn::FASTCNN_ISA
