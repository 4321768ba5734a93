// NCHW: vectors lie over the pixels of a channel, and an LRN goes down the channels with a ring of
// planes. A task is a band of rows of one image, all its channels.
#pragma once

#include "norms.h"
#include "plane_pooling.h"

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

}  // namespace fastcnn::FASTCNN_ISA
