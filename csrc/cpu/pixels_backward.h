// The backward of pixels.h, in the same bands of rows.
#pragma once

#include "pixels.h"

namespace fastcnn::FASTCNN_ISA {

template <class T>
class PixelsBackward : Pixels<T> {
  using Base = Pixels<T>;
  using A = typename T::Acc;
  using Base::p, Base::geometry, Base::norm, Base::functions, Base::lrn, Base::pool,
      Base::pool_first, Base::pixel;

 public:
  PixelsBackward(const EpilogueParams& params, Scratch& scratch)
      : Base(params, params.lrn.size > 0),
        bands_(p.N, p.H, kBackwardRows, kBackwardRows, kBackwardTasks),
        held_(pool ? (geometry.extent - 1) / p.pool.sh + 1 : 1) {
    rows_ = scratch.span<A*>(held_);
    argmax_ = scratch.span<Int<A>*>(held_);
    for (int64_t i = 0; i < held_; ++i) {
      A* row = this->row_span(scratch, p.OW);
      Int<A>* argmax = scratch.span<Int<A>>(pool ? p.OW * pixel : 0);
      if (rows_) rows_[i] = row, argmax_[i] = argmax;
    }
    const int64_t width = std::max(p.W, p.OW);
    spread_ = this->row_span(scratch, pool ? p.W : 0);
    r_ = this->row_span(scratch, p.r.data ? width : 0);
    direct_ = this->row_span(scratch, lrn ? width : 0);
    cross_ = this->row_span(scratch, lrn ? width : 0);
    window_ = scratch.span<const A*>(norm.size);
    row_sums_ = scratch.span<A>(pixel);
  }

  int64_t tasks() const { return p.N * bands_.per_image; }

  // sums: the task's share of the bias gradient, (C,).
  void run(int64_t task, double* sums) {
    n_ = bands_.image(task);
    const Rows in = bands_(task);
    int64_t next = geometry.outputs_of(in).begin;
    for (int64_t h = in.begin; h < in.end; ++h) {
      const Rows need = geometry.outputs_of({h, h + 1});
      for (; next < need.end; ++next) take(next);
      A* g = pool ? spread_ : rows_[h % held_];
      if (pool) spread(h, need);
      if (!pool_first) through(h, p.W, g);
      if (sums) add_sums(g, sums);
      this->write_row(g, p.x, n_, h, p.W);
    }
  }

 private:
  // The gradient of output row oh, among those held; through the LRN if pooling came first.
  void take(int64_t oh) {
    A* row = rows_[oh % held_];
    this->read_row(p.y, n_, oh, p.OW, row, same);
    if (pool) read_argmax(oh, argmax_[oh % held_]);
    if (pool_first) through(oh, p.OW, row);
  }

  void read_argmax(int64_t oh, Int<A>* out) const {
    const Tensor& t = p.argmax;
    for (int64_t w = 0; w < p.OW; ++w)
      for (int64_t g = 0; g < this->groups; ++g) {
        Int<A>* to = out + w * pixel + g * this->pitch + this->head;
        const int64_t start = n_ * t.n + oh * t.h + w * t.w + g * this->channels;
        if (p.argmax_bytes == 1)
          std::copy_n(static_cast<const uint8_t*>(t.data) + start, this->channels, to);
        else
          std::copy_n(static_cast<const int32_t*>(t.data) + start, this->channels, to);
      }
  }

  // Input row h gathers from the pooled rows whose windows hold it, where the argmax names it.
  void spread(int64_t h, Rows pooled) {
    const Pool& pool = p.pool;
    std::fill(spread_, spread_ + p.W * pixel, A(0));
    for (int64_t oh = pooled.begin; oh < pooled.end; ++oh) {
      const int64_t down = h - geometry.top(oh);
      if (down % pool.dh != 0 || down / pool.dh >= pool.kh) continue;
      for (int64_t ow = 0; ow < p.OW; ++ow)
        for (int64_t j = 0; j < pool.kw; ++j) {
          const int64_t w = ow * pool.sw - pool.pw + j * pool.dw;
          if (w < 0 || w >= p.W) continue;
          const int64_t from = ow * pixel;
          add_chosen(rows_[oh % held_] + from, argmax_[oh % held_] + from,
                     Int<A>(down / pool.dh * pool.kw + j), spread_ + w * pixel);
        }
    }
  }

  // One pixel; exactly its own channels, since a spill would be added to a neighbour.
  void add_chosen(const A* g, const Int<A>* argmax, Int<A> place, A* out) const {
    constexpr int L = lanes<A>;
    int64_t i = 0;
    for (; i + L <= pixel; i += L) {
      const Vec<A> zero = {};
      const auto chosen = load<IntVec<A>>(argmax + i) == place;
      store(out + i, load<Vec<A>>(out + i) + (chosen ? load<Vec<A>>(g + i) : zero));
    }
    for (; i < pixel; ++i) out[i] += argmax[i] == place ? g[i] : A(0);
  }

  // g: a row of gradients at the LRN's output, or the ReLU's; becomes that of the input to both.
  void through(int64_t h, int64_t width, A* g) {
    if (!p.r.data) return;
    const int64_t n = width * pixel;
    this->read_row(p.r, n_, h, width, r_, same);
    if (lrn) {
      this->window(r_, norm.before, window_);
      functions.gradient_terms(g, window_, norm, n, direct_, cross_);
      silence(cross_, width);
      this->window(cross_, norm.after, window_);
      functions.gradient(direct_, r_, window_, norm, n, g);
    }
    if (p.relu && !pool_first) mask(r_, n, g);
  }

  // Zeros around the groups again, and after the last: they may have become NaN (a NaN in r, or k =
  // 0), and neighbours read them.
  void silence(A* row, int64_t width) const {
    for (int64_t at = 0; at < width * pixel; at += this->pitch) {
      std::fill(row + at, row + at + this->head, A(0));
      std::fill(row + at + this->head + this->channels, row + at + this->pitch, A(0));
    }
    std::fill(row + width * pixel, row + width * pixel + this->head, A(0));
  }

  void add_sums(const A* g, double* sums) {
    std::fill(row_sums_, row_sums_ + pixel, A(0));
    for (int64_t w = 0; w < p.W; ++w)
      for (int64_t i = 0; i < pixel; ++i) row_sums_[i] += g[w * pixel + i];
    for (int64_t group = 0; group < this->groups; ++group)
      for (int64_t c = 0; c < this->channels; ++c)
        sums[group * this->channels + c] += double(row_sums_[group * this->pitch + this->head + c]);
  }

  static constexpr auto same = [](Vec<A> v, int64_t) { return v; };

  Bands bands_;
  int64_t held_;  // pooled rows whose windows hold one input row
  A **rows_, *spread_, *r_, *direct_, *cross_, *row_sums_;
  Int<A>** argmax_;
  const A** window_;
  int64_t n_;
};

}  // namespace fastcnn::FASTCNN_ISA
