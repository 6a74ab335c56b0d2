// The plan of a build: its variables, their slots and counts, and the step over them.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bind/arena.hpp"
#include "bind/arrays.hpp"
#include "bind/custom.hpp"
#include "bind/device_array.hpp"
#include "bind/items.hpp"
#include "bind/written.hpp"
#include "core/options.hpp"
#include "core/step.hpp"
#include "cpu/pace.hpp"
#include "cpu/run.hpp"
#include "cpu/targets.hpp"
#include "cuda/part.hpp"

namespace fusedstep {

// What may differ between variables.
struct VariableSettings : Group {
  bool frozen = false;
};

class Plan {
 public:
  // Raises, having changed nothing, where `variables` cannot be updated in place.
  // `names` is empty or has one for each; `others` are the optimizer's plans so far. A `custom` rule, of this plan
  // alone, is for updates; then `rule` is for calls that make none, and has no slots. Plans that step in turns share a
  // `pace`; null is for one of its own.
  Plan(std::string optimizer, const std::string& rule, bool accumulates, bool averages, const py::list& variables,
       std::vector<std::string> names, const std::unordered_map<std::string, double>& initial,
       const std::vector<std::shared_ptr<Plan>>& others, std::shared_ptr<CustomRule> custom,
       std::shared_ptr<Pace> pace);

  // What steps compute from now on. Some variables have settings of their `own`. Raises where that needs other slots
  // than were built.
  void configure(const std::string& rule, const std::unordered_map<std::string, double>& hyperparameters,
                 const Options& options, const VariableSettings& settings,
                 const std::map<std::size_t, VariableSettings>& own);

  // Makes `groups`, which are apart, what variables may have of their own; `of` says which each variable is of, None
  // that this stays as it was.
  void set_groups(std::vector<Group> groups, const std::optional<std::vector<std::size_t>>& of);
  double carried_of(std::size_t group) const { return groups_.at(group).carried; }

  // One update of the variables that have a gradient; of all that were built if `variables` is None.
  // With replicas, `grads` and each of them are lists of gradients that are summed, or averaged if `mean`.
  // The learning rate is a number, an array without dimensions on the variables' device, read there, or None for that
  // of look_ahead.
  // Returns the number of calls so far; on a device that decides for itself, with those that it left out.
  std::int64_t step(const py::object& grads, const py::object& variables, const py::object& learning_rate,
                    const py::object& replicas, bool mean);

  // One step, change of what steps compute, or copy of the state, at a time.
  class Exclusive {
   public:
    explicit Exclusive(Plan& plan);
    ~Exclusive() { plan_.stepping_ = false; }
    Exclusive(const Exclusive&) = delete;
    Exclusive& operator=(const Exclusive&) = delete;

   private:
    Plan& plan_;
  };

  // For Python's garbage collector: to see the objects that this keeps, and to let them go.
  int visit_kept(visitproc visit, void* arg) const;
  void forget_kept();

  // The variables take the values of their averages, where some are kept. Whoever calls it is Exclusive, and has asked
  // before, of all plans, whether every variable is as it was when it was built.
  void check_unchanged(const std::string& who) const;
  void finish_averages();

  bool owns(py::handle variable) const;
  std::size_t index_of(py::handle variable) const;
  std::size_t count() const { return arrays_.size(); }
  py::object variable(std::size_t index) const { return built_.at(index).object; }
  const std::vector<std::string>& names() const { return names_; }
  std::vector<std::string> slot_names() const;
  py::object slot(std::size_t index, const std::string& name) const;  // a NumPy array or a DeviceArray
  std::vector<py::ssize_t> shape(std::size_t index) const;
  DType dtype(std::size_t index) const { return arrays_.at(index).dtype; }

  // Where a device decides they are read from there.
  const Counts& counts();
  void set_counts(const Counts& counts);
  bool skipped();     // whether the last call was left out
  py::object norm();  // of the gradients of the last call, where it was needed: a number, or an array on the device
  // Where a device knows the dynamic loss scale better, an array there; else None.
  py::object loss_scale_on_device() const;
  // Whether a step now would go into a graph, to run later.
  bool is_capturing() const;
  // Raises where it is not finite, or not times the multiplier of some variable.
  void check_learning_rate(double learning_rate) const;
  // The learning rate of steps that were captured in one: a number, or an array on their device.
  void set_learning_rate(const py::object& rate);
  // Whether a device counts, by itself, the calls that are made, so that asking for them waits.
  bool device_counts() const { return !counts_certain_ && !captured_; }
  // Tells the device the learning rates of calls ahead, from that on which comes next; it picks one by the calls that
  // it has counted. For so many steps some are left; for none when settings or counts were changed.
  void look_ahead(const std::vector<double>& rates);
  void forget_rates() { rates_left_ = 0; }
  std::size_t rates_left() const { return rates_left_; }
  std::shared_ptr<Pace> pace() const { return pace_; }

