// Element types: how a value gets in and out of a tensor, and in what it is computed.
#pragma once

#include <cstdint>
#include <cstring>

#include "../params.h"
#include "runtime.h"

namespace fastcnn::cuda {

template <class To, class From>
__device__ To bits(const From& from) {
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof to);
  return to;
}

template <class T>
struct Element {  // float and double
  using Acc = T;
  static __device__ T get(T x) { return x; }
  static __device__ T put(T a) { return a; }
};

template <>
struct Element<__half> {
  using Acc = float;
  using Pair = __half2;
  static __device__ float get(__half x) { return __half2float(x); }
  static __device__ __half put(float a) { return __float2half_rn(a); }
  static __device__ float2 get_two(uint32_t x) { return __half22float2(bits<Pair>(x)); }
  static __device__ Pair put_two(float a, float b) { return __floats2half2_rn(a, b); }
};

template <>
struct Element<__nv_bfloat16> {
  using Acc = float;
  using Pair = __nv_bfloat162;
  static __device__ float get(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 put(float a) { return __float2bfloat16_rn(a); }
  static __device__ float2
  get_two(uint32_t x) {  // an instruction each, where CUDA's own takes more
    return {bits<float>(x << 16), bits<float>(x & 0xffff0000u)};
  }
  static __device__ Pair put_two(float a, float b) { return __floats2bfloat162_rn(a, b); }
};

// The larger, NaN if either is.
__device__ inline float max_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
#else
  return a > b || a != a ? a : b;
#endif
}

// Calls run with a null pointer to p's element type.
template <class Run>
void with_type(const EpilogueParams& p, Run run) {
  switch (p.dtype) {
    case Dtype::f32:
      return run(static_cast<float*>(nullptr));
    case Dtype::f64:
      return run(static_cast<double*>(nullptr));
    case Dtype::f16:
      return run(static_cast<__half*>(nullptr));
    case Dtype::bf16:
      return run(static_cast<__nv_bfloat16*>(nullptr));
  }
}

}  // namespace fastcnn::cuda
