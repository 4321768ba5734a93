// Max pooling of rows of one channel, as NCHW and the direct convolution have them, and its
// backward.
#pragma once

#include <limits>

#include "geometry.h"
#include "maxima.h"

namespace fastcnn::FASTCNN_ISA {

// Max pooling of one channel's rows: first across each row, then down the columns of what is left,
// so that a row is read once though windows overlap, and the first of equals wins in row-major
// order.
template <class A>
class PlanePool {
 public:
  // width: of a row of what is pooled, which may have more columns than the channel; cut: the
  // largest pooled value that has no gradient.
  PlanePool(const EpilogueParams& p, Scratch& scratch, int64_t in_rows, int64_t out_rows,
            int64_t width, A cut)
      : p_(p),
        width_(width),
        cut_(cut),
        pool_(p.pool),
        geometry_(p),
        across_{pool_.kw, pool_.dw, p.OW == 1 ? 1 : pool_.sw},
        reach_((p.OW - 1) * across_.stride + (pool_.kw - 1) * pool_.dw + 1),
        padded_(pool_.pw > 0 || reach_ > p.W) {
    const int64_t pitch = round_up(p.OW, lanes<A>);
    padding_ = scratch.span<A>(padded_ ? in_rows * reach_ : 0);
    rows_.pitch = pitch;
    rows_.value = scratch.span<A>(in_rows * pitch);
    rows_.column = p.argmax.data ? scratch.span<Int<A>>(in_rows * pitch) : nullptr;
    place_ = scratch.span<Int<A>>(out_rows * p.OW);
  }

  // in: the rows `have` of channel c; out: the rows `want` of its pooled map.
  // no_nan: in is known to have none.
  void run(const A* in, bool no_nan, Rows have, Rows want, int64_t n, int64_t c, A* out) {
    const bool nans = !no_nan && may_have_nans(in, (have.count() - 1) * width_ + p_.W);
    if (padded_) pad(in, have.count());
    maxima_across(padded_ ? padding_ : in, padded_ ? reach_ : width_, have.count(), across_, nans,
                  p_.OW, rows_);
    Int<A>* place = place_;
    for (int64_t oh = want.begin, windows = 0; oh < want.end; oh += windows) {
      const Rows inside = geometry_.inside(oh);
      windows = inside.count() == pool_.kh ? std::min(geometry_.whole_end(), want.end) - oh : 1;
      const int64_t row = geometry_.top(oh) + inside.begin * pool_.dh - have.begin;
      if (inside.count() <= 0) {
        std::fill(out, out + p_.OW, -std::numeric_limits<A>::infinity());
        std::fill(place, place + p_.OW, Int<A>(kNoPlace));
      } else {
        const Maxima<A> from = rows_.from(row);
        maxima_down(from, {inside.count(), pool_.dh, pool_.sh}, nans, windows, inside.begin,
                    pool_.kw, p_.OW, out, place);
      }
      for (int64_t i = 0; p_.argmax.data && i < windows; ++i) {
        if (inside.count() > 0) leave_padding(inside.begin * pool_.kw, place + i * p_.OW);
        take_cut(out + i * p_.OW, p_.OW, cut_, place + i * p_.OW);
        const int64_t at = n * p_.argmax.n + c * p_.argmax.c + (oh + i) * p_.argmax.h;
        write_argmax(p_, at, place + i * p_.OW, p_.OW);
      }
      out += windows * p_.OW;
      place += windows * p_.OW;
    }
    std::fill(out, out + lanes<A>, A(0));  // what the last row's last vector spilt
  }

 private:
  // Every row, from the first window's first column to the last one's last, -inf where there is
  // none.
  void pad(const A* in, int64_t rows) {
    const int64_t there = clamp(reach_ - pool_.pw, 0, p_.W);
    std::fill(padding_, padding_ + rows * reach_, -std::numeric_limits<A>::infinity());
    for (int64_t h = 0; h < rows && there; ++h)
      std::copy_n(in + h * width_, there, padding_ + h * reach_ + pool_.pw);
  }

