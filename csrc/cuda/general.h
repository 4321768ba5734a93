// Kernels for every option, size and stride, one value a thread: what special.h does not take.
#pragma once

#include <cstdint>

#include "../params.h"
#include "runtime.h"

namespace fastcnn::cuda::general {

void forward(const EpilogueParams& p, cudaStream_t stream);

// sums: for each channel parts(p) doubles, or null where no bias gradient is wanted.
void backward(const EpilogueParams& p, cudaStream_t stream, double* sums);

int64_t parts(const EpilogueParams& p);

}  // namespace fastcnn::cuda::general
