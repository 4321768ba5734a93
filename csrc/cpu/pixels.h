// channels_last: vectors lie over the channels of a pixel. A row of pixels in scratch is dense, or
// padded: then each LRN group of a pixel has zeros around it, `before` ahead and `after` behind, so
// that the whole row is one span and a window is that span, shifted. A task is a band of rows of
// one image.
#pragma once

#include <cmath>
#include <limits>

#include "geometry.h"
#include "maxima.h"
#include "norms.h"

namespace fastcnn::FASTCNN_ISA {

// Shared by forward and backward: the launch's constants, and rows of pixels in and out of
// scratch.
template <class T>
struct Pixels {
  using A = typename T::Acc;

  const EpilogueParams& p;
  Geometry geometry;
  Norm<A> norm;
  NormFunctions<T> functions;
  bool lrn, pool, pool_first;
  int64_t groups, channels;  // channels: of a group
  int64_t head, pitch;       // zeros ahead of a group's channels, and from one group to the next
  int64_t pixel;             // from one pixel to the next

  // padded: whether rows are.
  Pixels(const EpilogueParams& params, bool padded)
      : p(params),
        geometry(params),
        norm(params.lrn),
        functions(NormFunctions<T>::of(params.lrn)),
        lrn(params.lrn.size > 0),
        pool(params.pool.kh > 0),
        pool_first(pool && (params.pool.first || !lrn)),
        groups(lrn ? params.lrn.groups : 1),
        channels(params.C / groups),
        head(padded ? norm.before : 0),
        pitch(channels + (padded ? norm.before + norm.after : 0)),
        pixel(groups * pitch) {}

  A* row_span(Scratch& scratch, int64_t width) const {
    return scratch.span<A>(width * pixel + norm.size, norm.size);
  }

  // op(v, c): v holds channels c and on.
  template <class Op>
  void read_row(const Tensor& t, int64_t n, int64_t h, int64_t width, A* out, Op op) const {
    const T* x = static_cast<const T*>(t.data) + n * t.n + h * t.h;
    for (int64_t w = 0; w < width; ++w)
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t c = g * channels;
        read(x + w * t.w + c * t.c, t.c, channels, out + w * pixel + g * pitch + head,
             [&](Vec<A> v, int64_t i) { return op(v, c + i); });
      }
  }

  void write_row(const A* in, const Tensor& t, int64_t n, int64_t h, int64_t width) const {
    T* out = static_cast<T*>(t.data) + n * t.n + h * t.h;
    if (pixel == p.C && t.w == p.C) return write(in, width * pixel, out);
    for (int64_t w = 0; w < width; ++w)
      for (int64_t g = 0; g < groups; ++g)
        write(in + w * pixel + g * pitch + head, channels, out + w * t.w + g * channels);
  }

  // The row seen from `back` channels earlier to norm.size - 1 later than that.
  void window(const A* row, int64_t back, const A** out) const {
    for (int64_t j = 0; j < norm.size; ++j) out[j] = row - back + j;
  }
};

template <class T>
class PixelsForward : Pixels<T> {
  using Base = Pixels<T>;
  using A = typename T::Acc;
  using Base::p, Base::geometry, Base::norm, Base::functions, Base::lrn, Base::pool,
      Base::pool_first, Base::groups, Base::channels, Base::pixel;

 public:
  PixelsForward(const EpilogueParams& params, Scratch& scratch)
      : Base(params, params.lrn.size > 0 && !has_own_norm(params)),
        cut_(largest_cut<T>(params)),
        own_norm_(has_own_norm(params)),
        in_place_(can_stay_in_place()),
        bands_(p.N, p.OH, 1, p.OH, forward_tasks(p)),
        held_(pool ? std::min(geometry.extent, p.H) : 1) {
    rows_ = scratch.span<const A*>(held_);
    scratch_rows_ = scratch.span<A*>(held_);
    for (int64_t i = 0; i < held_; ++i) {
      A* row = this->row_span(scratch, in_place_ ? 0 : p.W);
      if (rows_) rows_[i] = scratch_rows_[i] = row;
    }
    nans_ = scratch.span<char>(held_);
    bias_ = scratch.span<A>(p.bias ? p.C : 0);
    if (bias_ && p.bias) read(static_cast<const T*>(p.bias), 1, p.C, bias_);
    input_ = this->row_span(scratch, lrn && !pool_first && !own_norm_ ? p.W : 0);
    pooled_ = this->row_span(scratch, pool ? p.OW : 0);
    normal_ = this->row_span(scratch, lrn && pool_first ? p.OW : 0);
    window_ = scratch.span<const A*>(norm.size);
    spans_ = scratch.span<const A*>(p.pool.kh * p.pool.kw);
    seen_ = scratch.span<const A*>(p.pool.kh);
    places_ = scratch.span<int32_t>(p.pool.kh * p.pool.kw);
    place_ = scratch.span<Int<A>>(pool ? pixel : 0);
  }

