#include "bind/items.hpp"

#include "bind/attribute_reader.hpp"
#include "bind/interchange.hpp"
#include "bind/refuse.hpp"

namespace fusedstep {
namespace {

std::string type_of(py::handle object) {
  return py::str(py::type::handle_of(object).attr("__name__"));
}

bool is_branch(PyObject* object) {
  return PyList_Check(object) || PyTuple_Check(object) ||
         PyType_HasFeature(Py_TYPE(object), Py_TPFLAGS_DICT_SUBCLASS | Py_TPFLAGS_MAPPING) != 0;
}

// One call deeper, as Python counts them: what contains itself has no end.
class Deeper {
 public:
  Deeper() {
    if (Py_EnterRecursiveCall(" in nested dicts and lists")) throw py::error_already_set();
  }
  ~Deeper() { Py_LeaveRecursiveCall(); }
  Deeper(const Deeper&) = delete;
  Deeper& operator=(const Deeper&) = delete;
};

// Strings of Python's own are compared without code of others that might change a dict meanwhile.
bool has_plain_keys(PyObject* dict) {
  py::ssize_t position = 0;
  PyObject* key;
  while (PyDict_Next(dict, &position, &key, nullptr)) {
    if (!PyUnicode_CheckExact(key)) return false;
  }
  return true;
}

// Walks through two trees at once, by pointers that it does not hold: no code of others runs. What is not of Python's
// own types is left to the slower way.
class Pairing {
 public:
  py::list leaves, others;

  bool add(PyObject* tree, PyObject* other) {
    if (!is_branch(tree)) {
      if (is_branch(other) && !PyTuple_CheckExact(other)) return false;  // a gradient may be a tuple
      leaves.append(py::handle(tree));
      others.append(py::handle(other));
      return true;
    }
    const Deeper deeper;
    if (PyDict_CheckExact(tree) && PyDict_CheckExact(other)) return add_all_of_dict(tree, other);
    return is_sequence(tree) && is_sequence(other) && add_all_of_sequence(tree, other);
  }

 private:
  static bool is_sequence(PyObject* object) { return PyList_CheckExact(object) || PyTuple_CheckExact(object); }

  bool add_all_of_dict(PyObject* tree, PyObject* other) {
    if (PyDict_GET_SIZE(tree) != PyDict_GET_SIZE(other)) return false;
    if (!has_plain_keys(tree) || !has_plain_keys(other)) return false;
    py::ssize_t position = 0;
    PyObject *key, *child;
    while (PyDict_Next(tree, &position, &key, &child)) {
      PyObject* const in_its_place = PyDict_GetItemWithError(other, key);
      if (in_its_place == nullptr && PyErr_Occurred()) throw py::error_already_set();
      if (in_its_place == nullptr || !add(child, in_its_place)) return false;
    }
    return true;
  }

  bool add_all_of_sequence(PyObject* tree, PyObject* other) {
    const py::ssize_t size = PySequence_Fast_GET_SIZE(tree);
    if (size != PySequence_Fast_GET_SIZE(other)) return false;
    for (py::ssize_t i = 0; i < size; ++i) {
      if (!add(PySequence_Fast_GET_ITEM(tree, i), PySequence_Fast_GET_ITEM(other, i))) return false;
    }
    return true;
  }
};

// What iterates over an object; null for one that cannot be iterated over.
py::object iterator_of(const py::object& object) {
  auto iterator = py::reinterpret_steal<py::object>(PyObject_GetIter(object.ptr()));
  if (iterator) return iterator;
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  return iterator;
}

}  // namespace

py::object items_of(const py::object& iterable, const std::string& what) {
  if (is_list_or_tuple(iterable)) return iterable;
  // One array would give its rows, each as a variable of its own.
  if (py::isinstance<py::array>(iterable) || shows_memory(iterable)) {
    refuse_type(what + " is one " + name_of_type(iterable) + ", but must be a list of them; pass [x]");
  }
  const py::object iterator = iterator_of(iterable);
  if (!iterator) refuse_type(what + " is of type " + type_of(iterable) + ", but must be a list of arrays");
  const auto items = py::reinterpret_steal<py::object>(PySequence_Tuple(iterator.ptr()));
  if (!items) throw py::error_already_set();
  return items;
}

py::tuple unzip(const py::object& pairs, const std::string& who) {
  const py::object iterator = iterator_of(pairs);
  if (!iterator) {
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

std::optional<std::pair<py::list, py::list>> pair_up(const py::object& tree, const py::object& other) {
  Pairing pairing;
  if (!pairing.add(tree.ptr(), other.ptr())) return std::nullopt;
  // Some objects are containers by what they say alone, which only code of theirs tells.
  static const py::handle branches = py::object(py::module_::import("fusedstep.structure").attr("BRANCHES")).release();
  for (const py::handle leaf : pairing.leaves) {
    const bool is_array = reinterpret_cast<PyObject*>(Py_TYPE(leaf.ptr())) == array_type;
    if (!is_array && !leaf.is_none() && py::isinstance(leaf, branches)) return std::nullopt;
  }
  return std::pair(std::move(pairing.leaves), std::move(pairing.others));
}

std::pair<py::list, std::vector<std::size_t>> attributes_of(const py::list& arrays, const py::str& name) {
  py::list found(arrays.size());
  std::vector<std::size_t> absent;
  AttributeReader reader(name);
  const auto array_at = [&](std::size_t i) { return PyList_GET_ITEM(arrays.ptr(), static_cast<py::ssize_t>(i)); };
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    prefetch_ahead(array_at, i, arrays.size());
    py::object value = reader.of(array_at(i));
    if (value.is_none()) absent.push_back(i);
    PyList_SET_ITEM(found.ptr(), static_cast<py::ssize_t>(i), value.release().ptr());
  }
  return {std::move(found), std::move(absent)};
}

}  // namespace fusedstep
