// The module fastcnn._C: structs in, nothing out; errors arrive as ValueError or RuntimeError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <tuple>

#include "cpu/convolution.h"
#include "cpu/epilogue.h"
#include "cpu/instruction_sets.h"
#include "cpu/pages.h"
#include "params.h"
#include "prepared.h"
#ifdef FASTCNN_CUDA
#include "cuda/device.h"
#include "cuda/epilogue.h"
#include "cuda/space_to_depth.h"
#endif

namespace py = pybind11;
using namespace pybind11::literals;
using namespace fastcnn;

using Sizes = std::array<int64_t, 4>;                        // (N, C, H, W)
using Address = std::optional<std::pair<uintptr_t, Sizes>>;  // a tensor's data and strides

static Tensor tensor(const Address& address) {
  if (!address) return {};
  const auto [n, c, h, w] = address->second;
  return {reinterpret_cast<void*>(address->first), n, c, h, w};
}

// One call for all of it: setting an attribute each would take as long as a small tensor's
// epilogue.
static EpilogueParams make_params(
    Dtype dtype, bool channels_last, bool relu,
    const std::optional<std::tuple<int64_t, double, double, double, int64_t>>& lrn,
    const std::optional<std::array<int64_t, 8>>& pool, bool pool_first, const Sizes& input_size,
    const Sizes& output_size, const Address& x, const Address& y, const Address& r,
    const Address& argmax, int64_t argmax_bytes, uintptr_t bias, uintptr_t r_bias, int threads) {
  EpilogueParams p;
  p.dtype = dtype, p.channels_last = channels_last, p.relu = relu;
  p.N = input_size[0], p.C = input_size[1], p.H = input_size[2], p.W = input_size[3];
  p.OH = output_size[2], p.OW = output_size[3];
  if (lrn) {
    const auto [size, alpha, beta, k, groups] = *lrn;
    p.lrn = {size, groups, alpha, beta, k};
  }
  if (pool) {
    const auto [kh, kw, sh, sw, ph, pw, dh, dw] = *pool;
    p.pool = {kh, kw, sh, sw, ph, pw, dh, dw, pool_first};
  }
  p.x = tensor(x), p.y = tensor(y), p.r = tensor(r), p.argmax = tensor(argmax);
  p.argmax_bytes = argmax_bytes;
  p.bias = reinterpret_cast<void*>(bias), p.r_bias = reinterpret_cast<void*>(r_bias);
  p.threads = threads;
  return p;
}

using Numbers = std::array<int64_t, 2>;  // of rows and of columns

static ConvParams make_convolution(const EpilogueParams& after, const Sizes& input_size,
                                   const Address& x, const Address& weight, const Numbers& kernel,
                                   const Numbers& stride, const Numbers& padding,
                                   const Numbers& dilation, int64_t groups) {
  ConvParams p;
  p.after = after;
  p.C = input_size[1], p.H = input_size[2], p.W = input_size[3];
  p.x = tensor(x), p.weight = tensor(weight), p.groups = groups;
  p.kh = kernel[0], p.kw = kernel[1], p.sh = stride[0], p.sw = stride[1];
  p.top = padding[0], p.left = padding[1], p.dh = dilation[0], p.dw = dilation[1];
  return p;
}

static void convolution_backward(ConvParams p, const Address& grad_x, const Address& grad_weight,
                                 uintptr_t grad_bias) {
  p.grad_x = tensor(grad_x), p.grad_weight = tensor(grad_weight);
  p.grad_bias = reinterpret_cast<void*>(grad_bias);
  py::gil_scoped_release release;
  cpu::convolution_backward(p);
}

// An object may be part of a cycle, module and all: the garbage collector has to see through it.
template <typename T>
static void collect_garbage(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!py::detail::is_holder_constructed(self)) return 0;
    return py::cast<T&>(py::handle(self)).traverse(visit, arg);
  };
  type.tp_clear = [](PyObject* self) {
    if (py::detail::is_holder_constructed(self)) py::cast<T&>(py::handle(self)).clear();
    return 0;
  };
}

#ifdef FASTCNN_CUDA
static void space_to_depth(const Address& x, uintptr_t y, const Sizes& input_size,
                           const Sizes& output_size, int64_t side, int64_t top, int64_t left,
                           int64_t bytes, bool channels_last, int device, uintptr_t stream) {
  cuda::SpaceToDepth p;
  p.x = tensor(x), p.y = reinterpret_cast<void*>(y);
  p.N = input_size[0], p.C = input_size[1], p.H = input_size[2], p.W = input_size[3];
  p.OH = output_size[2], p.OW = output_size[3];
  p.side = side, p.top = top, p.left = left;
  p.bytes = bytes, p.channels_last = channels_last;
  cuda::space_to_depth(p, device, stream);
}
#endif

static py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["instruction set"] = cpu::instruction_sets().back();
  info["openmp"] = cpu::has_openmp() ? "yes" : "no, one thread";
#ifdef FASTCNN_CUDA
  info["cuda"] = cuda::describe();
  info["cuda sources"] = FASTCNN_CUDA_SOURCES;
