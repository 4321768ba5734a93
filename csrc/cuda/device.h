// The CUDA side's view of the machine. No torch, and no CUDA header: the bindings include this.
#pragma once

#include <string>

namespace fastcnn::cuda {

// Throws std::runtime_error with CUDA's name for the reason where the driver can't tell.
int device_count();

// The architectures that there is code for: "sm_80 sm_90".
std::string architectures();

// Runtime, compiled architectures and devices in one line; never throws for want of a GPU.
std::string describe();

}  // namespace fastcnn::cuda
