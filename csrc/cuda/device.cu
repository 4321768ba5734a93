#include "device.h"

#include "runtime.h"

namespace fastcnn::cuda {

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  return count;
}

std::string architectures() {
  std::string text;
  for (int arch : {__CUDA_ARCH_LIST__})
    text += (text.empty() ? "sm_" : " sm_") + std::to_string(arch / 10);
  return text;
}

std::string describe() {
  const std::string text = std::to_string(CUDART_VERSION / 1000) + "." +
                           std::to_string(CUDART_VERSION % 1000 / 10) + ", for " + architectures();
  try {
    return text + ", devices: " + std::to_string(device_count());
  } catch (const std::runtime_error& error) {
    return text + ", no device (" + error.what() + ")";
  }
}

}  // namespace fastcnn::cuda
