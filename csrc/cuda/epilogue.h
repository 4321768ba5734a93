// The epilogue on a GPU: bias, ReLU, LRN and max pooling, forward and backward. Nothing is
// allocated or waited for; a launch that fails throws std::runtime_error with CUDA's name for the
// reason.
#pragma once

#include <cstdint>

#include "../params.h"

namespace fastcnn::cuda {

// Whether the extension has code for a device, which is loaded: a kernel that is loaded at its
// first launch can't be launched first in a stream's capture.
bool runs_on(int device);

// Whether the fast kernels take it, or the general ones must.
bool is_special(const EpilogueParams& p);

// device: the one that the tensors are on, which is left current; stream: a cudaStream_t of it.
void epilogue_forward(const EpilogueParams& p, int device, uintptr_t stream);

// partial_sums: with a bias, the address of bias_parts(p) doubles for each channel.
void epilogue_backward(const EpilogueParams& p, int device, uintptr_t stream,
                       uintptr_t partial_sums);

// In how many parts a channel's bias gradient is summed; by the sizes alone, so that the same bits
// come out every time.
int64_t bias_parts(const EpilogueParams& p);

}  // namespace fastcnn::cuda
