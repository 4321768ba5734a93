// Which of the fast kernels runs.
#pragma once

#include <type_traits>

#include "lanes.h"
#include "special.h"

namespace fastcnn::cuda::special {

// Calls run with a null pointer to the element type, the layout, whether there is an LRN, and the
// width of the pooling window, 0 for none: constants by which kernels are compiled.
template <class Run>
void select(const EpilogueParams& p, Run run) {
  const auto with_stages = [&](auto* type, auto layout) {
    constexpr std::true_type with_lrn;
    constexpr std::false_type without;
    using std::integral_constant;
    if (p.lrn.size)
      return p.pool.kh ? run(type, layout, with_lrn, integral_constant<int, 3>())
                       : run(type, layout, with_lrn, integral_constant<int, 0>());
    if (p.pool.kh == 3) return run(type, layout, without, integral_constant<int, 3>());
    if (p.pool.kh == 2) return run(type, layout, without, integral_constant<int, 2>());
    return run(type, layout, without, integral_constant<int, 0>());
  };
  with_type(p, [&](auto* type) {
    if constexpr (!std::is_same_v<decltype(type), double*>)
      p.channels_last ? with_stages(type, Pixels()) : with_stages(type, Planes());
  });
}

}  // namespace fastcnn::cuda::special
