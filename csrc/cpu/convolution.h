// The direct convolution with bias, ReLU and max pooling on the CPU, forward and backward, and
// small networks of such and of dense layers.
#pragma once

#include "../params.h"

namespace fastcnn::cpu {

// Throws std::invalid_argument for parameters that describe none.
void convolution_forward(const ConvParams& p);
void convolution_backward(const ConvParams& p);
void network_forward(const NetworkParams& p);

}  // namespace fastcnn::cpu
