#include "space_to_depth.h"

#include "../check.h"
#include "runtime.h"

namespace fastcnn::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kVector = 16;  // bytes of the largest store

constexpr int least(int a, int b) { return a < b ? a : b; }

template <int kBytes>
struct alignas(kBytes) Vector {
  uint32_t words[kBytes / 4];
};

// Rows of a square in one channel, which in channels_last lie side by side in y. kSide 0: any side,
// of which it is one element.
template <class T, int kSide>
struct Part {
  static constexpr int kColumns = kSide ? kSide : 1;
  static constexpr int kRow = kColumns * int(sizeof(T));
  static constexpr int kRows = kRow < kVector ? least(kVector / kRow, kColumns) : 1;
  using V = Vector<least(kVector, kRows* kRow)>;
  T values[kRows][kColumns];

  __device__ void store(T* to) const {
    if constexpr (kSide == 0) {
      *to = values[0][0];
    } else {
      V vectors[sizeof values / sizeof(V)];
      memcpy(vectors, values, sizeof values);
#pragma unroll
      for (size_t v = 0; v < sizeof values / sizeof(V); ++v)
        reinterpret_cast<V*>(to)[v] = vectors[v];
    }
  }
};

// A block has a row of outputs, a thread a part of one at a time.
template <class T, int kSide, bool kLast>
__global__ void __launch_bounds__(kThreads) squares(SpaceToDepth p) {
  using Part = Part<T, kSide>;
  const int side = kSide ? kSide : int(p.side);
  const unsigned down = unsigned(side / Part::kRows), across = unsigned(side / Part::kColumns);
  const unsigned C = unsigned(p.C), H = unsigned(p.H), W = unsigned(p.W), OW = unsigned(p.OW);
  const int64_t n = blockIdx.x / unsigned(p.OH), oh = blockIdx.x % unsigned(p.OH);
  const int64_t square = side * side, plane = p.OH * OW;
  const auto* x = static_cast<const T*>(p.x.data) + n * p.x.n;
  auto* y = static_cast<T*>(p.y) +
            (kLast ? (n * p.OH + oh) * OW * C * square : n * C * square * plane + oh * OW);

  for (unsigned part = threadIdx.x; part < C * down * across * OW; part += kThreads) {
    const unsigned rest = kLast ? part : part / OW;
    const int j = int(rest % across) * Part::kColumns, i = int(rest / across % down) * Part::kRows;
    const unsigned channel = rest / across / down;
    const unsigned c = kLast ? channel % C : channel, ow = kLast ? channel / C : part % OW;
    const int h = int(oh) * side + i - int(p.top), w = int(ow) * side + j - int(p.left);
    const T* row = x + (c * p.x.c + h * p.x.h + w * p.x.w);
    Part read;
#pragma unroll
    for (int a = 0; a < Part::kRows; ++a, row += p.x.h) {
      const T* from = row;
#pragma unroll
      for (int b = 0; b < Part::kColumns; ++b, from += p.x.w)
        read.values[a][b] = unsigned(h + a) < H && unsigned(w + b) < W ? *from : T(0);
    }
    const unsigned map = (c * side + i) * side + j;
    if (kLast) {
      read.store(y + (ow * C * unsigned(square) + map));
    } else {
      T* to = y + (map * plane + ow);
#pragma unroll
      for (int a = 0; a < Part::kRows; ++a)
#pragma unroll
        for (int b = 0; b < Part::kColumns; ++b) to[(a * side + b) * plane] = read.values[a][b];
    }
  }
}

template <class T, int kSide>
void launch(const SpaceToDepth& p, cudaStream_t stream) {
  const dim3 rows(unsigned(p.N * p.OH));
  if (p.channels_last)
    FASTCNN_LAUNCH((squares<T, kSide, true>), rows, dim3(kThreads), 0, stream, p);
  else
    FASTCNN_LAUNCH((squares<T, kSide, false>), rows, dim3(kThreads), 0, stream, p);
  check(cudaGetLastError(), "fastcnn::cuda::squares");
}

template <class T>
void launch(const SpaceToDepth& p, cudaStream_t stream) {
  if (p.side == 4) return launch<T, 4>(p, stream);  // AlexNet's
  if (p.side == 2) return launch<T, 2>(p, stream);  // ResNet's, ZFNet's
  launch<T, 0>(p, stream);
}

}  // namespace

void space_to_depth(const SpaceToDepth& p, int device, uintptr_t stream) {
  const int64_t most = int64_t(1) << 31;
  fastcnn::check(p.x.data && p.y, "x and y must be given");
  fastcnn::check(reinterpret_cast<uintptr_t>(p.y) % kVector == 0, "y must be aligned");
  fastcnn::check(p.side >= 1 && p.N * p.OH < most && p.C * p.side * p.side * p.OW < most &&
                     p.OH * p.side < most && p.OW * p.side < most,
                 "space to depth: sizes must fit in 32 bits");
  use(device);
  const auto on = reinterpret_cast<cudaStream_t>(stream);
  if (p.bytes == 2) return launch<uint16_t>(p, on);
  if (p.bytes == 4) return launch<uint32_t>(p, on);
  fastcnn::check(p.bytes == 8, "elements must have 2, 4 or 8 bytes");
  launch<uint64_t>(p, on);
}

}  // namespace fastcnn::cuda
