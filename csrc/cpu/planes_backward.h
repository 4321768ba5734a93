// The backward of planes.h, in the same bands of rows.
#pragma once

#include "planes.h"

namespace fastcnn::FASTCNN_ISA {

template <class T>
class PlanesBackward : Planes<T> {
  using Base = Planes<T>;
  using A = typename T::Acc;
  using Base::p, Base::geometry, Base::norm, Base::functions, Base::lrn, Base::pool,
      Base::pool_first, Base::ring;

 public:
  PlanesBackward(const EpilogueParams& params, Scratch& scratch)
      : Base(params),
        bands_(p.N, p.H, kBackwardRows, this->rows_within_budget(4 * ring + 2), kBackwardTasks),
        pooled_lrn_(lrn && pool_first),
        width_(pooled_lrn_ ? p.OW : p.W),
        pooled_rows_(pool ? std::min(p.OH, (bands_.band + geometry.extent) / p.pool.sh + 1) : 0),
        unpool_(p, scratch, bands_.band, pooled_rows_) {
    const int64_t rows = pooled_lrn_ ? pooled_rows_ : bands_.band;
    for (A*** planes : {&r_, &direct_, &cross_}) {
      *planes = scratch.span<A*>(ring);
      for (int64_t j = 0; j < ring; ++j) {
        A* plane = scratch.span<A>(lrn || (planes == &r_ && p.r.data) ? rows * width_ : 0);
        if (*planes) (*planes)[j] = plane;
      }
    }
    silent_ = scratch.span<A>(lrn ? rows * width_ : 0);
    window_ = scratch.span<const A*>(ring);
    g_ = scratch.span<A*>(ring);
    for (int64_t j = 0; j < ring; ++j) {
      A* plane = scratch.span<A>(rows * width_);
      if (g_) g_[j] = plane;
    }
    result_ = scratch.span<A>(lrn ? rows * width_ : 0);
    spread_ = scratch.span<A>(pooled_lrn_ ? bands_.band * p.W : 0);
  }

  int64_t tasks() const { return p.N * bands_.per_image; }

  // sums: the task's share of the bias gradient, (C,).
  void run(int64_t task, double* sums) {
    n_ = bands_.image(task);
    in_ = bands_(task);
    out_ = geometry.outputs_of(in_);
    at_ = pooled_lrn_ ? out_ : in_;
    size_ = at_.count() * width_;
    sums_ = sums;
    const int64_t channels = p.C / p.lrn.groups;
    for (int64_t c = 0; c < p.C; c += channels) run_group({c, c + channels});
  }

 private:
  void run_group(Rows group) {
    const int64_t ahead = lrn ? norm.after : 0, behind = lrn ? norm.before : 0;
    for (int64_t c = group.begin; c < group.end + ahead + behind; ++c) {
      if (c < group.end) take(c);
      const int64_t j = c - ahead, i = j - behind;
      if (lrn && j >= group.begin && j < group.end) terms(j, group);
      if (i >= group.begin && i < group.end) give(i, group);
    }
  }

  // Channel c's gradient, unpooled unless the LRN comes in between, and its r.
  void take(int64_t c) {
    A* g = g_[c % ring];
    if (p.r.data) this->read_rows(p.r, n_, c, at_, width_, r_[c % ring], same);
    if (!pool || pooled_lrn_) return this->read_rows(p.y, n_, c, at_, width_, g, same);
    for (int64_t oh = out_.begin; oh < out_.end; ++oh)
      this->read_rows(p.y, n_, c, {oh, oh + 1}, p.OW, unpool_.row(oh - out_.begin), same);
    unpool_.run(out_, in_, n_, c, g);
  }

  void terms(int64_t c, Rows group) {
    this->window(r_, silent_, c, norm.before, group, window_);
    functions.gradient_terms(g_[c % ring], window_, norm, size_, direct_[c % ring],
                             cross_[c % ring]);
  }

  // Channel c's gradient through the LRN, and the ReLU or the pooling before it.
  void give(int64_t c, Rows group) {
    const A* r = r_[c % ring];
    A* g = g_[c % ring];
    if (lrn) {
      this->window(cross_, silent_, c, norm.after, group, window_);
      functions.gradient(direct_[c % ring], r, window_, norm, size_, result_);
      g = result_;
    }
    if (p.relu && !pool_first) mask(r, size_, g);
    if (pooled_lrn_) {
      for (int64_t i = 0; i < out_.count(); ++i) std::copy_n(g + i * p.OW, p.OW, unpool_.row(i));
      unpool_.run(out_, in_, n_, c, spread_);
      g = spread_;
    }
    if (p.bias) sums_[c] = total(g, in_.count() * p.W);
    this->write_rows(g, p.W, p.x, n_, c, in_);
  }

  static constexpr auto same = [](Vec<A> v, int64_t) { return v; };

  Bands bands_;
  bool pooled_lrn_;      // whether pooling came before an LRN
  int64_t width_;        // of the rows that the LRN works on
  int64_t pooled_rows_;  // at most, in a task
  PlaneUnpool<A> unpool_;
  A **r_, **g_, **direct_, **cross_, *silent_, *result_, *spread_;
  const A** window_;
  int64_t n_, size_;
  Rows in_, out_, at_;
  double* sums_;
};

}  // namespace fastcnn::FASTCNN_ISA
