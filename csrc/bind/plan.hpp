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
#include "bind/custom.hpp"
#include "bind/device_array.hpp"
#include "bind/gradients.hpp"
#include "bind/slots.hpp"
#include "bind/variables.hpp"
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
       std::vector<std::string> names, const InitialValues& initial, const std::vector<std::shared_ptr<Plan>>& others,
       std::shared_ptr<CustomRule> custom, std::shared_ptr<Pace> pace);

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
  void check_unchanged(const std::string& who) const { variables_.check_unchanged(who); }
  void finish_averages();

  bool owns(py::handle variable) const { return variables_.find(variable.ptr()) != count(); }
  std::size_t index_of(py::handle variable) const;
  std::size_t count() const { return variables_.count(); }
  const Variables& variables() const { return variables_; }
  const std::vector<std::string>& slot_names() const { return kinds_.names(); }
  py::object slot(std::size_t index, const std::string& name) const;  // a NumPy array or a DeviceArray

  // Where a device decides they are read from there.
  const Counts& counts();
  void set_counts(const Counts& counts);
  bool skipped();     // whether the last call was left out
  py::object norm();  // of the gradients of the last call, where it was needed: a number, or an array on the device
  // Where a device knows the dynamic loss scale better, an array there; else None.
  py::object loss_scale_on_device() const;
  // Raises where it is not finite, or not times the multiplier of some variable.
  void check_learning_rate(double learning_rate) const;
  // Whether a step now would go into a graph, to run later; whether one did, so that it may be replayed.
  bool is_capturing() const;
  bool is_captured() const { return captured_; }
  // The learning rate of steps that were captured: a number, or an array on their device.
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
  static int rule_number(std::string_view name);
  const Rule& rule() const { return custom_ ? custom_->rule() : current_target().rules[rule_]; }
  void make_arena();
  void make_parts();
  DeviceArray slot_on_device(std::size_t index, std::size_t kind) const;
  void show_to_custom_rule();
  void show_to_custom_rule(const DevicePart& part) const;
  void collect_written();
  void check_written(const std::vector<std::shared_ptr<Plan>>& others) const;
  void describe_settings(double learning_rate, std::size_t replicas, bool mean);
  Step describe_step(double learning_rate, std::size_t replicas, bool mean);
  Rate take_rate_on_device(const py::object& learning_rate) const;
  void give_rate_to_graphs(const Rate& rate, const py::object& array, bool capturing);
  bool run_timed(Step step, Call& call, bool check);
  void count_call();
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
  DeviceStep describe_on_devices(const Step& step, std::size_t replicas, bool mean) const;
  void step_on_devices(const Step& step, Call& call, const Rate& rate, const py::object& rate_on_device,
                       bool looks_up_rate, bool mean);
  void order_rows(const DeviceStep& request, bool capturing, const std::vector<void*>& streams);
  void refuse_lazy_rows(const DeviceStep& request) const;
  void step_on_many_devices(Step step, DeviceStep& request, Call& call, const std::vector<void*>& streams);
  void update_on_devices(const Step& step, const DeviceStep& request, const std::vector<void*>& streams);
  void finish_averages_on_devices(const Step& step);
  void* stream_of(const DevicePart& part) const;
  void refuse_while_capturing(const char* what) const;
  py::object number_on_device(double* number) const;
  std::byte* slot_kind(std::size_t kind) const { return arena_->data() + slot_stride_ * kind; }

  std::string optimizer_;
  std::string who_;  // how its refusals begin
  int rule_;
  std::shared_ptr<CustomRule> custom_;  // null where the rule is a compiled one
  double hyperparameters_[max_hyperparameters] = {};
  Options options_;
  std::vector<Group> groups_{1};              // what the settings of arrays count
  std::vector<double> largest_of_groups_{0};  // number in what their variables are computed in, but frozen ones
  bool divides_by_learning_rate_ = false;     // the rule

  Variables variables_;
  Gradients gradients_;
  SlotKinds kinds_;
  std::shared_ptr<Arena> arena_;  // of the slots on the CPU
  std::size_t slot_stride_ = 0;   // bytes from one kind of them to the next
  std::vector<std::unique_ptr<DevicePart>> parts_;
  std::vector<std::size_t> part_strides_;

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
  std::vector<double> sums_elsewhere_;
  std::atomic<bool> stepping_{false};
  std::shared_ptr<Pace> pace_;  // used with the GIL: other plans may have it, too
};

}  // namespace fusedstep
