// The plan of a build: its variables, their slots and counts, and the step over them.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "bind/arena.hpp"
#include "bind/arrays.hpp"
#include "bind/custom.hpp"
#include "bind/items.hpp"
#include "core/options.hpp"
#include "core/step.hpp"
#include "cpu/pace.hpp"
#include "cpu/run.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {

// What may differ between variables.
struct VariableSettings : Group {
  bool frozen = false;
};

class Plan {
 public:
  // Raises, having changed nothing, where `variables` cannot be updated in place.
  // `names` is empty or has one for each; `others` are the optimizer's plans so far. A `custom` rule, of this plan
  // alone, is for updates; then `rule` is for calls that make none, and has no slots.
  Plan(std::string optimizer, const std::string& rule, bool accumulates, bool averages, const py::list& variables,
       std::vector<std::string> names, const std::unordered_map<std::string, double>& initial,
       const std::vector<std::shared_ptr<Plan>>& others, std::shared_ptr<CustomRule> custom);

  // What steps compute from now on. `settings` has one for all variables, or one for each. Raises where that needs
  // other slots than were built.
  void configure(const std::string& rule, const std::unordered_map<std::string, double>& hyperparameters,
                 const Options& options, const std::vector<VariableSettings>& settings);

  // Makes `groups`, which are apart, what variables may have of their own; `of` says which each variable is of, None
  // that this stays as it was.
  void set_groups(std::vector<Group> groups, const std::optional<std::vector<std::size_t>>& of);
  double carried_of(std::size_t group) const { return groups_.at(group).carried; }

  // One update of the variables that have a gradient; of all that were built if `variables` is None.
  // With replicas, `grads` and each of them are lists of gradients that are summed, or averaged if `mean`.
  // Returns the number of calls so far.
  std::int64_t step(const py::object& grads, const py::object& variables, double learning_rate,
                    const py::object& replicas, bool mean);

  // The variables take the values of their averages.
  void finish_averages();

  bool owns(py::handle variable) const;
  std::size_t index_of(py::handle variable) const;
  std::size_t count() const { return arrays_.size(); }
  py::object variable(std::size_t index) const { return built_.at(index).object; }
  const std::vector<std::string>& names() const { return names_; }
  std::vector<std::string> slot_names() const;
  py::array slot(std::size_t index, const std::string& name) const;

  Counts counts;
  bool skipped = false;        // whether the last call was left out
  std::optional<double> norm;  // of the gradients of the last call, where it was needed

 private:
  // A variable as it was when built; each step compares.
  struct Built {
    py::object object;
    int ndim;
    std::size_t first_dimension;  // in shapes_
  };

  // Memory that a step writes.
  struct Written {
    std::uintptr_t begin, end;
    std::ptrdiff_t index;  // of the variable, or slots_index
  };
  static constexpr std::ptrdiff_t slots_index = -1;

  // One step, or change of what steps compute, at a time.
  class Exclusive {
   public:
    explicit Exclusive(Plan& plan);
    ~Exclusive() { plan_.stepping_ = false; }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

   private:
    Plan& plan_;
  };

  struct Call;

  const Rule& rule() const { return custom_ ? custom_->rule() : current_target().rules[rule_]; }
  const py::ssize_t* shape_of(const Built& built) const { return shapes_.data() + built.first_dimension; }
  std::string text_of_shape(const Built& built) const { return text_of(built.ndim, shape_of(built)); }
  std::string label(const char* list, std::size_t position, std::size_t index) const;
  std::size_t find(PyObject* variable) const;  // count() where it was never built
  static void check_updatable(const ArrayView& view, const std::string& what);
  void lay_out_slots(const std::unordered_map<std::string, double>& initial);
  void show_to_custom_rule();
  void collect_written();
  void check_written(const std::vector<std::shared_ptr<Plan>>& others) const;
  void check_learning_rate(double learning_rate) const;
  bool is_unchanged(std::size_t index, const ArrayView& view) const;
  bool lies_in_gap(std::size_t gap, std::uintptr_t begin, std::uintptr_t end) const;
  bool take_ordinary(PyObject* gradient, std::size_t index);
  bool take_ordinary(const Call& call, std::size_t begin, std::size_t end);
  [[noreturn]] void refuse_changed(std::size_t index, std::size_t position) const;
  [[noreturn]] void refuse_unknown(py::handle variable, std::size_t position) const;
  std::size_t look_up(PyObject* variable, std::size_t position, Call& call) const;
  void take_all(Call& call, std::vector<Items>& others);
  void describe_settings(double learning_rate, std::size_t replicas, bool mean);
  Step describe_step(double learning_rate, std::size_t replicas, bool mean);
  void carry_on();
  bool run_timed(Step step, Call& call, bool check);
  Gradient take_gradient(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call);
  Gradient take_rows(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call);
  void take_replicas(Call& call, std::vector<Items>& others);
  void split_rows(Step& step, Call& call);
  bool visits_all() const { return options_.averages || options_.accumulation_steps > 1; }
  std::vector<std::string> all_slot_names(const Rule& rule) const;
  std::byte* slot_kind(std::size_t kind) const { return arena_->data() + slot_stride_ * kind; }
  void set_gradient(std::size_t index, Gradient gradient);
  void check_overlap(const char* begin, std::int64_t bytes, std::size_t index, const std::string& what);

  std::string optimizer_;
  std::string who_;  // how its refusals begin
  int rule_;
  std::shared_ptr<CustomRule> custom_;  // null where the rule is a compiled one
  double hyperparameters_[max_hyperparameters] = {};
  bool accumulates_, averages_;  // whether there are slots for it
  Options options_;
  std::vector<Group> groups_{1};  // what arrays_[i].settings counts
  std::vector<bool> frozen_;

  std::vector<Built> built_;
  std::vector<py::ssize_t> shapes_;
  std::vector<std::string> names_;
  std::vector<Array> arrays_;
  std::unordered_map<const PyObject*, std::size_t> index_by_object_;
  std::unordered_map<const void*, std::size_t> index_by_memory_;
  std::shared_ptr<Arena> arena_;
  std::size_t slot_stride_ = 0;   // bytes from one kind of slot to the next
  std::vector<Written> written_;  // in order of address

  // Scratch of a step, kept from one to the next.
  std::vector<Settings> settings_;  // of each group
  Norms norms_ = {};
  std::vector<Gradient> gradients_;
  std::vector<std::uint64_t> cost_before_;
  bool costs_known_ = false;      // whether cost_before_ is that of gradients_
  std::vector<std::size_t> gap_;  // where in `written_` this gradient lay last time: before that entry
  std::atomic<bool> stepping_{false};
  Pace pace_;
};

}  // namespace fusedstep
