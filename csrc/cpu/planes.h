// NCHW: vectors lie over the pixels of a channel, and an LRN goes down the channels with a ring of
// planes. A task is a band of rows of one image, all its channels.
#pragma once

#include <limits>

#include "geometry.h"
#include "maxima.h"
#include "norms.h"

namespace fastcnn::FASTCNN_ISA {

// A task's spans stay within the L2 cache.
constexpr int64_t kPlanesBudget = 128 * 1024;

// Shared by forward and backward: the launch's constants, and rows of a channel in and out of
// scratch.
template <class T>
struct Planes {
  using A = typename T::Acc;

  const EpilogueParams& p;
  Geometry geometry;
  Norm<A> norm;
  NormFunctions<T> functions;
  bool lrn, pool, pool_first;
  int64_t ring;  // planes held at once: the LRN's window

  explicit Planes(const EpilogueParams& params)
      : p(params),
        geometry(params),
        norm(params.lrn),
        functions(NormFunctions<T>::of(params.lrn)),
        lrn(params.lrn.size > 0),
        pool(params.pool.kh > 0),
        pool_first(pool && (params.pool.first || !lrn)),
        ring(lrn ? params.lrn.size : 1) {}

  // Rows that `spans` spans may hold.
  int64_t rows_within_budget(int64_t spans) const {
    return kPlanesBudget / (spans * int64_t(sizeof(A)) * std::max<int64_t>(1, p.W));
  }

  template <class Op>
  void read_rows(const Tensor& t, int64_t n, int64_t c, Rows rows, int64_t width, A* out,
                 Op op) const {
    const T* x = static_cast<const T*>(t.data) + n * t.n + c * t.c;
    if (t.w == 1 && t.h == width)
      return read(x + rows.begin * t.h, 1, rows.count() * width, out, op, lrn || pool ? t.c : 0);
    for (int64_t h = rows.begin; h < rows.end; ++h, out += width)
      read(x + h * t.h, t.w, width, out, op);
  }

  void write_rows(const A* in, int64_t width, const Tensor& t, int64_t n, int64_t c,
                  Rows rows) const {
    T* out = static_cast<T*>(t.data) + n * t.n + c * t.c;
    write(in, rows.count() * width, out + rows.begin * t.h);
  }

  // The spans of channels c-back .. c-back+size-1; silent stands for those outside of c's group.
  void window(A* const* planes, const A* silent, int64_t c, int64_t back, Rows group,
              const A** out) const {
    for (int64_t j = 0; j < norm.size; ++j) {
      const int64_t channel = c - back + j;
      const bool inside = channel >= group.begin && channel < group.end;
      out[j] = inside ? planes[channel % ring] : silent;
    }
  }
};

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
    rows_.column = p.offsets.data ? scratch.span<Int<A>>(in_rows * pitch) : nullptr;
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
      for (int64_t i = 0; p_.offsets.data && i < windows; ++i) {
        if (inside.count() > 0) leave_padding(inside.begin * pool_.kw, place + i * p_.OW);
        take_cut(out + i * p_.OW, p_.OW, cut_, place + i * p_.OW);
        const int64_t at = n * p_.offsets.n + c * p_.offsets.c + (oh + i) * p_.offsets.h;
        write_offsets(p_, at, place + i * p_.OW, p_.OW);
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
// it, where the offset names it.
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
    offsets_ = scratch.span<Int<A>>(rows * pitch_, before);
    holders_ = scratch.span<Holder<A>>(in_rows * pool_.kh);
    held_ = scratch.span<int64_t>(in_rows);
    if (offsets_) std::fill(offsets_ - before, offsets_ + rows * pitch_, Int<A>(-2));
  }

  // Where the gradients of the i-th pooled row that run() will be told of belong.
  A* row(int64_t i) const { return g_ + i * pitch_; }

  // out: the gradient of input rows `in` of channel c, from pooled rows `from`.
  void run(Rows from, Rows in, int64_t n, int64_t c, A* out) const {
    std::fill(held_, held_ + in.count(), 0);
    for (int64_t oh = from.begin; oh < from.end; ++oh) {
      const int64_t row = (oh - from.begin) * pitch_;
      read_offsets(n, c, oh, offsets_ + row);
      for (int64_t i = 0; i < pool_.kh; ++i) {
        const int64_t h = geometry_.top(oh) + i * pool_.dh - in.begin;
        if (h >= 0 && h < in.count())
          holders_[h * pool_.kh + held_[h]++] = {g_ + row, offsets_ + row, Int<A>(i * pool_.kw)};
      }
    }
    for (int64_t h = 0; h < in.count(); ++h)
      gather(holders_ + h * pool_.kh, held_[h], axis_, pool_.pw, p_.W, out + h * p_.W);
  }

 private:
  void read_offsets(int64_t n, int64_t c, int64_t oh, Int<A>* out) const {
    const int64_t start = n * p_.offsets.n + c * p_.offsets.c + oh * p_.offsets.h;
    if (p_.offset_bytes == 1)
      std::copy_n(static_cast<const uint8_t*>(p_.offsets.data) + start, p_.OW, out);
    else
      std::copy_n(static_cast<const int32_t*>(p_.offsets.data) + start, p_.OW, out);
  }

  const EpilogueParams& p_;
  const Pool& pool_;
  Geometry geometry_;
  Axis axis_;
  int64_t pitch_ = 0;
  A* g_;
  Int<A>* offsets_;
  Holder<A>* holders_;  // of each input row, pool.kh at most
  int64_t* held_;       // how many
};

