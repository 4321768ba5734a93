// CUDA's runtime, or in tests a host that acts as one: kernels are launched by FASTCNN_LAUNCH,
// which both understand.
#pragma once

#include <stdexcept>
#include <string>

#ifdef FASTCNN_CUDA_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
// shared: bytes of a block's FASTCNN_SHARED array.
#define FASTCNN_LAUNCH(kernel, grid, block, shared, stream, ...) \
  kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#define FASTCNN_SHARED(type, name) extern __shared__ type name[]
#endif

namespace fastcnn::cuda {

// Throws std::runtime_error with CUDA's name for the error; what: the call or the kernel.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next launch would be blamed for it
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(error) + ", " +
                           cudaGetErrorString(error));
}

// Makes a device the current one for as long as it lives. Where it is already nothing is set, since
// that alone would make a context.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device == before_) return;
    check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace fastcnn::cuda
