// The variables of a build: what they were then, which every step compares, and how they are found and named.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "bind/arrays.hpp"
#include "core/step.hpp"

namespace fusedstep {

class Variables {
 public:
  // A variable as it was when built, beside what steps have of it.
  struct Built {
    py::object object;
    int ndim;
    std::size_t first_dimension;  // in the shapes of all
    Device device;
    bool stays_as_it_is;  // the object's view of its memory
    bool frozen;
  };

  // Raises where one of them cannot be updated in place. `names` is empty or has one for each.
  Variables(std::string optimizer, const py::list& variables, std::vector<std::string> names);

  std::size_t count() const { return arrays_.size(); }
  const Built& operator[](std::size_t index) const { return built_[index]; }
  const Built& at(std::size_t index) const { return built_.at(index); }  // of an index that Python gave
  const Array& array(std::size_t index) const { return arrays_[index]; }
  const std::vector<Array>& arrays() const { return arrays_; }
  // The same as a step on the CPU sees them: those on devices are empty.
  const std::vector<Array>& arrays_on_cpu() const { return has_devices() ? arrays_on_cpu_ : arrays_; }
  bool has_devices() const { return !arrays_on_cpu_.empty(); }
  bool are_plain_numpy() const { return are_plain_numpy_; }
  const std::vector<std::string>& names() const { return names_; }

  // Lays out one kind of slot of a device's variables; returns how many bytes it takes.
  std::size_t lay_out_slots(Device device);
  void freeze(std::size_t index, bool frozen) { built_[index].frozen = frozen; }
  void set_settings(const std::vector<std::uint16_t>& of);  // of each variable: which of a step's

  const py::ssize_t* shape_of(std::size_t index) const { return shapes_.data() + built_[index].first_dimension; }
  std::vector<py::ssize_t> shape(std::size_t index) const {
    const int ndim = at(index).ndim;  // raises first
    return {shape_of(index), shape_of(index) + ndim};
  }
  std::string text_of_shape(std::size_t index) const { return text_of(built_[index].ndim, shape_of(index)); }
  bool has_shape(std::size_t index, const ArrayView& view) const {
    return view.has_shape(built_[index].ndim, shape_of(index));
  }

  // How sentences name what stands at a position of a list, and is the variable `index` or of it: "grads['bias']".
  std::string label(const char* list, std::size_t position, std::size_t index) const;

  // The index of an object, or of another array over the same memory; count() where it was never built.
  std::size_t find(PyObject* variable) const;
  [[noreturn]] void refuse_unknown(py::handle variable, std::size_t position) const;

  // Raises where an array cannot be updated in place.
  static void check_updatable(py::handle object, const ArrayView& view, const std::string& what);

  // Whether a view of a variable is what it was when it was built. The others raise where that is not so.
  bool is_unchanged(std::size_t index, const ArrayView& view) const {
    return view.data == arrays_[index].variable && view.device == built_[index].device &&
           view.dtype == arrays_[index].dtype && has_shape(index, view) && view.contiguous() && view.aligned() &&
           view.writeable();
  }
  void check_unchanged(std::size_t index, std::size_t position, const std::string& who) const;
  void check_unchanged(const std::string& who) const;

  // For Python's garbage collector (plan.hpp).
  int visit_kept(visitproc visit, void* arg) const;
  void forget_kept();

 private:
  std::string optimizer_;
  std::vector<Built> built_;
  std::vector<py::ssize_t> shapes_;
  std::vector<std::string> names_;
  std::vector<Array> arrays_, arrays_on_cpu_;
  std::unordered_map<const PyObject*, std::size_t> index_by_object_;
  std::unordered_map<const void*, std::size_t> index_by_memory_;
  bool are_plain_numpy_ = true;
};

}  // namespace fusedstep