template <class T>
class PlanesForward : Planes<T> {
  using Base = Planes<T>;
  using A = typename T::Acc;
  using Base::p, Base::geometry, Base::norm, Base::functions, Base::lrn, Base::pool,
      Base::pool_first, Base::ring;

 public:
  PlanesForward(const EpilogueParams& params, Scratch& scratch)
      : Base(params),
        bands_(p.N, p.OH, 1, most_rows(), forward_tasks(p)),
        keeps_input_rows_(p.r.data && !pool_first),
        can_join_(lrn && !pool_first && p.x.w == 1 && p.x.h == p.W),
        rows_(std::min(p.H,
                       pool ? bands_.band * p.pool.sh + geometry.extent + p.pool.ph : bands_.band)),
        maxima_(p, scratch, pool ? rows_ : 0, bands_.band, p.W, largest_cut<T>(p)) {
    const int64_t in = rows_ * p.W, out = bands_.band * p.OW;
    planes_ = scratch.span<A*>(ring);
    for (int64_t j = 0; j < ring; ++j) {
      A* plane = scratch.span<A>(pool_first ? out : in);
      if (planes_) planes_[j] = plane;
    }
    silent_ = scratch.span<A>(lrn ? (pool_first ? out : in) : 0);
    window_ = scratch.span<const A*>(ring);
    raw_ = scratch.span<A>(pool_first ? in : 0);
    normal_ = scratch.span<A>(lrn ? (pool_first ? out : in) : 0);
    pooled_ = scratch.span<A>(out);
  }

  int64_t tasks() const { return p.N * bands_.per_image; }

  void run(int64_t task, double*) {
    n_ = bands_.image(task);
    out_ = bands_(task);
    in_ = geometry.inputs_of(out_);
    own_ = geometry.owned_by(out_);
    if (keeps_input_rows_) in_.end = std::max(in_.end, own_.end);
    const int64_t channels = p.C / p.lrn.groups;
    for (int64_t c = 0; c < p.C; c += channels) run_group({c, c + channels});
  }

 private:
  int64_t most_rows() const {
    const int64_t rows = this->rows_within_budget(ring + 4);
    return pool ? (rows - geometry.extent) / p.pool.sh + 1 : rows;
  }

  void run_group(Rows group) {
    const int64_t ahead = lrn ? norm.after : 0;
    for (int64_t c = group.begin; c < group.end + ahead; ++c) {
      const bool comes = c < group.end, goes = c - ahead >= group.begin;
      const bool together = comes && goes && can_join_;
      if (comes && !together) take(c);
      if (goes && lrn) normalise(c - ahead, together, group);
      if (comes) keep(c);
      if (goes) give(c - ahead);
    }
  }

  A bias(int64_t c) const {
    return p.bias ? T::get(static_cast<const T*>(p.bias)[c]) : A(-0.0);  // x + -0 is x
  }

  // Bias, ReLU, pooling if it comes first: channel c's plane of the ring.
  void take(int64_t c) {
    const A b = bias(c);
    A* plane = planes_[c % ring];
    A* read_to = pool_first ? raw_ : plane;
    if (p.relu)
      this->read_rows(p.x, n_, c, in_, p.W, read_to,
                      [b](Vec<A> v, int64_t) { return rectify<A>(v + b); });
    else
      this->read_rows(p.x, n_, c, in_, p.W, read_to, [b](Vec<A> v, int64_t) { return v + b; });
    if (pool_first) maxima_.run(raw_, false, in_, out_, n_, c, plane);
  }

  // The LRN of channel c; on the way, bias and ReLU of the last channel in its window.
  void normalise(int64_t c, bool take_last, Rows group) {
    this->window(planes_, silent_, c, norm.before, group, window_);
    const int64_t n = pool_first ? out_.count() * p.OW : in_.count() * p.W;
    if (!take_last) {
      finite_ = functions.normalise(window_, norm, n, normal_);
      return;
    }
    const int64_t last = c + norm.after;
    const T* x = static_cast<const T*>(p.x.data) + n_ * p.x.n + last * p.x.c + in_.begin * p.x.h;
    const Source<T> source{x, n, p.x.c, bias(last),
                           p.relu ? A(0) : -std::numeric_limits<A>::infinity()};
    finite_ = functions.take_and_normalise(source, planes_[last % ring], window_, norm, normal_);
  }

  // Saves what backward needs of channel c.
  void keep(int64_t c) const {
    const A* plane = planes_[c % ring];
    if (!p.r.data) return;
    if (pool_first)
      this->write_rows(plane, p.OW, p.r, n_, c, out_);
    else
      this->write_rows(plane + (own_.begin - in_.begin) * p.W, p.W, p.r, n_, c, own_);
  }

  // Pooling if it comes last: channel c of the output.
  void give(int64_t c) {
    const A* result = lrn ? normal_ : planes_[c % ring];
    if (pool && !pool_first) {
      maxima_.run(result, lrn && finite_, in_, out_, n_, c, pooled_);
      result = pooled_;
    }
    this->write_rows(result, p.OW, p.y, n_, c, out_);
  }

  Bands bands_;
  bool keeps_input_rows_;
  bool can_join_;  // whether a channel can be taken while another is normalised
  int64_t rows_;   // of input, at most, in a task
  PlanePool<A> maxima_;
  A **planes_, *silent_, *raw_, *normal_, *pooled_;
  const A** window_;
  bool finite_ = false;  // whether normal_ is, as far as is known
  int64_t n_;
  Rows out_, in_, own_;
};

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
