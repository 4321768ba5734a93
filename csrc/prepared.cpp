#include "prepared.h"

#include <algorithm>

#include "check.h"
#include "cpu/convolution.h"
#include "cpu/epilogue.h"

namespace fastcnn {

namespace {

py::object raw(const Torch& torch, py::handle keys) {
  return call_method(keys, torch.names.raw_repr);
}

py::object keys_of(const Torch& torch, py::handle tensor) {
  PyObject* keys = PyObject_CallOneArg(torch.keys.ptr(), tensor.ptr());
  if (!keys) throw py::error_already_set();
  return raw(torch, py::reinterpret_steal<py::object>(keys));
}

}  // namespace

Prepared::Prepared(const Torch& torch, py::object input)
    : watch(torch.names, torch.exchange),
      torch_(torch),
      keys_(keys_of(torch, input)),
      layout_(torch.exchange, input) {
  network_.N = layout_.size(0);
}

void Prepared::output(py::tuple empty, py::tuple names, int threads) {
  empty_ = std::move(empty), names_ = std::move(names), threads_ = threads;
}

void Prepared::convolution(const ConvParams& params, int weight, int bias) {
  network_.convolutions.push_back(params);
  weights_.push_back({weight, bias});
}

void Prepared::dense(const DenseParams& params, int weight, int bias) {
  network_.denses.push_back(params);
  weights_.push_back({weight, bias});
}

void Prepared::epilogue(const EpilogueParams& params) { epilogue_ = params; }

bool Prepared::dispatches_nothing(py::handle input) const {
  for (const auto& [function, value] : torch_.state)
    if (!equal(call(function), value)) return false;
  const py::object keys = keys_of(torch_, input);
  if (!equal(keys, keys_)) return false;
  const py::tuple pair =
      py::make_tuple(keys | raw(torch_, call(torch_.included)), raw(torch_, call(torch_.excluded)));
  const int known = PySet_Contains(torch_.known.ptr(), pair.ptr());
  if (known < 0) throw py::error_already_set();
  return known;
}

py::object Prepared::operator()(py::handle input) const {
  if ((PyObject*)Py_TYPE(input.ptr()) != torch_.tensor.ptr()) return py::none();
  if (!dispatches_nothing(input)) return py::none();
  const void* const x = layout_.address(input);
  if (!x) return py::none();
  std::vector<const void*> weights;
  if (!watch.holds(weights)) return py::bool_(false);
  if (call(torch_.is_grad_enabled).ptr() == Py_True &&
      (attribute(input, torch_.names.requires_grad).ptr() == Py_True || watch.requires_grad()))
    return py::none();
  const int threads = std::min(threads_, py::cast<int>(call(torch_.get_num_threads)));
  std::vector<PyObject*> arguments;
  for (py::handle argument : empty_) arguments.push_back(argument.ptr());
  const size_t positional = arguments.size() - names_.size();
  PyObject* made = PyObject_Vectorcall(torch_.empty.ptr(), arguments.data(), positional,
                                       names_.size() ? names_.ptr() : nullptr);
  if (!made) throw py::error_already_set();
  py::object output = py::reinterpret_steal<py::object>(made);
  DLTensor y;
  check(torch_.exchange.look(output, y), "torch.empty returned no memory");
  run(x, weights, y.data, threads);
  return output;
}

void Prepared::run(const void* x, const std::vector<const void*>& data, void* y,
                   int threads) const {
  if (epilogue_) {
    EpilogueParams p = *epilogue_;
    p.x.data = const_cast<void*>(x), p.y.data = y, p.threads = threads;
    py::gil_scoped_release release;
    return cpu::epilogue_forward(p);
  }
  NetworkParams p = network_;
  p.x = x, p.y = y, p.threads = threads;
  auto weights = weights_.begin();
  const auto bias = [&](int number) { return number < 0 ? nullptr : data[number]; };
  for (ConvParams& layer : p.convolutions) {
    layer.weight.data = const_cast<void*>(data[weights->first]);
    layer.after.bias = const_cast<void*>(bias(weights++->second));
  }
  for (DenseParams& layer : p.denses) {
    layer.weight = data[weights->first];
    layer.bias = bias(weights++->second);
  }
  py::gil_scoped_release release;
  if (p.convolutions.size() != 1 || !p.denses.empty()) return cpu::network_forward(p);
  ConvParams& only = p.convolutions[0];
  only.x.data = const_cast<void*>(x), only.after.y.data = y, only.after.threads = threads;
  cpu::convolution_forward(only);
}

int Prepared::traverse(visitproc visit, void* arg) const { return watch.traverse(visit, arg); }

void Prepared::clear() { watch.clear(); }

}  // namespace fastcnn
