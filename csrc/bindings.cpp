// The module fastcnn._C: structs in, nothing out; errors arrive as ValueError or RuntimeError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/epilogue.h"
#include "cpu/pages.h"
#include "params.h"
#ifdef FASTCNN_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;
using namespace fastcnn;

static py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["instruction set"] = cpu::instruction_sets().back();
  info["openmp"] = cpu::has_openmp() ? "yes" : "no, one thread";
#ifdef FASTCNN_CUDA
  info["cuda"] = cuda::describe();
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
  py::class_<Tensor>(m, "Tensor")
      .def(py::init([](uintptr_t data, int64_t n, int64_t c, int64_t h, int64_t w) {
        return Tensor{reinterpret_cast<void*>(data), n, c, h, w};
      }));
  py::class_<EpilogueParams>(m, "EpilogueParams")
      .def(py::init<>())
      .def_readwrite("dtype", &EpilogueParams::dtype)
      .def_readwrite("channels_last", &EpilogueParams::channels_last)
      .def_readwrite("relu", &EpilogueParams::relu)
      .def_readwrite("x", &EpilogueParams::x)
      .def_readwrite("y", &EpilogueParams::y)
      .def_readwrite("r", &EpilogueParams::r)
      .def_readwrite("offsets", &EpilogueParams::offsets)
      .def_readwrite("offset_bytes", &EpilogueParams::offset_bytes)
      .def_readwrite("threads", &EpilogueParams::threads)
      .def_readwrite("isa", &EpilogueParams::isa)
      .def("sizes", [](EpilogueParams& p, int64_t n, int64_t c, int64_t h, int64_t w, int64_t oh,
                       int64_t ow) { p.N = n, p.C = c, p.H = h, p.W = w, p.OH = oh, p.OW = ow; })
      .def("bias",
           [](EpilogueParams& p, uintptr_t data) { p.bias = reinterpret_cast<void*>(data); })
      .def("lrn", [](EpilogueParams& p, int64_t size, double alpha, double beta, double k,
                     int64_t groups) { p.lrn = Lrn{size, groups, alpha, beta, k}; })
      .def("pool", [](EpilogueParams& p, int64_t kh, int64_t kw, int64_t sh, int64_t sw, int64_t ph,
                      int64_t pw, int64_t dh, int64_t dw,
                      bool first) { p.pool = Pool{kh, kw, sh, sw, ph, pw, dh, dw, first}; });
  m.def("build_info", &build_info);
  m.def("instruction_sets", &cpu::instruction_sets);
  m.def("prefer_huge_pages", &cpu::prefer_huge_pages);
  m.def("epilogue_forward", &cpu::epilogue_forward, py::call_guard<py::gil_scoped_release>());
  m.def("epilogue_backward", &cpu::epilogue_backward, py::call_guard<py::gil_scoped_release>());
}