 private:
  // A variable as it was when built; each step compares.
  struct Built {
    py::object object;
    int ndim;
    std::size_t first_dimension;  // in shapes_
    Device device;
    bool stays_as_it_is;  // the object's view of its memory
    bool frozen;
  };

  struct Call;

  static int rule_number(std::string_view name);
  const Rule& rule() const { return custom_ ? custom_->rule() : current_target().rules[rule_]; }
  const py::ssize_t* shape_of(const Built& built) const { return shapes_.data() + built.first_dimension; }
  std::string text_of_shape(const Built& built) const { return text_of(built.ndim, shape_of(built)); }
  std::string label(const char* list, std::size_t position, std::size_t index) const;
  std::size_t find(PyObject* variable) const;  // count() where it was never built
  static void check_updatable(py::handle object, const ArrayView& view, const std::string& what);
  std::size_t lay_out_slots(Device device);
  static void fill_slot(const Array& array, void* slot, double value);
  static void widen_variable(const Array& array, const void* variable, void* slot);
  void check_initial(const std::unordered_map<std::string, double>& initial) const;
  void make_arena(const std::unordered_map<std::string, double>& initial);
  DeviceArray slot_on_device(std::size_t index, std::size_t kind) const;
  void show_to_custom_rule();
  void show_to_custom_rule(const DevicePart& part) const;
  void collect_written();
  void check_written(const std::vector<std::shared_ptr<Plan>>& others) const;
  bool is_unchanged(std::size_t index, const ArrayView& view) const;
  // Whether a gradient's memory can be read, and cleared where that is wanted, as it is.
  bool is_used_in_place(const ArrayView& view) const {
    return view.contiguous() && view.aligned() && (!options_.clears_gradients || view.writeable());
  }
  bool is_ordinary(PyObject* gradient, std::size_t index, ArrayView& view);
  bool is_ordinary_of_frozen(PyObject* gradient, std::size_t index);
  bool take_ordinary(PyObject* gradient, std::size_t index);
  bool take_ordinary(const Call& call, std::size_t begin, std::size_t end);
  bool take_ordinary_with_care(PyObject* gradient, std::size_t index, Call& call);
  bool take_ordinary_with_care(Call& call);
  // Raises where a variable is not as it was when it was built.
  void check_unchanged(std::size_t index, std::size_t position, const std::string& who) const;
  [[noreturn]] void refuse_unknown(py::handle variable, std::size_t position) const;
  std::size_t look_up(PyObject* variable, std::size_t position, Call& call) const;
  void take_all(Call& call, std::vector<Items>& others);
  void describe_settings(double learning_rate, std::size_t replicas, bool mean);
  Step describe_step(double learning_rate, std::size_t replicas, bool mean);
  Rate take_rate_on_device(const py::object& learning_rate) const;
  void give_rate_to_graphs(const Rate& rate, const py::object& array, bool capturing);
  bool run_timed(Step step, Call& call, bool check);
  void count_call();
  bool has_devices() const { return !parts_.empty(); }
  // Whether one device has all variables and decides by itself what becomes of a call. (Whether a rule in Python is
  // called has to be known here.)
  bool is_alone() const {
    return parts_.size() == 1 && parts_[0]->arrays().size() == count() && !(custom_ && host_decides());
  }
  bool host_decides() const { return options_.skips_not_finite || options_.loss_scale_growth_steps > 0; }
  bool calls_python() const { return custom_ && (counts_.calls + 1) % options_.accumulation_steps == 0; }
  void refuse_moves_while_capturing(const std::vector<std::uint16_t>& of) const;
  void take_groups(std::vector<Group> groups, const std::vector<std::uint16_t>& of);
  void look_at_groups();
  void tell_parts();  // what of the groups they have to know
  void make_parts(const std::unordered_map<std::string, double>& initial);
  DeviceStep describe_on_devices(const Step& step, std::size_t replicas, bool mean) const;
  void step_on_devices(const Step& step, Call& call, const Rate& rate, const py::object& rate_on_device,
                       bool looks_up_rate, bool mean);
  void order_rows(const DeviceStep& request, bool capturing, const std::vector<void*>& streams);
  void refuse_lazy_rows(const DeviceStep& request) const;
  void step_on_many_devices(Step step, DeviceStep& request, const Call& call, const std::vector<void*>& streams);
  void update_on_devices(const Step& step, const DeviceStep& request, const std::vector<void*>& streams);
  void finish_averages_on_devices(const Step& step);
  void* stream_of(const DevicePart& part) const;
  void refuse_while_capturing(const char* what) const;
  py::object number_on_device(double* number) const;
  Gradient take_gradient(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call);
  Gradient take_rows(PyObject* gradient, std::size_t index, std::size_t position, const char* list, Call& call);
  Gradient take_rows_on_device(PyObject* given_indices, PyObject* values, std::size_t index, const std::string& what,
                               Call& call);
  std::int64_t read_rows(PyObject* values, std::int64_t count, std::size_t index, const std::string& what,
                         HeldView& view) const;
  void take_replicas(Call& call, std::vector<Items>& others);
  const Rows* rows_of_lists(const Step& step, std::size_t index, Call& call);
  void update_touched_rows(Step& step, Call& call);
  bool visits_all() const { return options_.averages || options_.accumulation_steps > 1; }
  std::vector<std::string> all_slot_names(const Rule& rule) const;
  std::byte* slot_kind(std::size_t kind) const { return arena_->data() + slot_stride_ * kind; }
  void set_gradient(std::size_t index, Gradient gradient);
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

