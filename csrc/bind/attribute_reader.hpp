// Attributes of many objects of one type.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedstep {

namespace py = pybind11;

// Reads an attribute of one object after another. Where it is a property in C, as of PyTorch's tensors and CuPy's
// arrays, it is looked up once for all of a type, which takes as long as the property itself.
class AttributeReader {
 public:
  explicit AttributeReader(py::str name) : name_(std::move(name)) { PyUnicode_InternInPlace(&name_.ptr()); }

  py::object of(PyObject* object) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != type_.ptr()) look_up(Py_TYPE(object));
    PyObject* const value =
        property_ == nullptr ? PyObject_GetAttr(object, name_.ptr()) : property_->get(object, property_->closure);
    if (value == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(value);
  }

 private:
  void look_up(PyTypeObject* type) {
    type_ = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(type));  // which stays
    property_ = nullptr;
    if (type->tp_getattro != PyObject_GenericGetAttr) return;
    const py::object descriptor = py::getattr(type_, name_, py::none());  // which its type keeps
    if (!Py_IS_TYPE(descriptor.ptr(), &PyGetSetDescr_Type)) return;
    property_ = reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
    if (property_->get == nullptr) property_ = nullptr;
  }

  py::str name_;
  py::object type_;
  const PyGetSetDef* property_ = nullptr;
};

}  // namespace fusedstep
