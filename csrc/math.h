// The formulas of the epilogue, once, for host and device.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define FASTCNN_HD __host__ __device__
#else
#define FASTCNN_HD
#endif

namespace fastcnn {

// The exponents with a formula of their own; any other goes through pow.
enum class Beta { three_quarters, half, one, other };

inline Beta kind_of(double beta) {
  if (beta == 0.75) return Beta::three_quarters;
  if (beta == 0.5) return Beta::half;
  if (beta == 1.0) return Beta::one;
  return Beta::other;
}

// d^-beta; for beta = 3/4, q sqrt(q) with q = 1/sqrt(d). Any other through double: rounded to
// float, beta alone would cost as much as all the rest.
template <Beta kind, class A>
FASTCNN_HD inline A inverse_power(A d, double beta) {
  if constexpr (kind == Beta::three_quarters) {
    const A q = A(1) / std::sqrt(d);
    return q * std::sqrt(q);
  } else if constexpr (kind == Beta::half) {
    return A(1) / std::sqrt(d);
  } else if constexpr (kind == Beta::one) {
    return A(1) / d;
  } else {
    return A(std::pow(double(d), -beta));
  }
}

}  // namespace fastcnn
