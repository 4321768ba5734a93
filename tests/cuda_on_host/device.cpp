// CUDA's runtime on a host, as far as it is used: one device, of which nothing goes wrong.
#include "../../csrc/cuda/device.h"

#include <cuda_runtime_api.h>

cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return ""; }
const char* cudaGetErrorString(cudaError_t) { return ""; }

extern "C" cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return cudaSuccess;
}

namespace fastcnn::cuda {

int device_count() { return 1; }

std::string architectures() { return "none"; }

std::string describe() { return "kernels on the host, for tests"; }

}  // namespace fastcnn::cuda
