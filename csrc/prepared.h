// A call of a module that was checked once. As long as everything that the checks looked at is the
// same object, and the tensors are laid out as they were, one call into the kernels does it.
// Weights are read where they lie, at every call, so none can be stale.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <utility>
#include <vector>

#include "params.h"
#include "watch.h"

namespace fastcnn {

// torch's functions and what they must return for a call to go straight to its kernel. They come
// from Python, so that nothing here is tied to a version's ABI.
struct Torch {
  py::object tensor;  // the class
  Exchange exchange;
  py::object keys, included, excluded;  // the dispatch keys of a tensor and of this thread
  py::object known;  // a set: (the first two together, the third) that leave nothing to dispatch
  py::object is_grad_enabled, get_num_threads, empty;
  std::vector<std::pair<py::object, py::object>> state;  // functions, and what they must return
  Names names;
};

class Prepared {
 public:
  Prepared(const Torch& torch, py::object input);  // one like those that it will take

  Watch watch;

  // Layers, in order; weight, bias: numbers of the watch's tensors, bias -1 for none.
  void convolution(const ConvParams& params, int weight, int bias);
  void dense(const DenseParams& params, int weight, int bias);
  void epilogue(const EpilogueParams& params);

  // Arguments for Torch::empty, and the names of the last ones; more threads are not worth waking.
  void output(py::tuple empty, py::tuple names, int threads);

  // The output; None where this call has to be checked, False where all have to be from now on.
  py::object operator()(py::handle input) const;

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  bool dispatches_nothing(py::handle input) const;
  void run(const void* x, const std::vector<const void*>& weights, void* y, int threads) const;

  const Torch& torch_;
  py::object keys_;  // the input's
  Layout layout_;
  py::tuple empty_, names_;
  int threads_ = 1;
  NetworkParams network_;
  std::optional<EpilogueParams> epilogue_;
  std::vector<std::pair<int, int>> weights_;  // of each layer
};

}  // namespace fastcnn