  int64_t tasks() const { return p.N * bands_.per_image; }

  void run(int64_t task, double*) {
    n_ = bands_.image(task);
    const Rows out = bands_(task), in = geometry.inputs_of(out), own = geometry.owned_by(out);
    const bool keeps = p.r.data && !pool_first;
    int64_t next = in.begin;
    for (int64_t oh = out.begin; oh < out.end; ++oh) {
      const Rows need = geometry.inputs_of({oh, oh + 1});
      for (; next < need.end; ++next) take(next, keeps && next >= own.begin && next < own.end);
      coming_ = {next, std::min(next + p.pool.sh, in.end)};
      give(oh);
    }
    if (keeps)
      for (; next < own.end; ++next) take(next, true);
  }

 private:
  // Whether the LRN takes dense rows.
  static bool has_own_norm(const EpilogueParams& p) {
    return p.lrn.size && p.x.c == 1 && NormFunctions<T>::of(p.lrn).normalise_pixels;
  }

  // Whether pooling can look at the input where it is, bias and ReLU coming after it: they change
  // no maximum, only which of several equals is the first; but an infinite bias can make a NaN of
  // what was none.
  bool can_stay_in_place() const {
    for (int64_t c = 0; p.bias && c < p.C; ++c)
      if (!std::isfinite(T::get(static_cast<const T*>(p.bias)[c]))) return false;
    return pool_first && std::is_same_v<T, Plain<A>> && p.C % lanes<A> == 0 && pixel == p.C &&
           p.x.c == 1 && p.x.w == p.C && !(p.argmax.data && (p.bias || p.relu));
  }

  // A tensor's row h, as arithmetic values.
  A* in_memory(const Tensor& t, int64_t h) const {
    return static_cast<A*>(t.data) + n_ * t.n + h * t.h;
  }

  A least() const { return p.relu ? A(0) : -std::numeric_limits<A>::infinity(); }

  auto bias_and_relu() const {
    return [bias = p.bias ? bias_ : nullptr, relu = p.relu](Vec<A> v, int64_t c) {
      if (bias) v += load<Vec<A>>(bias + c);
      return relu ? rectify<A>(v) : v;
    };
  }

  // Bias and ReLU, and the LRN if pooling comes after it: input row h, among those held.
  void take(int64_t h, bool keep) {
    const int64_t slot = h % held_;
    if (in_place_) {
      rows_[slot] = in_memory(p.x, h);
      nans_[slot] = may_have_nans(rows_[slot], p.W * pixel);
      return;
    }
    A* row = scratch_rows_[slot];
    if (own_norm_ && !pool_first) {
      const auto at = [&](const Tensor& t) { return static_cast<T*>(t.data) + n_ * t.n + h * t.h; };
      nans_[slot] = !functions.take_and_normalise_pixels(
          {at(p.x), p.W, p.x.w, groups, channels, p.bias ? bias_ : nullptr, least(),
           keep ? at(p.r) : nullptr, p.r.w},
          norm, row);
      return;
    }
    A* read_to = lrn && !pool_first ? input_ : row;
    this->read_row(p.x, n_, h, p.W, read_to, bias_and_relu());
    if (keep) this->write_row(read_to, p.r, n_, h, p.W);
    if (read_to == input_) {
      this->window(input_, norm.before, window_);
      functions.normalise(window_, norm, p.W * pixel, row);
    }
    nans_[slot] = pool && may_have_nans(row, p.W * pixel);
  }

