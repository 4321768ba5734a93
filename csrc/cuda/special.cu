#include "special.h"

#include <cstdlib>

#include "lanes.h"

namespace fastcnn::cuda::special {

namespace {

bool fits_lrn(const Lrn& lrn) {
  // d stays a normal number: the approximate roots take a denormal for 0.
  return lrn.size == 0 ||
         (lrn.size == 5 && lrn.beta == 0.75 && lrn.k >= 1e-30 && lrn.k <= 1e30 && lrn.alpha >= 0);
}

bool fits_pool(const EpilogueParams& p) {
  const Pool& pool = p.pool;
  if (pool.kh == 0) return true;
  const bool square = pool.kh == pool.kw && pool.sh == 2 && pool.sw == 2;
  const bool plain = pool.dh == 1 && pool.dw == 1 && p.argmax_bytes == 1;
  const bool known = pool.kh == 3 || (pool.kh == 2 && p.lrn.size == 0);
  const auto covered = [](int64_t outputs, int64_t size, int64_t kernel, int64_t padding) {
    const int64_t last = (outputs - 1) * 2 - padding;
    return padding < kernel && last < size && last + kernel + 1 >= size;
  };
  return square && plain && known && covered(p.OH, p.H, pool.kh, pool.ph) &&
         covered(p.OW, p.W, pool.kw, pool.pw) && (p.argmax.data || !p.r.data);
}

// Whether each of a tensor's pixels begins where `width` values can be read at once.
bool aligned(const EpilogueParams& p, const Tensor& t, int64_t width, int64_t bytes, int64_t H,
             int64_t W) {
  if (!t.data) return true;
  return t.c == 1 && reinterpret_cast<uintptr_t>(t.data) % (width * bytes) == 0 &&
         (p.N == 1 || t.n % width == 0) && (H == 1 || t.h % width == 0) &&
         (W == 1 || t.w % width == 0);
}

// Whether 32 bits reach from any value of an image to any other.
bool reaches(const EpilogueParams& p, const Tensor& t, int64_t H, int64_t W) {
  return p.C * std::abs(t.c) + H * std::abs(t.h) + W * std::abs(t.w) < int64_t(1) << 31;
}

bool fits_layout(const EpilogueParams& p) {
  const int64_t bytes = p.dtype == Dtype::f32 ? 4 : 2, width = 16 / bytes;
  const bool pool_first = p.pool.kh && (p.pool.first || !p.lrn.size);
  for (const Tensor* t : {&p.x, &p.y, &p.r, &p.argmax})
    if (!reaches(p, *t, p.H, p.W)) return false;
  if (!p.channels_last) return true;
  const int64_t vectors = p.C / p.lrn.groups / width;  // a group's are one block's in backward
  if (p.lrn.size && vectors > kThreads / 2) return false;
  for (const void* bias : {static_cast<const void*>(p.bias), p.r_bias})
    if (reinterpret_cast<uintptr_t>(bias) % 16) return false;
  return p.C / p.lrn.groups % width == 0 && aligned(p, p.x, width, bytes, p.H, p.W) &&
         aligned(p, p.y, width, bytes, p.OH, p.OW) &&
         aligned(p, p.r, width, bytes, pool_first ? p.OH : p.H, pool_first ? p.OW : p.W) &&
         aligned(p, p.argmax, width, 1, p.OH, p.OW);
}

}  // namespace

bool fits(const EpilogueParams& p) {
  const bool tiled = p.lrn.size && p.pool.kh && !p.pool.first;
  const int64_t most = int64_t(1) << 30;  // pixels, channels and blocks are counted in 32 bits
  return p.dtype != Dtype::f64 && fits_lrn(p.lrn) && fits_pool(p) && fits_layout(p) && p.C < most &&
         p.N * p.OH * p.OW < most && p.N * (p.H + 2) * (p.W + 2) < most &&
         p.N * p.OH * p.OW * (p.C / 4 + p.lrn.groups) < (tiled ? 2 : kThreads) * most;
}

}  // namespace fastcnn::cuda::special
