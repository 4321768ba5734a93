#include "convolution.h"

#include "../check.h"
#include "instruction_sets.h"

namespace fastcnn::cpu {

void convolution_forward(const ConvParams& p) {
  check_convolution(p);
  check(p.x.data && p.after.y.data, "x and y must be given");
  if (p.after.N) choose(p.after.kernel_set, p.after.threads).convolution_forward(p);
}

void convolution_backward(const ConvParams& p) {
  check_convolution(p);
  check(p.x.data && p.after.y.data, "x and y must be given");
  check_saved(p.after);
  choose(p.after.kernel_set, p.after.threads).convolution_backward(p);
}

void network_forward(const NetworkParams& p) {
  check(!p.convolutions.empty() || !p.denses.empty(), "a network must have layers");
  check(p.x && p.y, "x and y must be given");
  for (const ConvParams& layer : p.convolutions) check_convolution(layer);
  for (const DenseParams& layer : p.denses) check(layer.weight, "weight must be given");
  const int kernel_set = p.convolutions.empty() ? -1 : p.convolutions[0].after.kernel_set;
  if (p.N) choose(kernel_set, p.threads).network_forward(p);
}

}  // namespace fastcnn::cpu
