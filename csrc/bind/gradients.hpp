// The gradients of steps: what Python passes is looked at here, and refused before anything is written.
#pragma once

#include <string>
#include <vector>

#include "bind/call.hpp"
#include "bind/variables.hpp"
#include "bind/written.hpp"
#include "core/dtypes.hpp"
#include "core/options.hpp"
#include "core/step.hpp"

namespace fusedstep {

class Gradients {
 public:
  // Of these variables, read as the options say at the time. Both outlive this. `who` is how refusals begin.
  Gradients(const Variables& variables, const Options& options, std::string who);

  // The memory that steps write, which no gradient may share: complete before the first step.
  WrittenMemory& written() { return written_; }
  const WrittenMemory& written() const { return written_; }

  // One for each variable, as a step takes them; and the running sums of what its arrays cost. These are not known
  // before the first call, after a change of options or where other variables than before have a gradient.
  const Gradient* data() const { return gradients_.data(); }
  const std::uint64_t* cost_before() const { return cost_before_.data(); }
  bool costs_known() const { return costs_known_; }
  void forget_costs() { costs_known_ = false; }

  // Three ways to look at a call. The first two return false where something is not as in nearly every call; then the
  // last one takes it, or raises. Of NumPy's arrays, [begin, end) of them, on any thread:
  bool take_ordinary(const Call& call, std::size_t begin, std::size_t end);
  // Of any library's.
  bool take_ordinary_with_care(Call& call);
  // All, and those of the other replicas.
  void take_all(Call& call, std::vector<Items>& replicas);

  // From a step over the variables on the CPU to one over the rows that are touched, and the other variables.
  void update_touched_rows(Step& step, Call& call) const;

  // For Python's garbage collector (plan.hpp).
  int visit_kept(visitproc visit, void* arg) const;
  void forget_kept() { same_.clear(); }

 private:
  std::size_t count() const { return variables_.count(); }
  // (Inlined: a copy on the stack would be read in one piece right after it was written in three, and wait for that.)
  void set(std::size_t index, const Gradient& gradient) {
    if (!same_.empty()) same_[index] = py::object();  // until it is known again
    // Written only where it changes: the other threads have the former ones in their caches.
    Gradient& current = gradients_[index];
    if (current.data == gradient.data && current.dtype == gradient.dtype && current.rows == gradient.rows) return;
    if ((current.data == nullptr) != (gradient.data == nullptr)) costs_known_ = false;
    current = gradient;
  }
  // Whether the memory can be read, and cleared where that is wanted, as it is.
  bool is_used_in_place(const ArrayView& view) const {
    return view.contiguous() && view.aligned() && (!options_.clears_gradients || view.writeable());
  }
  std::int64_t bytes_as(DType dtype, std::size_t index) const { return variables_.array(index).size * bytes_of(dtype); }
  bool is_ordinary(PyObject* gradient, std::size_t index, ArrayView& view);
  bool is_ordinary_of_frozen(PyObject* gradient, std::size_t index);
  bool take_ordinary(PyObject* gradient, std::size_t index);
  bool take_ordinary_with_care(PyObject* gradient, std::size_t index, Call& call);

  std::size_t look_up(PyObject* variable, std::size_t position, Call& call) const;
  Gradient take(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call);
  Gradient take_rows(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call);
  Gradient take_rows_on_device(PyObject* given_indices, PyObject* values, std::size_t index, const std::string& what,
                               Call& call);
  std::int64_t read_rows(PyObject* values, std::int64_t count, std::size_t index, const std::string& what,
                         HeldView& view) const;
  void take_replicas(Call& call, std::vector<Items>& others);
  const Rows* rows_of_lists(const Step& step, std::size_t index, Call& call) const;
  // Whether variables are visited without a gradient, too.
  bool visits_all() const { return options_.averages || options_.accumulation_steps > 1; }

  // The memory of a gradient that is given: of an empty one some libraries say null, which means here that there is
  // none.
  static const void* given_memory(const ArrayView& view) {
    return view.data != nullptr ? static_cast<const void*>(view.data) : &nothing;
  }
  static constexpr std::byte nothing{};

  // Whether a step can read a gradient from this memory: apart from all that it writes, or its very own variable's,
  // which is read before it is written, element by element. (Rows are not, where they are in any order, and cleared
  // gradients are written after it.)
  bool may_read(const char* data, std::int64_t bytes, std::size_t index, bool may_be_variable);
  // Says so, right after that was false.
  [[noreturn]] void refuse_overlap(std::size_t index, const std::string& what, bool may_be_variable) const;

  const Variables& variables_;
  const Options& options_;
  std::string who_;
  WrittenMemory written_;
  std::vector<Gradient> gradients_;
  std::vector<py::object> same_;         // weak references to those whose view stays as it is
  std::vector<const PyObject*> before_;  // addresses alone, of the last step's
  std::vector<std::uint64_t> cost_before_;
  bool costs_known_ = false;
};

}  // namespace fusedstep
