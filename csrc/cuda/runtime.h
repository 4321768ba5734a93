// CUDA's runtime, or in tests a host that acts as one: kernels are launched by FASTCNN_LAUNCH,
// which both understand.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#ifdef FASTCNN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// shared: bytes of a block's FASTCNN_SHARED array.
#define FASTCNN_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ((void)::fastcnn::cuda::known<kernel>, kernel<<<grid, block, shared, stream>>>(__VA_ARGS__))
#define FASTCNN_SHARED(type, name) extern __shared__ type name[]
#endif

namespace fastcnn::cuda {

// Every kernel that there is a launch of, known before the first is launched.
inline std::vector<const void*>& kernels() {
  static std::vector<const void*> all;
  return all;
}
template <auto kernel>
inline const bool known = (kernels().push_back(reinterpret_cast<const void*>(kernel)), true);

// Throws std::runtime_error with CUDA's name for the error; what: the call or the kernel.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would be blamed for it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

// Makes a device the current one. The caller, who has torch, has made it torch's for the length of
// the call and gives torch's back after it, which is the driver's again then: whatever this runtime
// of our own holds for current, each call says it anew.
inline void use(int device) { check(cudaSetDevice(device), "cudaSetDevice"); }

}  // namespace fastcnn::cuda
