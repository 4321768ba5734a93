// Guards of a prepared call: all that a module's forward depends on, checked before each call.
// Objects are compared by identity, tensors by their layout.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "layout.h"

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

inline long long number(py::handle n) {
  const long long value = PyLong_AsLongLong(n.ptr());
  if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// The names that are asked for, interned: a look-up then compares addresses.
struct Names {
  py::str is_neg = intern("is_neg"), requires_grad = intern("requires_grad"),
          raw_repr = intern("raw_repr"), version = intern("_version"),
          data_ptr = intern("data_ptr"), cdata = intern("_cdata");

  static py::str intern(const char* name) {
    return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name));
  }
};

class Watch {
 public:
  Watch(const Names& names, const Exchange& exchange) : names_(names), exchange_(exchange) {}

  // dictionary[key] must be this very object; where it is null, there must be no such key.
  void entry(py::dict dictionary, py::str key, py::object value) {
    will_read(dictionary);
    entries_.push_back({std::move(dictionary), std::move(key), std::move(value)});
  }
  // An attribute of object must be this very one.
  void attribute(py::object object, py::str name, py::object value) {
    attributes_.push_back({std::move(object), std::move(name), std::move(value)});
  }
  void size(py::object container, Py_ssize_t size) {  // must have as many elements
    lines_.push_back(container.ptr());
    sizes_.push_back({std::move(container), size});
  }
  void type(py::object object, py::object cls) {  // must be of this very class
    lines_.push_back(object.ptr());
    types_.push_back({std::move(object), std::move(cls)});
  }
  // dictionary[key] must be this tensor, laid out as it is.
  void tensor(py::dict dictionary, py::str key) {
    py::object t = dictionary[key];
    tensors_.push_back({{std::move(dictionary), std::move(key), t}, Layout(exchange_, t)});
  }

  // dictionary[key] must be this tensor, where it is, and written to as often by PyTorch's count.
  void values(py::dict dictionary, py::str key) {
    py::object t = dictionary[key];
    const auto [version, address] = written(t);
    will_read(dictionary);
    const auto* fields = (const char*)number(fastcnn::attribute(t, names_.cdata));
    for (const void* line : {(const char*)t.ptr(), fields, fields + 64, fields + 128})
      lines_.push_back(line);
    values_.push_back({{std::move(dictionary), std::move(key), t}, version, address});
  }

  bool holds() const {
    std::vector<const void*> addresses;
    return holds(addresses);
  }

  // addresses: where the tensors' values are, if it does.
  bool holds(std::vector<const void*>& addresses) const {
    // All that is looked at lies far apart, and beside large tensors in no cache: one by one, it
    // takes 9 us to fetch what a folded batch norm depends on.
    for (const void* line : lines_) __builtin_prefetch(line);
    for (const auto& [object, its] : types_)
      if ((PyObject*)Py_TYPE(object.ptr()) != its.ptr()) return false;
    for (const Entry& e : entries_)
      if (!e.holds()) return false;
    for (const Entry& e : attributes_)
      if (fastcnn::attribute(e.owner, e.key).ptr() != e.value.ptr()) return false;
    for (const auto& [container, size] : sizes_)
      if (PyObject_Length(container.ptr()) != size) return false;
    for (const Values& v : values_)
      if (!v.at.holds() || written(v.at.value) != std::pair(v.version, v.address)) return false;
    for (const Tensor& t : tensors_) {
      if (!t.at.holds() || call_method(t.at.value, names_.is_neg).ptr() != Py_False) return false;
      addresses.push_back(t.layout.address(t.at.value));
      if (!addresses.back()) return false;
    }
    return true;
  }

  bool requires_grad() const {
    for (const Tensor& t : tensors_)
      if (fastcnn::attribute(t.at.value, names_.requires_grad).ptr() == Py_True) return true;
    return false;
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
    for (const Values& v : values_) {
      Py_VISIT(v.at.owner.ptr());
      Py_VISIT(v.at.value.ptr());
    }
    for (const Tensor& t : tensors_) {
      Py_VISIT(t.at.owner.ptr());
      Py_VISIT(t.at.value.ptr());
    }
    return 0;
  }

  void clear() {
    entries_.clear(), attributes_.clear(), sizes_.clear(), types_.clear(), values_.clear(),
        tensors_.clear();
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
    Layout layout;
  };
  struct Values {
    Entry at;
    long long version, address;  // as numbers: objects would be two more lines of memory to fetch
  };

  std::pair<long long, long long> written(py::handle t) const {
    return {number(fastcnn::attribute(t, names_.version)), number(call_method(t, names_.data_ptr))};
  }

  void will_read(const py::dict& dictionary) {
    lines_.push_back(dictionary.ptr());
    lines_.push_back(((PyDictObject*)dictionary.ptr())->ma_keys);
  }

  const Names& names_;
  const Exchange& exchange_;
  std::vector<const void*> lines_;  // of memory; only for the processor to fetch: some may be gone
  std::vector<Entry> entries_, attributes_;
  std::vector<std::pair<py::object, Py_ssize_t>> sizes_;
  std::vector<std::pair<py::object, py::object>> types_;
  std::vector<Values> values_;
  std::vector<Tensor> tensors_;
};

}  // namespace fastcnn
