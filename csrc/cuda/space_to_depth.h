// Zeros around an image and squares of its pixels as channels, in one copy.
#pragma once

#include <cstdint>

#include "../params.h"

namespace fastcnn::cuda {

// y[n, (c * side + i) * side + j, oh, ow] = x[n, c, oh * side + i - top, ow * side + j - left], and
// 0 where x has no such pixel.
struct SpaceToDepth {
  Tensor x;           // (N, C, H, W)
  void* y = nullptr;  // (N, C * side * side, OH, OW), dense, at a multiple of 16 bytes
  int64_t N = 0, C = 0, H = 0, W = 0, OH = 0, OW = 0;
  int64_t side = 1, top = 0, left = 0;
  int64_t bytes = 4;           // of an element: 2, 4 or 8
  bool channels_last = false;  // y's layout
};

// device and stream: as epilogue.h has them.
void space_to_depth(const SpaceToDepth& p, int device, uintptr_t stream);

}  // namespace fastcnn::cuda
