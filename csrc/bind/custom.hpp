// A rule that is written in Python: a method, called for one array after another. The stages around it are those
// of every rule; on a GPU they are kernels before and after it (csrc/cuda/custom.hpp).
#pragma once

#include <array>
#include <string>
#include <vector>

#include "bind/arrays.hpp"
#include "core/step.hpp"

namespace fusedstep {

class CustomRule {
 public:
  // `optimizer` is a weak reference to what has the methods: it keeps plans, which keep this.
  CustomRule(std::vector<std::string> slots, py::object optimizer, bool has_rows);
  CustomRule(const CustomRule&) = delete;
  CustomRule& operator=(const CustomRule&) = delete;

  // A variable as the methods see it.
  struct Variable {
    std::vector<py::ssize_t> shape;
    py::object array;     // null where it is computed in another type
    py::object gradient;  // on a GPU, where both are copies that kernels make
    std::vector<py::object> slots;
  };

  const Rule& rule() const { return rule_; }
  std::vector<Variable> variables;  // as they were built

  // Raises where the rows of sparse gradients cannot be updated alone.
  void check_rows() const;

  // The update of an array, and of the rows of one that are touched.
  template <class C>
  void update(const Step& step, std::size_t index, const py::object& gradients);
  template <class C>
  void update_rows(const Step& step, std::size_t index, const Rows& rows);

  // The same on a GPU: of what is in the variable's `array` and `gradient`.
  void update_on_device(const Step& step, std::size_t index) const;
  [[noreturn]] void refuse_rows_on_device() const;

 private:
  template <class C>
  C* scratch(std::size_t number, std::int64_t size);
  std::string name_of_class() const;
  void call(const char* method, const py::tuple& arrays, const Step& step, const Array& array) const;

  Rule rule_;
  std::vector<std::string> slots_;
  std::vector<const char*> slots_of_rule_;
  py::object optimizer_;
  bool has_rows_;
  std::array<py::array, 2> scratch_;  // for a variable and a gradient in the compute type
};

// As in a with statement.
class PythonContext {
 public:
  explicit PythonContext(py::object manager);
  ~PythonContext();
  PythonContext(const PythonContext&) = delete;
  PythonContext& operator=(const PythonContext&) = delete;

 private:
  py::object manager_;
};

// A custom rule in one step, which calls it in one thread, with the GIL.
struct CustomStep : Rule {
  explicit CustomStep(CustomRule& custom);

  CustomRule& custom;
  py::object gradients;  // what keeps them alive
};

}  // namespace fusedstep