#else
  info["cuda"] = "no, built without nvcc";
#endif
  return info;
}

PYBIND11_MODULE(_C, m) {
  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::f32)
      .value("float16", Dtype::f16)
      .value("bfloat16", Dtype::bf16)
      .value("float64", Dtype::f64);
  py::class_<EpilogueParams>(m, "EpilogueParams")
      .def(py::init(&make_params), "dtype"_a, "channels_last"_a, "relu"_a, "lrn"_a, "pool"_a,
           "pool_first"_a, "input_size"_a, "output_size"_a, "x"_a, "y"_a, "r"_a, "argmax"_a,
           "argmax_bytes"_a, "bias"_a, "r_bias"_a, "threads"_a)
      .def_readwrite("kernel_set", &EpilogueParams::kernel_set);
  m.def("build_info", &build_info);
  m.def("instruction_sets", &cpu::instruction_sets);
  m.def("prefer_huge_pages", &cpu::prefer_huge_pages);
  m.def("epilogue_forward", &cpu::epilogue_forward, py::call_guard<py::gil_scoped_release>());
  m.def("epilogue_backward", &cpu::epilogue_backward, py::call_guard<py::gil_scoped_release>());
  py::class_<ConvParams>(m, "ConvParams")
      .def(py::init(&make_convolution), "after"_a, "input_size"_a, "x"_a, "weight"_a, "kernel"_a,
           "stride"_a, "padding"_a, "dilation"_a, "groups"_a);
  m.def("convolution_forward", &cpu::convolution_forward, py::call_guard<py::gil_scoped_release>());
  m.def("convolution_backward", &convolution_backward, "params"_a, "grad_x"_a, "grad_weight"_a,
        "grad_bias"_a);
  py::class_<Torch>(m, "Torch")
      .def(py::init([](py::object tensor, py::object keys, py::object included, py::object excluded,
                       py::object known, py::object is_grad_enabled, py::object get_num_threads,
                       py::object empty, std::vector<std::pair<py::object, py::object>> state) {
             return Torch{
                 tensor,          Exchange(tensor), keys,  included,         excluded, known,
                 is_grad_enabled, get_num_threads,  empty, std::move(state), {}};
           }),
           "tensor"_a, "keys"_a, "included"_a, "excluded"_a, "known"_a, "is_grad_enabled"_a,
           "get_num_threads"_a, "empty"_a, "state"_a);
  py::class_<Watch>(m, "Watch", py::custom_type_setup(&collect_garbage<Watch>))
      .def(py::init([](const Torch& torch) { return Watch(torch.names, torch.exchange); }),
           "torch"_a, py::keep_alive<1, 2>())
      .def("entry", &Watch::entry, "dictionary"_a, "key"_a, "value"_a)
      .def("absent", [](Watch& w, py::dict d, py::str key) { w.entry(d, key, py::object()); })
      .def("attribute", &Watch::attribute)
      .def("size", &Watch::size)
      .def("type", &Watch::type)
      .def("tensor", &Watch::tensor, "dictionary"_a, "key"_a)
      .def("values", &Watch::values, "dictionary"_a, "key"_a)
      .def("holds", [](const Watch& w) { return w.holds(); });
  py::class_<Prepared>(m, "Prepared", py::custom_type_setup(&collect_garbage<Prepared>))
      .def(py::init<const Torch&, py::object>(), "torch"_a, "input"_a, py::keep_alive<1, 2>())
      .def("output", &Prepared::output, "empty"_a, "names"_a, "threads"_a)
      .def_readonly("watch", &Prepared::watch)
      .def("convolution", &Prepared::convolution, "params"_a, "weight"_a, "bias"_a)
      .def(
          "dense",
          [](Prepared& p, int64_t inputs, int64_t outputs, bool relu, int weight, int bias) {
            DenseParams d;
            d.inputs = inputs, d.outputs = outputs, d.relu = relu;
            p.dense(d, weight, bias);
          },
          "inputs"_a, "outputs"_a, "relu"_a, "weight"_a, "bias"_a)
      .def("epilogue", &Prepared::epilogue, "params"_a)
      .def("__call__", &Prepared::operator());
#ifdef FASTCNN_CUDA
  m.def("cuda_runs_on", &cuda::runs_on, "device"_a);
  m.def("cuda_architectures", &cuda::architectures);
  m.def("cuda_is_special", &cuda::is_special, "params"_a);
  m.def("cuda_epilogue_forward", &cuda::epilogue_forward, "params"_a, "device"_a, "stream"_a);
  m.def("cuda_epilogue_backward", &cuda::epilogue_backward, "params"_a, "device"_a, "stream"_a,
        "partial_sums"_a);
  m.def("cuda_bias_parts", &cuda::bias_parts, "params"_a);
  m.def("cuda_space_to_depth", &space_to_depth, "x"_a, "y"_a, "input_size"_a, "output_size"_a,
        "side"_a, "top"_a, "left"_a, "bytes"_a, "channels_last"_a, "device"_a, "stream"_a);
#endif
}
