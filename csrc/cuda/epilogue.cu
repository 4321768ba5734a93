#include "epilogue.h"

#include <type_traits>

#include "../check.h"
#include "elements.h"
#include "general.h"
#include "special.h"

namespace fastcnn::cuda {

namespace {

constexpr int kAdders = 128;

bool special_runs(const EpilogueParams& p) {
  const bool fits = special::fits(p);
  fastcnn::check(p.kernel_set <= 1 && (p.kernel_set != 1 || fits),
                 "kernel_set: there are no such kernels for this");
  return fits && p.kernel_set != 0;
}

// The bias gradient of a channel, a block's, from its parts: each thread's in order, then by
// halves.
template <class T>
__global__ void add_parts(const double* sums, int64_t parts, T* bias) {
  __shared__ double shared[kAdders];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < parts; i += kAdders) sum += sums[blockIdx.x * parts + i];
  shared[threadIdx.x] = sum;
  for (int half = kAdders / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) bias[blockIdx.x] = Element<T>::put(typename Element<T>::Acc(shared[0]));
}

}  // namespace

bool runs_on(int device) {
  use(device);
  cudaFuncAttributes attributes;
  for (const void* kernel : kernels()) {
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
      cudaGetLastError();  // else the next launch would be blamed for it
      return false;
    }
    check(error, "cudaFuncGetAttributes");
  }
  return true;
}

bool is_special(const EpilogueParams& p) { return special::fits(p); }

void epilogue_forward(const EpilogueParams& p, int device, uintptr_t stream) {
  check_params(p);
  use(device);
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  special_runs(p) ? special::forward(p, on) : general::forward(p, on);
}

int64_t bias_parts(const EpilogueParams& p) {
  return special_runs(p) ? special::parts(p) : general::parts(p);
}

void epilogue_backward(const EpilogueParams& p, int device, uintptr_t stream,
                       uintptr_t partial_sums) {
  check_backward_params(p);
  use(device);
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  double* sums = p.bias ? reinterpret_cast<double*>(partial_sums) : nullptr;
  special_runs(p) ? special::backward(p, on, sums) : general::backward(p, on, sums);
  if (!sums) return;
  with_type(p, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    FASTCNN_LAUNCH(add_parts<T>, dim3(unsigned(p.C)), dim3(kAdders), 0, on, sums, bias_parts(p),
                   static_cast<T*>(p.bias));
    check(cudaGetLastError(), "fastcnn::cuda::add_parts");
  });
}

}  // namespace fastcnn::cuda
