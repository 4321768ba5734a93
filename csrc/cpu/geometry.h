// Which rows meet which: windows over rows, bands of rows as tasks, places in a window.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../params.h"

namespace fastcnn::FASTCNN_ISA {

struct Rows {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

inline int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return std::min(std::max(x, low), high);
}

inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// The pooling's rows over an image of H rows, and its bands.
struct Geometry {
  const EpilogueParams& p;
  const Pool& pool;
  bool pooled;
  int64_t extent;  // rows from a window's first to its last

  explicit Geometry(const EpilogueParams& params)
      : p(params),
        pool(params.pool),
        pooled(params.pool.kh > 0),
        extent((params.pool.kh - 1) * params.pool.dh + 1) {}

  int64_t top(int64_t oh) const { return oh * pool.sh - pool.ph; }

  // Rows of output row oh's window, counted in it, that are in the image.
  Rows inside(int64_t oh) const {
    const int64_t above = -top(oh), below = p.H - top(oh);
    return {above <= 0 ? 0 : (above + pool.dh - 1) / pool.dh,
            std::min(pool.kh, (below + pool.dh - 1) / pool.dh)};
  }

  // The first output row, past the top padding, whose window leaves the image at the bottom.
  int64_t whole_end() const { return (p.H + pool.ph - extent) / pool.sh + 1; }

  // Input rows that these output rows look at.
  Rows inputs_of(Rows out) const {
    if (!pooled) return out;
    return {clamp(top(out.begin), 0, p.H), clamp(top(out.end - 1) + extent, 0, p.H)};
  }

  // Output rows whose windows may hold one of these input rows.
  Rows outputs_of(Rows in) const {
    if (!pooled) return in;
    const int64_t first = in.begin + pool.ph - extent + 1;
    const int64_t begin = first <= 0 ? 0 : (first + pool.sh - 1) / pool.sh;
    const int64_t end = clamp((in.end - 1 + pool.ph) / pool.sh + 1, 0, p.OH);
    return {std::min(begin, end), end};
  }

  // Input rows that the band of these output rows writes, of those that all bands share out.
  Rows owned_by(Rows out) const {
    if (!pooled) return out;
    return {out.begin == 0 ? 0 : clamp(top(out.begin), 0, p.H),
            out.end == p.OH ? p.H : clamp(top(out.end), 0, p.H)};
  }
};

// N images in equal bands of rows: at most `most` rows, and about `tasks` bands in all or more,
// unless they would have fewer than `least` rows.
struct Bands {
  int64_t rows, band, per_image;

  Bands(int64_t images, int64_t rows_of_image, int64_t least, int64_t most, int64_t tasks)
      : rows(rows_of_image),
        band(clamp(std::max(least, (rows * images + tasks - 1) / tasks), 1,
                   clamp(most, 1, std::max<int64_t>(rows, 1)))),
        per_image((rows + band - 1) / band) {}

  Rows operator()(int64_t task) const {
    const int64_t begin = task % per_image * band;
    return {begin, std::min(rows, begin + band)};
  }
  int64_t image(int64_t task) const { return task / per_image; }
};

// Forward's bands may follow the number of threads, since no output depends on them: as few as give
// every thread the same number. Backward's may not: each band's share of the bias gradient is
// rounded on its own.
inline int64_t forward_tasks(const EpilogueParams& p) {
  return p.N / std::gcd(p.N, p.threads) * p.threads;
}
constexpr int64_t kBackwardTasks = 32, kBackwardRows = 8;  // fewer: windows are shared too often

// A thread's scratch memory, handed out in aligned pieces. An epilogue's, and a gradient's, is
// zeroed before the first task.
class Scratch {
 public:
  explicit Scratch(char* memory) : memory_(memory) {}

  // A span of n values, with room for whole vectors past its end and `before` values ahead of it.
  template <class A>
  A* span(int64_t n, int64_t before = 0) {
    const int64_t ahead = round_up(before, kLine / sizeof(A));
    A* result = reinterpret_cast<A*>(memory_ + used_) + ahead;
    used_ += round_up((ahead + n) * sizeof(A), kLine) + 3 * kLine;
    return memory_ ? result : nullptr;
  }

  int64_t used() const { return used_; }

  static constexpr int64_t kLine = 64;

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace fastcnn::FASTCNN_ISA
