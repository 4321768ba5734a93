#include "instruction_sets.h"

#include "../check.h"
#include "kernels.h"

namespace fastcnn::cpu {

namespace {

#define FASTCNN_KERNELS(isa)                                                                    \
  Kernels {                                                                                     \
    #isa, &isa::forward, &isa::backward, &isa::convolution_forward, &isa::convolution_backward, \
        &isa::network_forward                                                                   \
  }

// The best last.
std::vector<Kernels> available() {
  std::vector<Kernels> all{FASTCNN_KERNELS(baseline)};
#ifdef FASTCNN_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2) all.push_back(FASTCNN_KERNELS(avx2));
  if (has_avx512) all.push_back(FASTCNN_KERNELS(avx512));
#endif
  return all;
}

#undef FASTCNN_KERNELS

const std::vector<Kernels>& kernels() {
  static const std::vector<Kernels> found = available();
  return found;
}

}  // namespace

const Kernels& choose(int kernel_set, int threads) {
  check(threads >= 1, "threads must be at least 1");
  check(kernel_set < int(kernels().size()), "kernel_set: there is no such instruction set here");
  return kernel_set < 0 ? kernels().back() : kernels()[kernel_set];
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels& k : kernels()) names.push_back(k.name);
  return names;
}

}  // namespace fastcnn::cpu
