// The kernels that this processor runs, a set for each instruction set.
#pragma once

#include <string>
#include <vector>

#include "../params.h"

namespace fastcnn::cpu {

struct Kernels {
  const char* name;
  void (*forward)(const EpilogueParams&);
  void (*backward)(const EpilogueParams&);
  void (*convolution_forward)(const ConvParams&);
  void (*convolution_backward)(const ConvParams&);
  void (*network_forward)(const NetworkParams&);
};

// kernel_set: an index into instruction_sets(), or -1 for the best.
const Kernels& choose(int kernel_set, int threads);

std::vector<std::string> instruction_sets();  // that run here, the best last

}  // namespace fastcnn::cpu
