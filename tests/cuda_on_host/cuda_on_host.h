// A host that acts as a CUDA device, so that kernels run under a host's sanitizers: the blocks of a
// grid one after the other, the threads of a block as fibers that change over at barriers. A block
// runs alone, and between barriers a fiber does, so a race shows as a result that depends on their
// order: run in several, and ask for the same bits. What a GPU refuses is refused.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <ucontext.h>
#include <vector_types.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block at a time
#define __launch_bounds__(...)

#define FASTCNN_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ((void)(stream), ::fastcnn::cuda::launch(grid, block, shared, [&] { kernel(__VA_ARGS__); }))
#define FASTCNN_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::fastcnn::cuda::shared_memory.get())

namespace fastcnn::cuda {

using std::max, std::min;

// What CUDA's runtime, in device.cpp, knows of a host's thread.
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local int current_device = 0, launched_on = -1;

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline std::unique_ptr<char[]>
    shared_memory;  // of the exact size, so that a step over its end shows

// As far from the true value as the GPU's may be, now above and now below.
inline float off_by(float x, double most) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return float(x * (1 + (bits * 2654435761u >> 31 ? most : -most)));
}
inline float rsqrt_approx(float d) { return off_by(1 / std::sqrt(d), std::exp2(-22.9)); }
inline float sqrt_approx(float d) { return off_by(std::sqrt(d), std::exp2(-23.0)); }

// 0 to n - 1, in the order in which blocks, or threads between two barriers, take their turns: any
// on a GPU, here the environment's.
inline std::vector<unsigned> turns(size_t n, std::mt19937& random) {
  std::vector<unsigned> order(n);
  std::iota(order.begin(), order.end(), 0u);
  const char* name = std::getenv("FASTCNN_HOST_ORDER");
  if (name && name[0] == 'b') std::reverse(order.begin(), order.end());          // backward
  if (name && name[0] == 's') std::shuffle(order.begin(), order.end(), random);  // shuffled
  return order;
}

inline uint3 place(unsigned i, dim3 size) {
  return {i % size.x, i / size.x % size.y, i / size.x / size.y};
}

// A thread's stack and where it stopped.
class Fiber {
 public:
  void start(const std::function<void()>& body) {
    body_ = &body;
    done_ = false;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::run), 2, unsigned(self >> 32),
                unsigned(self));
  }

  // On until the next barrier, or the end.
  void resume() {
    current = this;
    change(&caller_, &context_, stack_.get(), kStack);
  }

  // From within: back to whoever resumed it, until all are at this barrier.
  void wait(int barrier) {
    barrier_ = barrier;
    change(&context_, &caller_, caller_stack_, caller_size_);
  }

  bool done() const { return done_; }
  int barrier() const { return barrier_; }

  static inline Fiber* current = nullptr;

 private:
  static constexpr size_t kStack = 256 * 1024;

  static void run(unsigned high, unsigned low) {
    auto* fiber = reinterpret_cast<Fiber*>(uintptr_t(high) << 32 | low);
    fiber->arrive(nullptr);
    (*fiber->body_)();
    fiber->done_ = true;
    fiber->wait(0);
  }

  // AddressSanitizer must know whose stack is in use.
  void change(ucontext_t* from, ucontext_t* to, const void* stack, size_t size) {
    void* fake = nullptr;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(done_ ? nullptr : &fake, stack, size);
#else
    (void)stack, (void)size;
#endif
    swapcontext(from, to);
    arrive(fake);
  }

  void arrive([[maybe_unused]] void* fake) {
#ifdef __SANITIZE_ADDRESS__
    const void* stack;
    size_t size;
    __sanitizer_finish_switch_fiber(fake, &stack, &size);
    if (stack != stack_.get()) caller_stack_ = stack, caller_size_ = size;
#endif
  }

  const std::function<void()>* body_ = nullptr;
  bool done_ = true;
  int barrier_ = 0;  // its line
  ucontext_t context_{}, caller_{};
  std::unique_ptr<char[]> stack_{new char[kStack]};
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
};

inline void __syncthreads(int line = __builtin_LINE()) { Fiber::current->wait(line); }

// Whether its threads all came to the same barriers, but for those that had ended (on which no GPU
// since sm_70 waits). On others, what follows is a hang or worse.
inline bool run_block(const std::function<void()>& body, std::vector<Fiber>& fibers,
                      std::mt19937& random) {
  for (Fiber& fiber : fibers) fiber.start(body);
  int barrier;
  do {
    barrier = 0;
    for (const unsigned t : turns(fibers.size(), random)) {
      if (fibers[t].done()) continue;
      threadIdx = place(t, blockDim);
      fibers[t].resume();
      if (fibers[t].done()) continue;
      if (barrier && barrier != fibers[t].barrier()) return false;
      barrier = fibers[t].barrier();
    }
  } while (barrier);
  return true;
}

// CUDA's error for what no GPU launches. More than 48 KB a kernel would have to ask for, by
// cudaFuncSetAttribute, as none here does. Not counted are __shared__ arrays, whose sizes a macro
// does not see: nvcc refuses more than 48 KB of those, docs/cuda_resources.md has them.
inline cudaError_t refusal(dim3 grid, dim3 block, size_t shared) {
  const auto within = [](dim3 size, unsigned x, unsigned y, unsigned z) {
    return size.x && size.y && size.z && size.x <= x && size.y <= y && size.z <= z;
  };
  if (!within(grid, INT_MAX, 65535, 65535) || !within(block, 1024, 1024, 64) ||
      block.x * block.y * block.z > 1024)
    return cudaErrorInvalidConfiguration;
  return shared > 48 << 10 ? cudaErrorInvalidValue : cudaSuccess;
}

inline void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
  if (const cudaError_t error = refusal(grid, block, shared)) {
    last_error = error;
    return;
  }
  launched_on = current_device;
  static std::vector<Fiber> fibers;
  const size_t threads = block.x * block.y * block.z;
  if (fibers.size() != threads) fibers = std::vector<Fiber>(threads);
  gridDim = grid, blockDim = block;
  shared_memory.reset(new char[shared]);
  std::mt19937 random(1);
  for (const unsigned b : turns(size_t(grid.x) * grid.y * grid.z, random)) {
    blockIdx = place(b, grid);
    std::memset(shared_memory.get(), 0xff, shared);  // NaNs, until something is written
    if (run_block(body, fibers, random)) continue;
    last_error = cudaErrorLaunchTimeout;
    fibers.clear();
    return;
  }
}

}  // namespace fastcnn::cuda
