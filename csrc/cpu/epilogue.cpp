#include "epilogue.h"

#include "../check.h"
#include "kernels.h"

namespace fastcnn::cpu {

namespace {

struct Kernels {
  const char* name;
  void (*forward)(const EpilogueParams&);
  void (*backward)(const EpilogueParams&);
};

// Those that this processor runs, the best last.
std::vector<Kernels> available() {
  std::vector<Kernels> all{{"baseline", &baseline::forward, &baseline::backward}};
#ifdef FASTCNN_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx2) all.push_back({"avx2", &avx2::forward, &avx2::backward});
  if (has_avx512) all.push_back({"avx512", &avx512::forward, &avx512::backward});
#endif
  return all;
}

const std::vector<Kernels>& kernels() {
  static const std::vector<Kernels> found = available();
  return found;
}

const Kernels& choose(const EpilogueParams& p) {
  check(p.threads >= 1, "threads must be at least 1");
  check(p.variant < int64_t(kernels().size()), "variant: there is no such instruction set here");
  return p.variant < 0 ? kernels().back() : kernels()[p.variant];
}

}  // namespace

void epilogue_forward(const EpilogueParams& p) {
  check_params(p);
  choose(p).forward(p);
}

void epilogue_backward(const EpilogueParams& p) {
  check_backward_params(p);
  choose(p).backward(p);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels& k : kernels()) names.push_back(k.name);
  return names;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace fastcnn::cpu
