// What a module's forward depends on, looked at again before each call that was prepared: objects
// by identity, tensors by how they are laid out.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

namespace fastcnn {

namespace py = pybind11;

// A method or an attribute by name, as a new reference; throws what Python raises.
inline py::object call_method(py::handle object, py::handle name) {
  PyObject* result = PyObject_CallMethodNoArgs(object.ptr(), name.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}
inline py::object attribute(py::handle object, py::handle name) {
  PyObject* result = PyObject_GetAttr(object.ptr(), name.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}
inline py::object call(py::handle function) {
  PyObject* result = PyObject_CallNoArgs(function.ptr());
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}
inline bool equal(py::handle a, py::handle b) {
  const int result = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (result < 0) throw py::error_already_set();
  return result;
}

// The names that are asked for, interned: a look-up then compares addresses.
struct Names {
  py::str is_cpu = intern("is_cpu"), is_neg = intern("is_neg"), dtype = intern("dtype"),
          shape = intern("shape"), stride = intern("stride"), data_ptr = intern("data_ptr"),
          is_contiguous = intern("is_contiguous"), requires_grad = intern("requires_grad"),
          raw_repr = intern("raw_repr");

  static py::str intern(const char* name) {
    return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
  }
};

class Watch {
 public:
  explicit Watch(const Names& names) : names_(names) {}

  // dictionary[key] must be this very object; where it is null, there must be no such key.
  void entry(py::dict dictionary, py::str key, py::object value) {
    entries_.push_back({std::move(dictionary), std::move(key), std::move(value)});
  }
  // An attribute of object must be this very one.
  void attribute(py::object object, py::str name, py::object value) {
    attributes_.push_back({std::move(object), std::move(name), std::move(value)});
  }
  void size(py::object container) {  // must keep its number of elements
    const Py_ssize_t size = PyObject_Length(container.ptr());
    sizes_.push_back({std::move(container), size});
  }
  void type(py::object object) {  // must keep its class
    py::object its = py::type::of(object);
    types_.push_back({std::move(object), std::move(its)});
  }
  // dictionary[key] must be this tensor, on the CPU, contiguous, of the same dtype and shape.
  void tensor(py::dict dictionary, py::str key) {
    py::object t = dictionary[key];
    py::object dtype = fastcnn::attribute(t, names_.dtype);
    py::object shape = fastcnn::attribute(t, names_.shape);
    tensors_.push_back({{std::move(dictionary), std::move(key), t}, dtype, shape});
  }

  bool holds() const {
    for (const auto& [object, its] : types_)
      if ((PyObject*)Py_TYPE(object.ptr()) != its.ptr()) return false;
    for (const Entry& e : entries_)
      if (!e.holds()) return false;
    for (const Entry& e : attributes_)
      if (fastcnn::attribute(e.owner, e.key).ptr() != e.value.ptr()) return false;
    for (const auto& [container, size] : sizes_)
      if (PyObject_Length(container.ptr()) != size) return false;
    for (const Tensor& t : tensors_)
      if (!t.at.holds() || !is_as_it_was(t)) return false;
    return true;
  }

  bool requires_grad() const {
    for (const Tensor& t : tensors_)
      if (fastcnn::attribute(t.at.value, names_.requires_grad).ptr() == Py_True) return true;
    return false;
  }

  // Where the tensors' values are.
  std::vector<const void*> addresses() const {
    std::vector<const void*> found;
    for (const Tensor& t : tensors_) found.push_back(address(t.at.value));
    return found;
  }

  const void* address(py::handle tensor) const {
    void* data = PyLong_AsVoidPtr(call_method(tensor, names_.data_ptr).ptr());
    if (!data && PyErr_Occurred()) throw py::error_already_set();
    return data;
  }

  int traverse(visitproc visit, void* arg) const {
    for (const std::vector<Entry>* entries : {&entries_, &attributes_})
      for (const Entry& e : *entries) {
        Py_VISIT(e.owner.ptr());
        Py_VISIT(e.value.ptr());
      }
    for (const auto& [container, _] : sizes_) Py_VISIT(container.ptr());
    for (const auto& [object, its] : types_) {
      Py_VISIT(object.ptr());
      Py_VISIT(its.ptr());
    }
    for (const Tensor& t : tensors_) {
      Py_VISIT(t.at.owner.ptr());
      Py_VISIT(t.at.value.ptr());
    }
    return 0;
  }

  void clear() {
    entries_.clear(), attributes_.clear(), sizes_.clear(), types_.clear(), tensors_.clear();
  }

 private:
  struct Entry {
    py::object owner, key, value;

    bool holds() const {
      PyObject* there = PyDict_GetItemWithError(owner.ptr(), key.ptr());
      if (!there && PyErr_Occurred()) throw py::error_already_set();
      return there == value.ptr();
    }
  };
  struct Tensor {
    Entry at;
    py::object dtype, shape;
  };

  bool is_as_it_was(const Tensor& t) const {
    const py::handle tensor = t.at.value;
    return fastcnn::attribute(tensor, names_.dtype).ptr() == t.dtype.ptr() &&
           fastcnn::attribute(tensor, names_.is_cpu).ptr() == Py_True &&
           call_method(tensor, names_.is_contiguous).ptr() == Py_True &&
           call_method(tensor, names_.is_neg).ptr() == Py_False &&
           equal(fastcnn::attribute(tensor, names_.shape), t.shape);
  }

  const Names& names_;
  std::vector<Entry> entries_, attributes_;
  std::vector<std::pair<py::object, Py_ssize_t>> sizes_;
  std::vector<std::pair<py::object, py::object>> types_;
  std::vector<Tensor> tensors_;
};

}  // namespace fastcnn
