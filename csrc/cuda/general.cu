#include "general.h"

#include <type_traits>

#include "stages.h"

namespace fastcnn::cuda::general {

namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 65535;

int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// One output a thread, and where backward will want them one value of r.
template <class T>
__global__ void each_output(Stages<T> s) {
  const EpilogueParams& p = s.p;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const int64_t first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  const auto rectified = [&](Place at) { return s.rectified(p.x, p.bias, at); };
  const auto pooled = [&](Place at) { return s.largest(at, rectified).value; };
  const auto normalised = [&](Place at) { return s.normalised(at, rectified); };

  for (int64_t i = first; i < p.N * p.C * p.OH * p.OW; i += step) {
    const Place at = s.place(i, p.OH, p.OW);
    if (s.pool_first) {
      const auto best = s.largest(at, rectified);
      s.store_argmax(at, best);
      if (p.r.data) Stages<T>::store(p.r, at, best.value);
      Stages<T>::store(p.y, at, s.lrn ? s.normalised(at, pooled) : best.value);
    } else if (s.pool) {
      const auto best = s.largest(at, normalised);
      s.store_argmax(at, best);
      Stages<T>::store(p.y, at, best.value);
    } else {
      Stages<T>::store(p.y, at, s.lrn ? normalised(at) : rectified(at));
    }
  }
  if (!p.r.data || s.pool_first) return;
  for (int64_t i = first; i < p.N * p.C * p.H * p.W; i += step) {
    const Place at = s.place(i, p.H, p.W);
    Stages<T>::store(p.r, at, rectified(at));
  }
}

// One input a thread at a time. A block has a channel (x) and a part of its places (y), whose
// gradients it sums for the bias in sums[c * gridDim.y + part].
template <class T>
__global__ void each_input(Stages<T> s, double* sums) {
  using A = typename Stages<T>::A;
  __shared__ double shared[kThreads];
  const EpilogueParams& p = s.p;
  const auto given = [&](Place at) { return Stages<T>::load(p.y, at); };
  const auto after_pool = [&](Place at) { return s.pool ? s.unpooled(at, given) : given(at); };
  const auto at_pool = [&](Place at) { return s.through(at, given); };

  double sum = 0;
  const int64_t step = int64_t(gridDim.y) * blockDim.x;
  const int64_t first = int64_t(blockIdx.y) * blockDim.x + threadIdx.x;
  for (int64_t i = first; i < p.N * p.H * p.W; i += step) {
    const Place at{i / p.W / p.H, int64_t(blockIdx.x), i / p.W % p.H, i % p.W};
    const A g = s.pool_first ? s.unpooled(at, at_pool) : s.through(at, after_pool);
    Stages<T>::store(p.x, at, g);
    sum += double(g);
  }
  if (!sums) return;
  shared[threadIdx.x] = sum;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[int64_t(blockIdx.x) * gridDim.y + blockIdx.y] = shared[0];
}

}  // namespace

void forward(const EpilogueParams& p, cudaStream_t stream) {
  with_type(p, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t inputs = p.N * p.C * p.H * p.W, outputs = p.N * p.C * p.OH * p.OW;
    const int64_t values = inputs > outputs ? inputs : outputs;
    const int blocks = int(clamp((values + kThreads - 1) / kThreads, 1, kMostBlocks));
    FASTCNN_LAUNCH(each_output<T>, dim3(blocks), dim3(kThreads), 0, stream, Stages<T>(p));
    check(cudaGetLastError(), "fastcnn::cuda::general::each_output");
  });
}

int64_t parts(const EpilogueParams& p) { return clamp(p.N * p.H * p.W / (16 * kThreads), 1, 128); }

void backward(const EpilogueParams& p, cudaStream_t stream, double* sums) {
  with_type(p, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    FASTCNN_LAUNCH(each_input<T>, dim3(unsigned(p.C), unsigned(parts(p))), dim3(kThreads), 0,
                   stream, Stages<T>(p), sums);
    check(cudaGetLastError(), "fastcnn::cuda::general::each_input");
  });
}

}  // namespace fastcnn::cuda::general