  std::string optimizer_;
  std::string who_;  // how its refusals begin
  int rule_;
  std::shared_ptr<CustomRule> custom_;  // null where the rule is a compiled one
  double hyperparameters_[max_hyperparameters] = {};
  bool accumulates_, averages_;  // whether there are slots for it
  Options options_;
  std::vector<Group> groups_{1};              // what arrays_[i].settings counts
  std::vector<double> largest_of_groups_{0};  // number in what their variables are computed in, but frozen ones
  bool divides_by_learning_rate_ = false;     // the rule

  std::vector<Built> built_;
  std::vector<py::ssize_t> shapes_;
  std::vector<std::string> names_;
  std::vector<Array> arrays_;
  std::unordered_map<const PyObject*, std::size_t> index_by_object_;
  std::unordered_map<const void*, std::size_t> index_by_memory_;
  std::shared_ptr<Arena> arena_;  // of the slots on the CPU
  std::size_t slot_stride_ = 0;   // bytes from one kind of them to the next
  std::vector<std::unique_ptr<DevicePart>> parts_;
  std::vector<std::size_t> part_strides_;
  std::vector<Array> arrays_here_;  // where there are parts: all, but empty those that are on devices
  bool plain_numpy_ = true;         // all variables are NumPy's own
  WrittenMemory written_;           // all that steps write

  // Scratch of a step, kept from one to the next.
  std::vector<Settings> settings_;  // of each group
  Counts counts_;
  bool counts_certain_ = true;               // else a device knows better
  bool captured_ = false;                    // whether a step went into a graph
  std::vector<py::object> kept_for_graphs_;  // copies of gradients, which replays make anew, and former rates
  py::object rate_of_graphs_ = py::none();   // where that is an array
  std::size_t rates_left_ = 0;               // of look_ahead, for steps to come
  std::int64_t rates_begin_ = 0;
  bool skipped_ = false;
  std::optional<double> norm_;
  bool norm_on_device_ = false;
  Norms norms_ = {};
  std::vector<Gradient> gradients_;
  std::vector<py::object> same_gradients_;         // weak references to those whose view stays as it is
  std::vector<const PyObject*> gradients_before_;  // addresses alone, of the last step's
  std::vector<double> sums_elsewhere_;
  std::vector<std::uint64_t> cost_before_;
  bool costs_known_ = false;  // whether cost_before_ is that of gradients_
  std::atomic<bool> stepping_{false};
  std::shared_ptr<Pace> pace_;  // used with the GIL: other plans may have it, too
};

}  // namespace fusedstep
