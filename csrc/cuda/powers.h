// d^-3/4 for positive d, by the special function unit: the fast kernels' exponent.
#pragma once

#include "runtime.h"

namespace fastcnn::cuda {

#ifndef FASTCNN_CUDA_ON_HOST
// Within 2^-22.9 and 2^-23 of the true value; a denormal d would count as 0.
__device__ inline float rsqrt_approx(float d) {
  float q;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(d));
  return q;
}
__device__ inline float sqrt_approx(float d) {
  float q;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(d));
  return q;
}
#endif

// d^-3/4 as q sqrt(q) with q = d^-1/2: exact enough for 16-bit tensors. In float one Newton step on
// d^3 y^4 = 1 takes back what both approximations lost, but where d is infinite and y right as 0.
template <class T>
__device__ float minus_three_quarters(float d) {
  const float q = rsqrt_approx(d);
  const float y = q * sqrt_approx(q);
  if constexpr (sizeof(T) < sizeof(float)) return y;
  const float root = d * y * y;
  const float error = 1 - d * root * root;
  return error == error ? y + 0.25f * y * error : y;
}

// 1 / d, from y = d^-3/4 in float; 16-bit tensors' d^-1/2 is at hand from that.
template <class T>
__device__ float inverse(float d, float y) {
  const float root = sizeof(T) < sizeof(float) ? rsqrt_approx(d) : d * y * y;
  return sizeof(T) < sizeof(float) || d < INFINITY ? root * root : 0;
}

}  // namespace fastcnn::cuda
