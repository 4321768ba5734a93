// Bugs of the kinds that kernels have, each behind a number, to see that running on the host shows
// them: planted BUG prints a checksum and CUDA's error; 0 is a kernel without a bug. With seven
// numbers, the grid, the block and the bytes of shared memory, it launches a kernel that does
// nothing.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/cuda/lanes.h"

using namespace fastcnn::cuda;

constexpr int kWidth = 64;

// out[i] = in[i - 1] + in[i] + in[i + 1], zeros outside; a block has a tile with a halo of one.
__global__ void sum_of_three(const float* in, int n, float* out, int bug) {
  __shared__ float tile[kWidth + 2];
  FASTCNN_SHARED(float, unwritten);
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), t = int(threadIdx.x) + 1;
  if (i < n || bug != 2) tile[t] = i < n ? in[i] : 0;  // 2: what another block left
  const int last = bug == 1 ? kWidth - 1 : kWidth;     // 1: a halo one short
  if (t == 1) tile[0] = i > 0 ? in[i - 1] : 0;
  if (t == last) tile[last + 1] = i + 1 < n ? in[i + 1] : 0;
  if (bug == 3 && t < 32) __syncthreads();  // 3: a barrier for some
  if (bug != 4) __syncthreads();            // 4: a missing barrier
  float sum = tile[t - 1] + tile[t] + tile[t + 1];
  if (bug == 5) sum += unwritten[t];                               // 5: shared memory as it comes
  if (i < n || bug == 6) out[i] = sum;                             // 6: an unguarded store
  if (bug == 7 && i < n) out[i] += in[i + 1];                      // 7: a read past the end
  if (bug == 8 && i < n && i > kWidth) out[i] += out[i - kWidth];  // 8: another block's result
  if (bug == 9 && i == 0)  // 9: 16 bytes that are not aligned
    out[i] += special::Pixels::load<4>(in + 1, 1, {0, 0, 4}, 0).at[0];
}

__global__ void nothing(int) {}

int main(int count, char** argv) {
  if (count == 8) {
    unsigned size[7];
    for (int i = 0; i < 7; ++i) size[i] = unsigned(std::strtoul(argv[i + 1], nullptr, 10));
    FASTCNN_LAUNCH(nothing, dim3(size[0], size[1], size[2]), dim3(size[3], size[4], size[5]),
                   size[6], 0, 0);
    std::puts(cudaGetErrorName(cudaGetLastError()));
    return 0;
  }
  const int bug = std::atoi(argv[1]), n = 1000;
  std::vector<float> in(n), out(n);
  for (int i = 0; i < n; ++i) in[i] = float(i % 17);
  FASTCNN_LAUNCH(sum_of_three, dim3((n + kWidth - 1) / kWidth), dim3(kWidth),
                 (kWidth + 1) * sizeof(float), 0, in.data(), n, out.data(), bug);
  double checksum = 0;
  for (int i = 0; i < n; ++i) checksum += out[i] * (i + 1);
  std::printf("%.17g %s\n", checksum, cudaGetErrorName(cudaGetLastError()));
}
