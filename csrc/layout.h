// Where a Python tensor lies, and how: by DLPack's C exchange API, in one call and without
// PyTorch's headers, whose ABI changes from version to version.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace fastcnn {

namespace py = pybind11;

// As dlpack.h 1.3 has them.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;  // in elements
  uint64_t byte_offset;
};
struct DLPackExchangeAPI {
  static constexpr uint32_t kMajor = 1;
  uint32_t major, minor;
  const DLPackExchangeAPI* previous;  // of another major version
  void *allocate, *from_tensor, *to_tensor;
  int (*look)(void* tensor, DLTensor* out);  // may be null; -1: a Python error is set
  void* current_stream;
};

class Exchange {
 public:
  explicit Exchange(py::handle tensor_class) {
    const py::object capsule = tensor_class.attr("__dlpack_c_exchange_api__");
    void* found = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
    if (!found) throw py::error_already_set();
    api_ = static_cast<const DLPackExchangeAPI*>(found);
    while (api_ && api_->major != DLPackExchangeAPI::kMajor) api_ = api_->previous;
    if (!api_ || !api_->look)
      throw std::runtime_error("fastcnn: this PyTorch has another version of DLPack");
  }

  // False for a tensor without values in the CPU's memory.
  bool look(py::handle tensor, DLTensor& out) const {
    constexpr int32_t kCpu = 1;
    if (api_->look(tensor.ptr(), &out) == 0) return out.device_type == kCpu && out.data;
    PyErr_Clear();
    return false;
  }

 private:
  const DLPackExchangeAPI* api_;
};

// Sizes, strides and dtype.
class Layout {
 public:
  Layout(const Exchange& exchange, py::handle tensor) : exchange_(exchange) {
    DLTensor t;
    if (!exchange.look(tensor, t)) throw std::invalid_argument("fastcnn: not in memory");
    code_ = t.code, bits_ = t.bits;
    shape_.assign(t.shape, t.shape + t.ndim), strides_.assign(t.strides, t.strides + t.ndim);
  }

  int64_t size(size_t dimension) const { return shape_[dimension]; }

  // Where such a tensor's values are; null for any other.
  const void* address(py::handle tensor) const {
    DLTensor t;
    if (!exchange_.look(tensor, t) || t.code != code_ || t.bits != bits_) return nullptr;
    if (size_t(t.ndim) != shape_.size()) return nullptr;
    for (size_t d = 0; d < shape_.size(); ++d)
      if (t.shape[d] != shape_[d] || t.strides[d] != strides_[d]) return nullptr;
    return static_cast<const char*>(t.data) + t.byte_offset;
  }

 private:
  const Exchange& exchange_;
  uint8_t code_, bits_;
  std::vector<int64_t> shape_, strides_;
};

}  // namespace fastcnn