  // A window of nothing but -inf keeps the place it began with, which may be in the left padding:
  // its first place inside takes over, or none where dilation leaves no place inside.
  void leave_padding(int64_t first_place, Int<A>* place) const {
    for (int64_t ow = 0; ow < p_.OW && ow * pool_.sw < pool_.pw; ++ow) {
      const int64_t left = ow * pool_.sw - pool_.pw;
      const int64_t inside = (-left + pool_.dw - 1) / pool_.dw;
      if (place[ow] % pool_.kw >= inside) continue;
      place[ow] = left + inside * pool_.dw < p_.W && inside < pool_.kw
                      ? Int<A>(first_place + inside)
                      : Int<A>(kNoPlace);
    }
  }

  const EpilogueParams& p_;
  int64_t width_;
  A cut_;
  const Pool& pool_;
  Geometry geometry_;
  Axis across_;    // with a single window, its stride does not matter
  int64_t reach_;  // columns from the first window's first to the last one's last
  bool padded_;    // whether any of those are outside
  A* padding_;
  Maxima<A> rows_;
  Int<A>* place_;
};

// Pooling backward on one channel: each input row gathers from the pooled rows whose windows hold
// it, where the argmax names it.
template <class A>
class PlaneUnpool {
 public:
  PlaneUnpool(const EpilogueParams& p, Scratch& scratch, int64_t in_rows, int64_t rows)
      : p_(p), pool_(p.pool), geometry_(p), axis_{pool_.kw, pool_.dw, pool_.sw} {
    if (!pool_.kh) return;
    const int64_t before = round_up((pool_.kw - 1) * pool_.dw / axis_.stride + 1, lanes<A>);
    const int64_t after = std::max(p.OW, (p.W + pool_.pw) / axis_.stride + 1) + 2 * lanes<A>;
    pitch_ = before + round_up(after, lanes<A>);
    g_ = scratch.span<A>(rows * pitch_, before);
    argmax_ = scratch.span<Int<A>>(rows * pitch_, before);
    holders_ = scratch.span<Holder<A>>(in_rows * pool_.kh);
    held_ = scratch.span<int64_t>(in_rows);
    if (argmax_) std::fill(argmax_ - before, argmax_ + rows * pitch_, Int<A>(-2));
  }

  // Where the gradients of the i-th pooled row that run() will be told of belong.
  A* row(int64_t i) const { return g_ + i * pitch_; }

  // out: the gradient of input rows `in` of channel c, from pooled rows `from`.
  void run(Rows from, Rows in, int64_t n, int64_t c, A* out) const {
    std::fill(held_, held_ + in.count(), 0);
    for (int64_t oh = from.begin; oh < from.end; ++oh) {
      const int64_t row = (oh - from.begin) * pitch_;
      read_argmax(n, c, oh, argmax_ + row);
      for (int64_t i = 0; i < pool_.kh; ++i) {
        const int64_t h = geometry_.top(oh) + i * pool_.dh - in.begin;
        if (h >= 0 && h < in.count())
          holders_[h * pool_.kh + held_[h]++] = {g_ + row, argmax_ + row, Int<A>(i * pool_.kw)};
      }
    }
    for (int64_t h = 0; h < in.count(); ++h)
      gather(holders_ + h * pool_.kh, held_[h], axis_, pool_.pw, p_.W, out + h * p_.W);
  }

 private:
  void read_argmax(int64_t n, int64_t c, int64_t oh, Int<A>* out) const {
    const int64_t start = n * p_.argmax.n + c * p_.argmax.c + oh * p_.argmax.h;
    if (p_.argmax_bytes == 1)
      std::copy_n(static_cast<const uint8_t*>(p_.argmax.data) + start, p_.OW, out);
    else
      std::copy_n(static_cast<const int32_t*>(p_.argmax.data) + start, p_.OW, out);
  }

  const EpilogueParams& p_;
  const Pool& pool_;
  Geometry geometry_;
  Axis axis_;
  int64_t pitch_ = 0;
  A* g_;
  Int<A>* argmax_;
  Holder<A>* holders_;  // of each input row, pool.kh at most
  int64_t* held_;       // how many
};

}  // namespace fastcnn::FASTCNN_ISA
