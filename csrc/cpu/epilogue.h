// The epilogue on the CPU: bias, ReLU, LRN and max pooling, forward and backward.
#pragma once

#include "../params.h"

namespace fastcnn::cpu {

// Throws std::invalid_argument for parameters that describe no epilogue.
void epilogue_forward(const EpilogueParams& p);
void epilogue_backward(const EpilogueParams& p);

bool has_openmp();

}  // namespace fastcnn::cpu
