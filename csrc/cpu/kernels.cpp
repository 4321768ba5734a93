#include "kernels.h"

#include <cstdlib>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "chain.h"
#include "direct_backward.h"
#include "pixels_backward.h"
#include "planes_backward.h"
#include "pooled_backward.h"

namespace fastcnn::FASTCNN_ISA {

namespace {

enum class Fill { zeros, nothing };

// Memory that frees itself.
class Memory {
 public:
  Memory(int64_t bytes, Fill fill)
      : data_(static_cast<char*>(
            std::aligned_alloc(Scratch::kLine, round_up(bytes + 1, Scratch::kLine)))) {
    if (!data_) throw std::bad_alloc();
    if (fill == Fill::zeros) std::memset(data_, 0, bytes);
#ifdef __SANITIZE_ADDRESS__  // NaNs, so that a test fails by what was never written
    else
      std::memset(data_, 0xff, bytes);
#endif
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
};

// Runs run(worker, task) for every task on so many threads, each with a worker that make(scratch)
// makes, and scratch of its own: to fill that of a small network takes as long as a layer.
template <class Make, class Run>
void run_tasks(int threads, Fill fill, Make make, Run run) {
  Scratch measure(nullptr);
  const int64_t tasks = make(measure).tasks();
  threads = int(clamp(threads, 1, std::max<int64_t>(1, tasks)));
  const Memory memory(threads * measure.used(), fill);
  const auto work = [&](int thread, auto each) {
    Scratch scratch(memory.data() + thread * measure.used());
    auto worker = make(scratch);
    each([&](int64_t task) { run(worker, task); });
  };
  if (threads == 1)
    return work(0, [&](auto run) {
      for (int64_t task = 0; task < tasks; ++task) run(task);
    });
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    work(thread, [&](auto run) {
#pragma omp for schedule(static)
      for (int64_t task = 0; task < tasks; ++task) run(task);
    });
  }
}

// An epilogue's tasks. In backward, task i leaves its share of the bias gradient in sums[i * C ..].
template <class Worker>
void run_epilogue(const EpilogueParams& p, double* sums) {
  run_tasks(
      p.threads, Fill::zeros, [&](Scratch& scratch) { return Worker(p, scratch); },
      [&](Worker& worker, int64_t task) { worker.run(task, sums ? sums + task * p.C : nullptr); });
}

template <class Worker, class T>
void run_backward(const EpilogueParams& p) {
  if (!p.bias) return run_epilogue<Worker>(p, nullptr);
  Scratch measure(nullptr);
  const int64_t tasks = Worker(p, measure).tasks();
  const Memory memory(tasks * p.C * int64_t(sizeof(double)), Fill::zeros);
  double* sums = reinterpret_cast<double*>(memory.data());
  run_epilogue<Worker>(p, sums);
  for (int64_t c = 0; c < p.C; ++c) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += sums[task * p.C + c];
    static_cast<T*>(p.bias)[c] = T::put(typename T::Acc(sum));
  }
}

// Calls run with the element type of p as its argument.
template <class Run>
void with_type(const EpilogueParams& p, Run run) {
  switch (p.dtype) {
    case Dtype::f32:
      return run(F32{});
    case Dtype::f64:
      return run(F64{});
    case Dtype::f16:
      return run(F16{});
    case Dtype::bf16:
      return run(BF16{});
  }
}

// Dense layers one by one, so that threads share the weights, which are far more than the images.
void denses_forward(const NetworkParams& p) {
  int64_t most = 0;
  for (const DenseParams& layer : p.denses) most = std::max(most, layer.outputs);
  const std::unique_ptr<float[]> buffers(new float[2 * p.N * most]);
  const float* from = static_cast<const float*>(p.x);
  for (size_t i = 0; i < p.denses.size(); ++i) {
    const bool last = i + 1 == p.denses.size();
    float* to = last ? static_cast<float*>(p.y) : buffers.get() + i % 2 * p.N * most;
    run_tasks(
        p.threads, Fill::nothing,
        [&](Scratch&) { return DenseForward(p.denses[i], from, to, p.N); },
        [](DenseForward& worker, int64_t task) { worker.run(task); });
    from = to;
  }
}

}  // namespace

void forward(const EpilogueParams& p) {
  with_type(p, [&](auto type) {
    using T = decltype(type);
    p.channels_last ? run_epilogue<PixelsForward<T>>(p, nullptr)
                    : run_epilogue<PlanesForward<T>>(p, nullptr);
  });
}

void backward(const EpilogueParams& p) {
  with_type(p, [&](auto type) {
    using T = decltype(type);
    p.channels_last ? run_backward<PixelsBackward<T>, T>(p) : run_backward<PlanesBackward<T>, T>(p);
  });
}

// float64 has no direct convolution: check_convolution refuses it.
void convolution_forward(const ConvParams& p) {
  with_type(p.after, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, F64>) {
      const Direct direct(p);
      const std::unique_ptr<float[]> packed(new float[direct.packed_size()]);
      float* weights = packed.get();
      direct.pack<T>(weights);
      run_tasks(
          p.after.threads, Fill::nothing,
          [&](Scratch& scratch) { return DirectForward<T>(p, weights, scratch); },
          [](DirectForward<T>& worker, int64_t task) { worker.run(task); });
    }
  });
}

void convolution_backward(const ConvParams& p) {
  with_type(p.after, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, F64>) {
      const bool pooled = p.after.pool.kh > 0;
      const Gradients<T> gradients(p, !pooled);
      const auto run = [&](auto make) {
        run_tasks(p.after.threads, Fill::zeros, make,
                  [](auto& worker, int64_t task) { worker.run(task); });
      };
      if (pooled) {
        const Windows<T> windows(p);
        run([&](Scratch& s) { return PooledBackward<T>(windows, gradients, s); });
      } else {
        const std::vector<float> weights =
            p.grad_x.data ? packed_turned<T>(p) : std::vector<float>();
        run([&](Scratch& s) { return DirectBackward<T>(p, gradients, weights, s); });
      }
      gradients.write();
    }
  });
}

void network_forward(const NetworkParams& p) {
  if (p.convolutions.empty()) return denses_forward(p);
  const PackedWeights packed(p);
  run_tasks(
      p.threads, Fill::nothing, [&](Scratch& scratch) { return ChainForward(p, packed, scratch); },
      [](ChainForward& worker, int64_t task) { worker.run(task); });
}

}  // namespace fastcnn::FASTCNN_ISA
