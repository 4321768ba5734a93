// Element types: how a value gets in and out of a tensor, and in what it is computed.
#pragma once

#include "runtime.h"

namespace fastcnn::cuda {

template <class T>
struct Element {  // float and double
  using Acc = T;
  static __device__ T get(T x) { return x; }
  static __device__ T put(T a) { return a; }
};

template <>
struct Element<__half> {
  using Acc = float;
  static __device__ float get(__half x) { return __half2float(x); }
  static __device__ __half put(float a) { return __float2half_rn(a); }
};

template <>
struct Element<__nv_bfloat16> {
  using Acc = float;
  static __device__ float get(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 put(float a) { return __float2bfloat16_rn(a); }
};

}  // namespace fastcnn::cuda
