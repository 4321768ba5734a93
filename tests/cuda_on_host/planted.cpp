// Bugs of the kinds that kernels have, each behind a number, to see that running on the host shows
// them: planted BUG prints a checksum; 0 is a kernel without a bug.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda_on_host.h"

using namespace fastcnn::cuda;

constexpr int kThreads = 64;

// out[i] = in[i - 1] + in[i] + in[i + 1], zeros outside; a block has a tile with a halo of one.
__global__ void sum_of_three(const float* in, int n, float* out, int bug) {
  __shared__ float tile[kThreads + 2];
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x), t = int(threadIdx.x) + 1;
  tile[t] = i < n ? in[i] : 0;
  const int last = bug == 1 ? kThreads - 1 : kThreads;  // 1: a halo one short
  if (t == 1) tile[0] = i > 0 ? in[i - 1] : 0;
  if (t == last) tile[last + 1] = i + 1 < n ? in[i + 1] : 0;
  if (bug != 2) __syncthreads();  // 2: a missing barrier
  const float sum = tile[t - 1] + tile[t] + tile[t + 1];
  if (i < n || bug == 3) out[i] = sum;         // 3: an unguarded store
  if (bug == 4 && i < n) out[i] += in[i + 1];  // 4: a read past the end
}

int main(int, char** argv) {
  const int bug = std::atoi(argv[1]), n = 1000;
  std::vector<float> in(n), out(n);
  for (int i = 0; i < n; ++i) in[i] = float(i % 17);
  FASTCNN_LAUNCH(sum_of_three, dim3((n + kThreads - 1) / kThreads), dim3(kThreads), 0, 0, in.data(),
                 n, out.data(), bug);
  double checksum = 0;
  for (int i = 0; i < n; ++i) checksum += out[i] * (i + 1);
  std::printf("%.17g\n", checksum);
}
