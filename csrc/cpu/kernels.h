// The same kernels, once for each instruction set they are compiled for.
#pragma once

#include "../params.h"

namespace fastcnn {

#define FASTCNN_DECLARE(isa)                      \
  namespace isa {                                 \
  void forward(const EpilogueParams& p);          \
  void backward(const EpilogueParams& p);         \
  void convolution_forward(const ConvParams& p);  \
  void convolution_backward(const ConvParams& p); \
  void network_forward(const NetworkParams& p);   \
  }

FASTCNN_DECLARE(baseline)
#ifdef FASTCNN_X86
FASTCNN_DECLARE(avx2)
FASTCNN_DECLARE(avx512)
#endif

#undef FASTCNN_DECLARE

}  // namespace fastcnn
