// Kernels for what networks use: LRN of 5 with beta 3/4, max pooling 3/2 and 2/2, any two of them,
// or bias and ReLU alone, in float and 16-bit types. general.h is for the rest.
#pragma once

#include <cstdint>

#include "../params.h"
#include "runtime.h"

namespace fastcnn::cuda::special {

// Whether these kernels can run it: options, and for channels_last whole vectors of 16 bytes.
bool fits(const EpilogueParams& p);

void forward(const EpilogueParams& p, cudaStream_t stream);

// sums: for each channel parts(p) doubles, or null where no bias gradient is wanted.
void backward(const EpilogueParams& p, cudaStream_t stream, double* sums);

int64_t parts(const EpilogueParams& p);

}  // namespace fastcnn::cuda::special
