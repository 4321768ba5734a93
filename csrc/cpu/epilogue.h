// The epilogue on the CPU: bias, ReLU, LRN and max pooling, forward and backward.
#pragma once

#include "../params.h"

namespace fastcnn::cpu {

// Throws std::invalid_argument for parameters that describe no epilogue.
void epilogue_forward(const EpilogueParams& p);
void epilogue_backward(const EpilogueParams& p);

const char* instruction_set();  // what this processor runs: "avx512", "avx2" or "baseline"
bool has_openmp();

}  // namespace fastcnn::cpu
