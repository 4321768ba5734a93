// A host that acts as a CUDA device, so that kernels run under a host's sanitizers: the blocks of a
// grid one after the other, the threads of a block as fibers that change over at barriers. Between
// barriers a fiber runs alone, so a race shows as a result that depends on the fibers' order: run
// in several, and ask for the same bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <ucontext.h>
#include <vector_types.h>

#include <algorithm>
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

// The order of a block's threads between two barriers, from the environment.
enum class Order { forward, backward, shuffled };
inline Order order() {
  const char* name = std::getenv("FASTCNN_THREAD_ORDER");
  if (!name) return Order::forward;
  return name[0] == 'b' ? Order::backward : name[0] == 's' ? Order::shuffled : Order::forward;
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

  // From within: back to whoever resumed it.
  void pause() { change(&context_, &caller_, caller_stack_, caller_size_); }

  bool done() const { return done_; }

  static inline Fiber* current = nullptr;

 private:
  static constexpr size_t kStack = 256 * 1024;

  static void run(unsigned high, unsigned low) {
    auto* fiber = reinterpret_cast<Fiber*>(uintptr_t(high) << 32 | low);
    fiber->arrive(nullptr);
    (*fiber->body_)();
    fiber->done_ = true;
    fiber->pause();
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
  ucontext_t context_{}, caller_{};
  std::unique_ptr<char[]> stack_{new char[kStack]};
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
};

inline void __syncthreads() { Fiber::current->pause(); }

inline void run_block(const std::function<void()>& body, std::vector<Fiber>& fibers) {
  std::vector<unsigned> turns(fibers.size());
  std::iota(turns.begin(), turns.end(), 0u);
  if (order() == Order::backward) std::reverse(turns.begin(), turns.end());
  std::mt19937 random(blockIdx.x + 1);
  for (Fiber& fiber : fibers) fiber.start(body);
  for (bool running = true; running;) {
    if (order() == Order::shuffled) std::shuffle(turns.begin(), turns.end(), random);
    running = false;
    for (const unsigned t : turns) {
      if (fibers[t].done()) continue;
      threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
      fibers[t].resume();
      running |= !fibers[t].done();
    }
  }
}

inline void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
  static std::vector<Fiber> fibers;
  if (fibers.size() != size_t(block.x) * block.y * block.z)
    fibers = std::vector<Fiber>(size_t(block.x) * block.y * block.z);
  gridDim = grid, blockDim = block;
  shared_memory.reset(new char[shared]);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(body, fibers);
      }
}

}  // namespace fastcnn::cuda
