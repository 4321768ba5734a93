#include "epilogue.h"

#include "../check.h"
#include "instruction_sets.h"

namespace fastcnn::cpu {

void epilogue_forward(const EpilogueParams& p) {
  check_params(p);
  choose(p.kernel_set, p.threads).forward(p);
}

void epilogue_backward(const EpilogueParams& p) {
  check_backward_params(p);
  choose(p.kernel_set, p.threads).backward(p);
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

}  // namespace fastcnn::cpu
