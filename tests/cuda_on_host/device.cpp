// CUDA's runtime on a host, as far as it is used: two devices, and of errors a launch's and a wrong
// device's.
#include "../../csrc/cuda/device.h"

#include <utility>

#include "cuda_on_host.h"

using namespace fastcnn::cuda;

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= device_count()) return last_error = cudaErrorInvalidDevice;
  return current_device = device, cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchTimeout:
      return "cudaErrorLaunchTimeout";
    default:
      return "an error that no host gives";
  }
}

const char* cudaGetErrorString(cudaError_t) { return "on the host"; }

extern "C" cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) {
  return cudaSuccess;
}

namespace fastcnn::cuda {

int device_count() { return 2; }

std::string architectures() { return "none"; }

// What a test can ask for: where this thread is, and where it was when it last launched a kernel.
std::string describe() {
  return "kernels on the host, for tests; current device " + std::to_string(current_device) +
         ", last launch on " + std::to_string(launched_on);
}

}  // namespace fastcnn::cuda
