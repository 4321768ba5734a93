// An epilogue's arguments: plain pointers, sizes and strides, the same for every device.
#pragma once

#include <cstdint>
#include <vector>

namespace fastcnn {

enum class Dtype : int { f32, f16, bf16, f64 };

// (N, C, H, W): the first element and the strides in elements; data is null where there is none.
struct Tensor {
  void* data = nullptr;
  int64_t n = 0, c = 0, h = 0, w = 0;
};

// o = r * (k + alpha/size * sum r^2)^-beta over size channels of one of groups; size 0: no LRN.
struct Lrn {
  int64_t size = 0, groups = 1;
  double alpha = 0, beta = 0, k = 0;
};

// Rows, then columns. kh 0: no pooling. first: before the LRN.
struct Pool {
  int64_t kh = 0, kw = 0, sh = 1, sw = 1, ph = 0, pw = 0, dh = 1, dw = 1;
  bool first = false;
};

// The argmax of a window that has no gradient to pass on, which is 255 in uint8_t: its maximum was
// cut by the ReLU just before, or it has no place inside the map.
constexpr int32_t kNoPlace = -1;

struct EpilogueParams {
  Dtype dtype = Dtype::f32;
  int64_t N = 0, C = 0, H = 0, W = 0;  // of the input
  int64_t OH = 0, OW = 0;              // of the output
  bool channels_last = false;          // layout of the tensors that are written
  bool relu = false;
  Lrn lrn;
  Pool pool;
  Tensor x;       // the input; in backward its gradient
  Tensor y;       // the output; in backward its gradient
  Tensor r;       // what backward needs: the LRN's input, else the output if a ReLU comes last
  Tensor argmax;  // each pooled value's place in its window, row-major
  int64_t argmax_bytes = 1;
  void* bias = nullptr;          // (C,); in backward its gradient
  const void* r_bias = nullptr;  // (C,); in backward on a GPU: r is the LRN's input without it
  int threads = 1;
  int kernel_set = -1;  // instruction set; on a GPU general (0) or special (1); -1: the best
};

// A convolution of C channels before an epilogue without LRN. Rows, then columns; padding has a top
// and a left, and at the bottom and right what the output's size asks for.
struct ConvParams {
  EpilogueParams after;  // of the convolution's output
  int64_t C = 0, H = 0, W = 0;
  int64_t kh = 1, kw = 1, sh = 1, sw = 1, top = 0, left = 0, dh = 1, dw = 1, groups = 1;
  Tensor x;
  Tensor weight;  // (after.C, C / groups, kh, kw)
  // In backward, where after.y is the gradient and after.r the output: null where not needed.
  Tensor grad_x, grad_weight;
  void* grad_bias = nullptr;
};

// y = x weight^T + bias, then a ReLU; weight: (outputs, inputs), dense. float32.
struct DenseParams {
  int64_t inputs = 0, outputs = 0;
  bool relu = false;
  const void *weight = nullptr, *bias = nullptr;
};

// Convolutions, then dense layers, either may be none; float32, NCHW. In the convolutions N and
// the data of x and y don't count.
struct NetworkParams {
  int64_t N = 0;
  std::vector<ConvParams> convolutions;
  std::vector<DenseParams> denses;
  const void* x = nullptr;  // dense
  void* y = nullptr;        // (N, outputs) or (N, C, H, W), dense
  int threads = 1;
};

}  // namespace fastcnn
