// One way to refuse: std::invalid_argument with what was wrong; and what no launch may have.
#pragma once

#include <stdexcept>
#include <string>

#include "params.h"

namespace fastcnn {

inline void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("fastcnn: ") + message);
}

inline void check_sizes(const EpilogueParams& p) {
  check(p.N >= 0 && p.C >= 0 && p.H >= 0 && p.W >= 0, "sizes must not be negative");
  check(p.argmax_bytes == 1 || p.argmax_bytes == 4, "argmax_bytes must be 1 or 4");
  check(p.lrn.size >= 0 && p.lrn.groups >= 1 && p.C % p.lrn.groups == 0,
        "lrn groups must divide the channels");
  const Pool& pool = p.pool;
  check(pool.kh >= 0 && pool.kw >= 0 && (pool.kh == 0) == (pool.kw == 0), "bad pool size");
  check(
      pool.sh >= 1 && pool.sw >= 1 && pool.dh >= 1 && pool.dw >= 1 && pool.ph >= 0 && pool.pw >= 0,
      "bad pool stride, dilation or padding");
  check(pool.kh || (p.OH == p.H && p.OW == p.W), "without pooling the sizes must agree");
  check(p.argmax_bytes == 4 || pool.kh * pool.kw <= 255, "argmax of one byte hold 255 places");
}

inline void check_params(const EpilogueParams& p) {
  check_sizes(p);
  check(p.x.data && p.y.data, "x and y must be given");
}

// Checks that backward gets the tensors that forward saved for it.
inline void check_saved(const EpilogueParams& p) {
  check(p.r.data || !(p.lrn.size || (p.relu && !p.pool.kh)), "r must be given");
  check(p.argmax.data || !p.pool.kh, "argmax must be given");
}

inline void check_backward_params(const EpilogueParams& p) {
  check_params(p);
  check_saved(p);
}

// Any size of the output is safe: what lies outside of the input is zeros.
inline void check_convolution(const ConvParams& p) {
  check_sizes(p.after);
  check(p.after.dtype != Dtype::f64, "there is no direct convolution in float64");
  check(p.after.lrn.size == 0, "there is no LRN behind a direct convolution");
  check(p.after.C >= 1 && p.after.H >= 1 && p.after.W >= 1, "the output must not be empty");
  check(p.C >= 0 && p.H >= 0 && p.W >= 0, "sizes must not be negative");
  check(p.kh >= 1 && p.kw >= 1 && p.sh >= 1 && p.sw >= 1 && p.dh >= 1 && p.dw >= 1,
        "bad kernel size, stride or dilation");
  check(p.top >= 0 && p.left >= 0, "padding must not be negative");
  check(p.groups >= 1 && p.C % p.groups == 0 && p.after.C % p.groups == 0,
        "groups must divide the channels");
  check(p.weight.data, "weight must be given");
}

}  // namespace fastcnn
