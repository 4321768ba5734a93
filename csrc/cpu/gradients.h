// The sums of a convolution's backward. A task is a fixed number of images, whose number depends
// on nothing but the sizes; its sums are its own, and in the end all are added in order: the same
// bits every run, for any number of threads.
#pragma once

#include <memory>

#include "direct.h"

namespace fastcnn::FASTCNN_ISA {

constexpr int64_t kGradientTasks = 16;
constexpr int64_t kTaskSums = 1 << 18;  // of all tasks: more take longer to add up than they help

template <class T>
class Gradients {
 public:
  // by_lanes: a task has its weights' sums as (group, tap, output channel), of these a whole number
  // of vectors; else as the weights are.
  Gradients(const ConvParams& params, bool by_lanes)
      : p(params),
        of_(p.after.C / p.groups),
        taps_(p.C / p.groups * p.kh * p.kw),
        lanes_(by_lanes ? round_up(of_, kLanes) : 0),
        size_((by_lanes ? p.groups * lanes_ : p.after.C) * taps_ + kLanes + p.after.C) {
    const int64_t tasks = clamp(kTaskSums / size_, 1, kGradientTasks);
    images_ = std::max<int64_t>(1, (p.after.N + tasks - 1) / tasks);
    tasks_ = (p.after.N + images_ - 1) / images_;
    sums_.reset(new float[tasks_ * size_]());
  }

  int64_t tasks() const { return tasks_; }
  Rows images(int64_t task) const {
    return {task * images_, std::min(p.after.N, (task + 1) * images_)};
  }
  float* of_weight(int64_t task) const { return sums_.get() + task * size_; }
  float* of_bias(int64_t task) const { return of_weight(task) + size_ - p.after.C; }

  void write() const {
    const Tensor& weight = p.grad_weight;
    for (int64_t o = 0; weight.data && o < p.after.C; ++o) {
      T* to = static_cast<T*>(weight.data) + o * weight.n;
      int64_t from = lanes_ ? o / of_ * taps_ * lanes_ + o % of_ : o * taps_;
      for_taps(p, weight, [&](int64_t at) {
        to[at] = total(from);
        from += lanes_ ? lanes_ : 1;
      });
    }
    for (int64_t o = 0; p.grad_bias && o < p.after.C; ++o)
      static_cast<T*>(p.grad_bias)[o] = total(size_ - p.after.C + o);
  }

 private:
  T total(int64_t at) const {
    double sum = 0;
    for (int64_t t = 0; t < tasks_; ++t) sum += sums_[t * size_ + at];
    return T::put(float(sum));
  }

  const ConvParams& p;
  int64_t of_, taps_, lanes_, size_, images_, tasks_;
  std::unique_ptr<float[]> sums_;
};

// Reads channel c of image n of a gradient, or of what was saved of y, in float32.
template <class T>
inline void read_plane(const EpilogueParams& p, const Tensor& t, int64_t n, int64_t c, float* out) {
  const T* x = static_cast<const T*>(t.data) + n * t.n + c * t.c;
  if (t.w == 1 && t.h == p.OW) return read(x, 1, p.OH * p.OW, out);
  for (int64_t h = 0; h < p.OH; ++h, out += p.OW) read(x + h * t.h, t.w, p.OW, out);
}

// The gradient of y where the ReLU let y's value pass; r: room for as many values.
template <class T>
inline void read_gradient(const EpilogueParams& p, int64_t n, int64_t c, float* out, float* r) {
  read_plane<T>(p, p.y, n, c, out);
  if (!p.relu) return;
  read_plane<T>(p, p.r, n, c, r);
  mask(r, p.OH * p.OW, out);
}

}  // namespace fastcnn::FASTCNN_ISA
