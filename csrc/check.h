// One way to refuse: std::invalid_argument with what was wrong; and what no launch may have.
#pragma once

#include <stdexcept>
#include <string>

#include "params.h"

namespace fastcnn {

inline void check(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("fastcnn: ") + message);
}

inline void check_params(const EpilogueParams& p) {
  check(p.N >= 0 && p.C >= 0 && p.H >= 0 && p.W >= 0, "sizes must not be negative");
  check(p.x.data && p.y.data, "x and y must be given");
  check(p.offset_bytes == 1 || p.offset_bytes == 4, "offset_bytes must be 1 or 4");
  check(p.lrn.size >= 0 && p.lrn.groups >= 1 && p.C % p.lrn.groups == 0,
        "lrn groups must divide the channels");
  const Pool& pool = p.pool;
  check(pool.kh >= 0 && pool.kw >= 0 && (pool.kh == 0) == (pool.kw == 0), "bad pool size");
  check(
      pool.sh >= 1 && pool.sw >= 1 && pool.dh >= 1 && pool.dw >= 1 && pool.ph >= 0 && pool.pw >= 0,
      "bad pool stride, dilation or padding");
  check(pool.kh || (p.OH == p.H && p.OW == p.W), "without pooling the sizes must agree");
  check(p.offset_bytes == 4 || pool.kh * pool.kw <= 255, "offsets of one byte hold 255 places");
}

inline void check_backward_params(const EpilogueParams& p) {
  check_params(p);
  check(p.r.data || !(p.relu || p.lrn.size), "r must be given");
  check(p.offsets.data || !p.pool.kh, "offsets must be given");
}

}  // namespace fastcnn
