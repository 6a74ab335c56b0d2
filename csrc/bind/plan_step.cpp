// A plan's step: look at all that Python passed, refuse or run.
#include <algorithm>
#include <chrono>
#include <optional>

#include "bind/gil_release.hpp"
#include "bind/plan.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"
#include "core/slices.hpp"
#include "cpu/float_environment.hpp"
#include "cpu/run.hpp"
#include "cpu/targets.hpp"

namespace fusedstep {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// (Not inlined: its arithmetic must stay in the mode that is set.)
[[gnu::noinline]] void Plan::describe_settings(double learning_rate, std::size_t replicas, bool mean) {
  const baseline::CallSettings call =
      baseline::describe_call(options_, counts_, static_cast<std::uint32_t>(replicas), mean);
  settings_.clear();
  for (const Group& group : groups_) {
    settings_.push_back(baseline::settings_of(options_, counts_, call, group, hyperparameters_, learning_rate));
  }
  norms_.clip = call.clips ? options_.clip : Clip::none;
  norms_.largest = options_.largest_norm;
  norms_.scale = call.scale;
  norms_.sign = call.sign;
  norms_.skips_not_finite = options_.skips_not_finite;
}

Step Plan::describe_step(double learning_rate, std::size_t replicas, bool mean) {
  const DefaultFloatEnvironment environment;
  describe_settings(learning_rate, replicas, mean);
  Step step = {};
  step.rule = rule_;
  step.settings = settings_.data();
  step.settings_count = settings_.size();
  step.arrays = variables_.arrays_on_cpu().data();
  step.gradients = gradients_.data();
  step.replicas = 1;
  step.cost_before = gradients_.cost_before();
  step.count = count();
  step.factors = norms_.clip != Clip::none ? norms_.factors.data() : nullptr;
  for (std::size_t kind = 0; !custom_ && kind < kinds_.of_rule(); ++kind) step.slots[kind] = slot_kind(kind);
  if (const auto kind = kinds_.accumulator()) step.accumulator = slot_kind(*kind);
  if (const auto kind = kinds_.average()) step.average = slot_kind(*kind);
  return step;
}

// Runs a step, on the clock; with arrays that were not looked at yet if `check`. False, with nothing changed,
// where one of them is not ordinary.
bool Plan::run_timed(Step step, Call& call, bool check) {
  struct Context {
    Plan& plan;
    Call& call;
    std::optional<GilRelease> gil;
    std::optional<CustomStep> custom;
  } context{*this, call, {}, {}};
  Before before = {nullptr, nullptr, &context};
  if (check) {
    before.is_good = [](void* from, std::size_t begin, std::size_t end) {
      const Context& context = *static_cast<Context*>(from);
      return context.plan.gradients_.take_ordinary(context.call, begin, end);
    };
  }
  const std::uint64_t cost = step.cost_before[step.count];
  if (calls_python()) {
    step.custom = &context.custom.emplace(*custom_);
    before.all_good = [](void* from) {
      Context& context = *static_cast<Context*>(from);
      context.call.hold_or_raise();
      context.custom->gradients = context.call.held();
    };
  }
  // A smaller step is not worth a look at the clock: it runs on one thread, with the GIL.
  const bool is_timed = !step.custom && cost * step.replicas >= cost_per_thread;
  const bool release_gil = is_timed && pace_->is_long(cost);
  if (release_gil) {
    before.all_good = [](void* from) {
      Context& context = *static_cast<Context*>(from);
      if (context.call.hold()) {
        context.gil.emplace().begin();
      } else {  // no memory: the step goes on with the GIL
        PyErr_Clear();
      }
    };
  }
  const double begin = is_timed ? now() : 0;
  const int threads = is_timed ? pace_->choose(cost, threads_for(cost), begin) : 1;
  const Outcome outcome = run(step, current_target(), before, norms_, threads);
  const double end = is_timed ? now() : 0;
  context.gil.reset();
  if (is_timed && outcome != Outcome::not_good) pace_->measured(cost, begin, end, !release_gil);
  if (outcome == Outcome::not_good) return false;
  norm_ = norms_.wanted() ? std::optional(norms_.norm) : std::nullopt;
  skipped_ = outcome == Outcome::skipped;
  count_call();
  return true;
}

// Counts a call that was made or, where it was skipped, left out.
void Plan::count_call() {
  if (skipped_) return baseline::count_left_out(options_, counts_);
  baseline::count_made(options_, counts_);
  if (counts_.calls % options_.accumulation_steps != 0) return;
  ++counts_.updates;
  const auto carry = rule().carry;
  if (carry == nullptr) return;
  const DefaultFloatEnvironment environment;
  for (std::size_t k = 0; k < groups_.size(); ++k) {
    const Settings& settings = settings_[k];
    (groups_[k].apart ? groups_[k].carried : counts_.carried) =
        carry(settings.hyperparameters, settings.t, settings.carried);
  }
}

std::int64_t Plan::step(const py::object& grads, const py::object& variables, const py::object& learning_rate,
                        const py::object& replicas, bool mean) {
  const Exclusive exclusive(*this);
  // All are read before any is looked at: iterables run code of their own.
  // (Of a list no name is put together: that takes as long as the rest of a short call.)
  const auto read = [&](const py::object& given, const char* list) {
    return is_list_or_tuple(given) ? given : items_of(given, who_ + list);
  };
  const py::object gradient_items = read(grads, "grads");
  const py::object variable_items = variables.is_none() ? variables : read(variables, "variables");
  std::vector<Items> others;
  if (!replicas.is_none()) {
    for (const py::handle list : replicas) {
      const std::string what = who_ + "replicas[" + std::to_string(others.size() + 1) + "]";
      others.emplace_back(items_of(py::reinterpret_borrow<py::object>(list), what));
    }
  }
  Call call(gradient_items, variable_items, others.size() + 1);
  const std::size_t expected = call.all_built ? count() : call.variables.size();
  if (call.grads.size() != expected) {
    refuse_value(who_ + "grads has length " + std::to_string(call.grads.size()) + ", variables " +
                 std::to_string(expected) + "; pass one gradient for each variable, None where there is none");
  }
  if (expected == 0) return counts_.calls;
  const bool has_number = PyFloat_Check(learning_rate.ptr()) != 0;
  const bool looks_up = !has_number && learning_rate.is_none() && rates_left_ > 0;
  Rate rate = {has_number ? PyFloat_AS_DOUBLE(learning_rate.ptr()) : 0, nullptr, DType::float64};
  if (has_number) {
    check_learning_rate(rate.number);
  } else if (!looks_up) {
    call.hold_or_raise();  // it is read by code of its own
    rate = take_rate_on_device(learning_rate);
  }

  Step step = describe_step(rate.number, call.replicas, mean);
  const bool plain_numpy = variables_.are_plain_numpy();
  const bool may_be_ordinary = gradients_.costs_known() && expected == count() && call.replicas == 1;
  if (may_be_ordinary && plain_numpy && run_timed(step, call, true)) return counts_.calls;
  if (!(may_be_ordinary && !plain_numpy && gradients_.take_ordinary_with_care(call))) {
    gradients_.take_all(call, others);
  }
  // Nothing can be refused from here on.
  if (call.replicas > 1) {
    step.gradients = call.gradients.data();
    step.replicas = call.replicas;
  }
  if (options_.lazy && !call.rows.empty()) {
    gradients_.update_touched_rows(step, call);
    const auto is_touched = [](const Rows* rows) { return rows != nullptr; };
    if (custom_ && std::ranges::any_of(call.touched, is_touched)) custom_->check_rows();
  }
  if (variables_.has_devices()) {
    step_on_devices(step, call, rate, rate.array != nullptr ? learning_rate : py::none(), looks_up, mean);
  } else {
    run_timed(step, call, false);
  }
  if (!call.copied.empty()) {
    const py::object clear = py::module_::import("fusedstep.device_arrays").attr("clear");
    for (const py::object& gradient : call.copied) clear(gradient);
  }
  return counts_.calls;
}

void Plan::finish_averages() {
  if (!options_.averages) return;
  // A pass without gradients, in which averages do not move.
  std::vector<Gradient> none(count(), {nullptr, nullptr, DType::float32});
  std::vector<std::uint64_t> costs(count() + 1, 0);
  for (std::size_t i = 0; i < count(); ++i) costs[i + 1] = costs[i] + cost_of(variables_.arrays_on_cpu()[i]);
  Step step = describe_step(0, 1, false);
  for (Settings& settings : settings_) {
    settings.stages = {};
    settings.stages.average = Average::keep;
    settings.stages.average_overwrites = true;
  }
  step.gradients = none.data();
  step.cost_before = costs.data();
  norms_.clip = Clip::none;
  norms_.skips_not_finite = false;
  finish_averages_on_devices(step);
  run(step, current_target(), {}, norms_, threads_for(costs.back()));
}

}  // namespace fusedstep