  // Pooling, the LRN if it comes last, and row oh of the output.
  void give(int64_t oh) {
    const A* result = pool ? pooled_ : rows_[oh % held_];
    if (pool) pool_row(oh);
    if (pool_first) {
      if (p.r.data) this->write_row(pooled_, p.r, n_, oh, p.OW);
      if (lrn) result = normalise_pooled();
    }
    this->write_row(result, p.y, n_, oh, p.OW);
  }

  const A* normalise_pooled() {
    if (own_norm_) {
      const auto* x = reinterpret_cast<const Plain<A>*>(pooled_);
      const A none = -std::numeric_limits<A>::infinity();
      functions.normalise_pixels({x, p.OW, pixel, groups, channels, nullptr, none, nullptr, 0},
                                 norm, normal_);
    } else {
      this->window(pooled_, norm.before, window_);
      functions.normalise(window_, norm, p.OW * pixel, normal_);
    }
    return normal_;
  }

  void pool_row(int64_t oh) {
    const Pool& pool = p.pool;
    bool nans = false;
    for (int64_t i = 0; i < pool.kh; ++i) {
      const int64_t h = geometry.top(oh) + i * pool.dh;
      const bool inside = h >= 0 && h < p.H;
      seen_[i] = inside ? rows_[h % held_] : nullptr;
      nans |= inside && nans_[h % held_];
    }
    // With each window a part of the rows that are taken next: memory works meanwhile.
    const T* coming = static_cast<const T*>(p.x.data) + n_ * p.x.n + coming_.begin * p.x.h;
    const int64_t part = p.x.c == 1 ? coming_.count() * p.W * p.C / p.OW : 0;
    for (int64_t ow = 0; ow < p.OW; ++ow) {
      for (int64_t i = 0; i < part; i += Scratch::kLine / sizeof(T)) prefetch(coming + i);
      coming += part;
      A* out = pooled_ + ow * pixel;
      const Candidates<A> from = candidates(ow * pool.sw - pool.pw);
      if (from.count == 0) {
        std::fill(out, out + pixel, -std::numeric_limits<A>::infinity());
        std::fill(place_, place_ + pixel, Int<A>(kNoPlace));
      } else {
        maximum(from, nans, pixel, out, p.argmax.data ? place_ : nullptr);
        if (in_place_ && (p.bias || p.relu))
          for (int64_t c = 0; c < p.C; c += lanes<A>)
            store(out + c, bias_and_relu()(load<Vec<A>>(out + c), c));
      }
      if (!p.argmax.data) continue;
      take_cut(out, pixel, cut_, place_);
      write_places(oh, ow);
    }
    std::fill(pooled_ + p.OW * pixel, pooled_ + p.OW * pixel + lanes<A>, A(0));  // the last spill
  }

  // The candidates of the window whose first column is `left`.
  Candidates<A> candidates(int64_t left) {
    const Pool& pool = p.pool;
    int64_t count = 0;
    for (int64_t i = 0; i < pool.kh; ++i) {
      if (!seen_[i]) continue;
      for (int64_t j = 0; j < pool.kw; ++j) {
        const int64_t w = left + j * pool.dw;
        if (w < 0 || w >= p.W) continue;
        spans_[count] = seen_[i] + w * pixel;
        places_[count++] = int32_t(i * pool.kw + j);
      }
    }
    return {spans_, places_, count};
  }

  void write_places(int64_t oh, int64_t ow) const {
    const Tensor& t = p.argmax;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t at = n_ * t.n + oh * t.h + ow * t.w + g * channels;
      write_argmax(p, at, place_ + g * this->pitch + this->head, channels);
    }
  }

  A cut_;  // the largest pooled value that has no gradient
  bool own_norm_, in_place_;
  Bands bands_;
  int64_t held_;    // rows of a window
  const A** rows_;  // the held rows: in scratch, or in the input
  A **scratch_rows_, *bias_, *input_, *pooled_, *normal_;
  char* nans_;                           // whether a held row may have any
  const A **window_, **spans_, **seen_;  // seen: the held rows of a window, null outside
  int32_t* places_;
  Int<A>* place_;
  int64_t n_;
  Rows coming_;  // input rows that the next output row needs
};

}  // namespace fastcnn::FASTCNN_ISA
