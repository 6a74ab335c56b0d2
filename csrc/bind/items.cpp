#include "bind/items.hpp"

#include "bind/arrays.hpp"
#include "bind/refuse.hpp"

namespace fusedstep {
namespace {

std::string type_of(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

}  // namespace

py::object items_of(const py::object& iterable, const std::string& what) {
  if (is_list_or_tuple(iterable)) return iterable;
  if (py::isinstance<py::array>(iterable)) {
    refuse_type(what + " is one numpy.ndarray, but must be a list of them; pass [x]");
  }
  const auto iterator = py::reinterpret_steal<py::object>(PyObject_GetIter(iterable.ptr()));
  if (!iterator) {
    PyErr_Clear();
    refuse_type(what + " is of type " + type_of(iterable) + ", but must be a list of arrays");
  }
  const auto items = py::reinterpret_steal<py::object>(PySequence_Tuple(iterator.ptr()));
  if (!items) throw py::error_already_set();
  return items;
}

py::tuple unzip(const py::object& pairs, const std::string& who) {
  const auto iterator = py::reinterpret_steal<py::object>(PyObject_GetIter(pairs.ptr()));
  if (!iterator) {
    PyErr_Clear();
    refuse_type(who + ": grads_and_vars is of type " + type_of(pairs) +
                ", but must give (gradient, variable) pairs; pass zip(grads, variables)");
  }
  py::list gradients, variables;
  while (const auto pair = py::reinterpret_steal<py::object>(PyIter_Next(iterator.ptr()))) {
    if (!PyTuple_Check(pair.ptr()) && !PyList_Check(pair.ptr())) {
      refuse_type(who + ": item " + std::to_string(gradients.size()) +
                  " is not a (gradient, variable) pair but of type " + type_of(pair) + "; pass zip(grads, variables)");
    }
    if (PySequence_Fast_GET_SIZE(pair.ptr()) != 2) {
      refuse_value(who + ": item " + std::to_string(gradients.size()) + " has " +
                   std::to_string(PySequence_Fast_GET_SIZE(pair.ptr())) +
                   " entries, but must be a (gradient, variable) pair; pass zip(grads, variables)");
    }
    PyObject* const* const two = PySequence_Fast_ITEMS(pair.ptr());
    if (PyList_Append(gradients.ptr(), two[0]) != 0 || PyList_Append(variables.ptr(), two[1]) != 0) {
      throw py::error_already_set();
    }
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return py::make_tuple(gradients, variables);
}

std::pair<py::list, std::vector<std::size_t>> attributes_of(const py::list& arrays, const py::str& name) {
  py::list found;
  std::vector<std::size_t> absent;
  const auto array_at = [&](std::size_t i) { return PyList_GET_ITEM(arrays.ptr(), static_cast<py::ssize_t>(i)); };
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    prefetch_ahead(array_at, i, arrays.size());
    const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(array_at(i), name.ptr()));
    if (!value || PyList_Append(found.ptr(), value.ptr()) != 0) throw py::error_already_set();
    if (value.is_none()) absent.push_back(i);
  }
  return {std::move(found), std::move(absent)};
}

}  // namespace fusedstep
