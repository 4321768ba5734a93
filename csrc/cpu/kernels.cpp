#include "kernels.h"

#include <cstdlib>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "pixels.h"
#include "planes.h"

namespace fastcnn::FASTCNN_ISA {

namespace {

// Zeroed memory that frees itself.
class Memory {
 public:
  explicit Memory(int64_t bytes)
      : data_(static_cast<char*>(
            std::aligned_alloc(Scratch::kLine, round_up(bytes + 1, Scratch::kLine)))) {
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  ~Memory() { std::free(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
};

// Runs every task of a Worker on p.threads threads, each with scratch of its own. In backward, task
// i leaves its share of the bias gradient in sums[i * C ..].
template <class Worker>
void run_tasks(const EpilogueParams& p, double* sums) {
  Scratch measure(nullptr);
  const int64_t tasks = Worker(p, measure).tasks();
  const int threads = int(clamp(p.threads, 1, std::max<int64_t>(1, tasks)));
  const Memory memory(threads * measure.used());
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    Scratch scratch(memory.data() + omp_get_thread_num() * measure.used());
#else
    Scratch scratch(memory.data());
#endif
    Worker worker(p, scratch);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task)
      worker.run(task, sums ? sums + task * p.C : nullptr);
  }
}

template <class Worker, class T>
void run_backward(const EpilogueParams& p) {
  if (!p.bias) return run_tasks<Worker>(p, nullptr);
  Scratch measure(nullptr);
  const int64_t tasks = Worker(p, measure).tasks();
  const Memory memory(tasks * p.C * int64_t(sizeof(double)));
  double* sums = reinterpret_cast<double*>(memory.data());
  run_tasks<Worker>(p, sums);
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

}  // namespace

void forward(const EpilogueParams& p) {
  with_type(p, [&](auto type) {
    using T = decltype(type);
    p.channels_last ? run_tasks<PixelsForward<T>>(p, nullptr)
                    : run_tasks<PlanesForward<T>>(p, nullptr);
  });
}

void backward(const EpilogueParams& p) {
  with_type(p, [&](auto type) {
    using T = decltype(type);
    p.channels_last ? run_backward<PixelsBackward<T>, T>(p) : run_backward<PlanesBackward<T>, T>(p);
  });
}

}  // namespace fastcnn::FASTCNN_ISA
