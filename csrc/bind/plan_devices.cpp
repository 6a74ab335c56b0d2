// A plan's variables on GPUs: what is made for them in a build, and their part in a step. The kernels and launches are
// those of csrc/cuda.
#include <algorithm>
#include <map>
#include <utility>

#include "bind/interchange.hpp"
#include "bind/plan.hpp"
#include "bind/refuse.hpp"
#include "core/dtypes.hpp"

namespace fusedstep {

void Plan::make_parts() {
  std::map<Device, std::vector<Array>> by_device;
  for (const Array& array : variables_.arrays()) {
    const Device device = variables_[array.number].device;
    if (device != on_cpu) by_device[device];
  }
  for (const Array& array : variables_.arrays()) {
    const Variables::Built& built = variables_[array.number];
    if (built.device == on_cpu ||
        !devices()->is_capturing(built.device, current_stream(built.object.ptr(), built.device)))
      continue;
    refuse_now(
        optimizer_ +
        ".build: a graph is captured, and making slots would have to wait for the GPU; build(variables), or take "
        "a step, before the capture");
  }
  for (auto& [device, arrays] : by_device) {
    const std::size_t stride = variables_.lay_out_slots(device);
    for (const Array& array : variables_.arrays()) {
      if (variables_[array.number].device == device) arrays.push_back(array);
    }
    parts_.push_back(std::make_unique<DevicePart>(device, arrays, count(), stride, rule().slot_count,
                                                  kinds_.accumulator().has_value(), kinds_.average().has_value(),
                                                  custom_ != nullptr));
    part_strides_.push_back(stride);
    const DevicePart& part = *parts_.back();
    std::vector<std::byte> slot, variable;
    for (const Array& array : arrays) {
      if (array.size == 0) continue;
      slot.resize(static_cast<std::size_t>(array.size * bytes_of(array.compute)));
      if (kinds_.average()) {
        variable.resize(static_cast<std::size_t>(array.size * bytes_of(array.dtype)));
        devices()->read(device, variable.data(), array.variable, variable.size());
      }
      for (std::size_t kind = 0; kind < kinds_.count(); ++kind) {
        if (!kinds_.write_initial(kind, array, variable.data(), slot.data())) continue;
        devices()->write(device, part.slots() + stride * kind + array.slot_offset, slot.data(), slot.size());
      }
    }
  }
}

void Plan::tell_parts() {
  for (const auto& part : parts_) part->configure(groups_, variables_.arrays(), captured_);
}

DeviceArray Plan::slot_on_device(std::size_t index, std::size_t kind) const {
  const Array& array = variables_.array(index);
  std::size_t number = 0;
  while (parts_[number]->device() != variables_[index].device) ++number;
  const DevicePart& part = *parts_[number];
  return {part.slots() + part_strides_[number] * kind + array.slot_offset, dtype_of(array.compute),
          variables_.shape(index), part.device(), part.share_slots()};
}

void Plan::show_to_custom_rule(const DevicePart& part) const {
  const py::object as_cupy = py::module_::import("fusedstep.device_arrays").attr("as_cupy");
  for (std::size_t k = 0; k < part.arrays().size(); ++k) {
    const Array& array = part.arrays()[k];
    CustomRule::Variable& variable = custom_->variables[array.number];
    const auto show = [&](DeviceArray memory) {
      return as_cupy(std::move(memory),
                     optimizer_ + ".build: " + variables_.label("variables", array.number, array.number));
    };
    const auto handed = [&](int which) {
      return show({part.handed(which, k), dtype_of(array.compute), variables_.shape(array.number), part.device(),
                   part.share_handed()});
    };
    variable.array = handed(handed_variable);
    variable.gradient = handed(handed_gradient);
    for (int kind = 0; kind < rule().slot_count; ++kind) {
      variable.slots.push_back(show(slot_on_device(array.number, static_cast<std::size_t>(kind))));
    }
  }
}

// An array in the place of a number, of which only the device will see the value.
Rate Plan::take_rate_on_device(const py::object& learning_rate) const {
  HeldView view;
  const std::string what = optimizer_ + ": learning_rate";
  if (!read_array(learning_rate.ptr(), view)) refuse_array(learning_rate, what, "learning rate");
  if (custom_) {
    refuse_value(what + " is on " + name_of(view.device) + ", but a rule in Python gets a number; pass float(rate)");
  }
  if (view.ndim != 0) {
    refuse_value(what + " must have no dimensions, got shape " + text_of(view.ndim, view.shape) +
                 "; pass rate.reshape(())");
  }
  if (!is_alone() || view.device != parts_[0]->device()) {
    refuse_value(what + " is on " + name_of(view.device) +
                 ", but there are variables on another device; pass a number");
  }
  return {0, view.data, view.dtype};
}

void* Plan::stream_of(const DevicePart& part) const {
  return current_stream(variables_[part.arrays()[0].number].object.ptr(), part.device());
}

DeviceStep Plan::describe_on_devices(const Step& step, std::size_t replicas, bool mean) const {
  DeviceStep request = {};
  request.rule = rule_;
  request.two_passes = rule().compiled[compute_float32].finish != nullptr;
  request.gradients = step.gradients;
  request.variables = count();
  request.options = options_;
  std::ranges::copy(hyperparameters_, request.hyperparameters);
  request.replicas = static_cast<std::uint32_t>(replicas);
  request.mean = mean;
  request.alone = is_alone();
  if (!request.alone && options_.loss_scale_growth_steps > 0) {  // the host decides what becomes of it
    request.options.loss_scale = counts_.loss_scale;
    request.options.loss_scale_growth_steps = 0;
  }
  return request;
}

void Plan::step_on_devices(const Step& step, Call& call, const Rate& rate, const py::object& rate_on_device,
                           bool looks_up_rate, bool mean) {
  if (call.replicas > most_gradients) {
    refuse_value(who_ + "there are " + std::to_string(call.replicas) + " replicas, but of variables on a GPU at most " +
                 std::to_string(most_gradients) + " can be summed at once");
  }
  bool capturing = false;
  std::vector<void*> streams;
  for (const auto& part : parts_) {
    streams.push_back(stream_of(*part));
    capturing |= devices()->is_capturing(part->device(), streams.back());
  }
  DeviceStep request = describe_on_devices(step, call.replicas, mean);
  if (custom_ && capturing) {
    refuse_now(who_ +
               "a graph is captured, but a rule in Python gets t and the learning rate as numbers, which would be the "
               "same in every replay; take such steps outside of the capture");
  }
  if (custom_ && options_.lazy && !call.rows.empty()) refuse_lazy_rows(request);
  if (calls_python()) call.hold_or_raise();  // whatever the method does to their list
  request.rate = rate;
  request.looks_up_rate = looks_up_rate;
  request.rates_begin = rates_begin_;
  if (!request.alone && capturing) {
    refuse_value(who_ +
                 "a step that goes into a graph must have all its variables on one device, but there are some on " +
                 (parts_.size() > 1 ? "several GPUs" : "the CPU"));
  }
  for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->write_groups(capturing, streams[i]);
  if (!call.rows.empty()) order_rows(request, capturing, streams);
  if (!request.alone) return step_on_many_devices(step, request, call, streams);
  DevicePart& part = *parts_[0];
  if (capturing) {
    captured_ = true;
    counts_certain_ = false;
    std::ranges::move(call.copies, std::back_inserter(kept_for_graphs_));
    give_rate_to_graphs(rate, rate_on_device, true);
    request.in_graph = true;
  }
  // Where the device knows the counts better, it also knows whether this call updates.
  const bool may_want = options_.skips_not_finite || options_.clip != Clip::none;
  norm_on_device_ = norms_.wanted() || (!counts_certain_ && may_want);
  if (norm_on_device_) part.launch_norms(request, streams[0]);
  update_on_devices(step, request, streams);
  if (capturing) return;
  if (rates_left_ > 0) --rates_left_;
  if (options_.skips_not_finite) counts_certain_ = false;
  skipped_ = false;
  norm_ = std::nullopt;  // of a step that was decided here
  count_call();
}

// The same arrays as a step that updates rows alone would: those of which all gradients are sparse.
void Plan::refuse_lazy_rows(const DeviceStep& request) const {
  for (const auto& part : parts_) {
    for (const Array& array : part->arrays()) {
      bool sparse = false, dense = false;
      for (std::size_t replica = 0; replica < request.replicas; ++replica) {
        const Gradient& gradient = request.gradients[replica * count() + array.number];
        if (gradient.data != nullptr) (gradient.rows != nullptr ? sparse : dense) = true;
      }
      if (array.size > 0 && sparse && !dense) custom_->refuse_rows_on_device();
    }
  }
}

// A rule in Python takes one array after another, between kernels; then one more has what is not the rule's. Where the
// method raises, the arrays before have it all, and nothing counts.
void Plan::update_on_devices(const Step& step, const DeviceStep& request, const std::vector<void*>& streams) {
  if (!calls_python()) {
    for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->launch_update(request, streams[i]);
    return;
  }
  const std::vector<Gradient> none(count(), {nullptr, nullptr, DType::float32});
  DeviceStep rest = request;
  rest.gradients = none.data();
  rest.replicas = 1;
  const py::object current = py::module_::import("fusedstep.device_arrays").attr("current");
  std::size_t i = 0, k = 0;
  try {
    for (; i < parts_.size(); ++i) {
      DevicePart& part = *parts_[i];
      const PythonContext context(current(part.device(), address(streams[i])));
      for (k = 0; k < part.arrays().size(); ++k) {
        const Array& array = part.arrays()[k];
        if (array.size == 0 || request.gradients[array.number].data == nullptr) continue;
        part.launch_custom(request, Kernel::hand_over, k, streams[i]);
        custom_->update_on_device(step, array.number);
        part.launch_custom(request, Kernel::take_back, k, streams[i]);
      }
    }
  } catch (...) {
    for (std::size_t before = 0; before < i; ++before) {
      parts_[before]->launch_rest(rest, parts_[before]->arrays().size(), false, streams[before]);
    }
    if (i < parts_.size()) parts_[i]->launch_rest(rest, k, false, streams[i]);
    throw;
  }
  for (i = 0; i < parts_.size(); ++i) parts_[i]->launch_rest(rest, parts_[i]->arrays().size(), true, streams[i]);
}

// What sparse gradients need before the other kernels. A captured graph must find memory that was there before.
void Plan::order_rows(const DeviceStep& request, bool capturing, const std::vector<void*>& streams) {
  for (const auto& part : parts_) {
    const Array* const without_room = capturing ? part->find_without_room(request) : nullptr;
    if (without_room != nullptr) {
      const std::size_t index = without_room->number;
      refuse_now(who_ + variables_.label("variables", index, index) +
                 " has a gradient of more rows than in steps before, and the memory to order them cannot be had while "
                 "a graph is captured; take a step with as many rows first");
    }
    part->make_room(request);
  }
  for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->order_rows(request, capturing, streams[i]);
}

// With variables in several places the host decides. It waits for the devices where there are norms.
void Plan::step_on_many_devices(Step step, DeviceStep& request, Call& call, const std::vector<void*>& streams) {
  std::optional<CustomStep> custom;
  if (calls_python()) {
    step.custom = &custom.emplace(*custom_);
    custom->gradients = call.held();
  }
  if (norms_.wanted()) {
    call.hold_or_raise();  // whatever other threads do to the lists while this one waits
    for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->launch_norms(request, streams[i]);
    sums_elsewhere_.assign(count(), 0);
    norms_.finite_elsewhere = true;
    for (const auto& part : parts_) norms_.finite_elsewhere &= part->read_sums(sums_elsewhere_);
    norms_.sums_elsewhere = sums_elsewhere_.data();
  }
  const int threads = custom ? 1 : threads_for(step.cost_before[step.count]);
  const Outcome outcome = run(step, current_target(), {}, norms_, threads);
  norms_.sums_elsewhere = nullptr;
  norm_on_device_ = false;
  norm_ = norms_.wanted() ? std::optional(norms_.norm) : std::nullopt;
  skipped_ = outcome == Outcome::skipped;
  if (!skipped_) {
    if (norms_.clip == Clip::all) request.factor = norms_.factors[0];
    update_on_devices(step, request, streams);
  }
  count_call();
}

void Plan::finish_averages_on_devices(const Step& step) {
  const DeviceStep request = describe_on_devices(step, 1, false);
  for (const auto& part : parts_) part->launch_averages(request, stream_of(*part));
}

bool Plan::is_capturing() const {
  return std::ranges::any_of(
      parts_, [&](const auto& part) { return devices()->is_capturing(part->device(), stream_of(*part)); });
}

// Raises, for what would have to wait: that ends a capture.
void Plan::refuse_while_capturing(const char* what) const {
  if (!is_capturing()) return;
  refuse_now(optimizer_ + ": a graph is captured, and " + what +
             " would have to wait for the GPU; do that before the capture, or after it");
}

const Counts& Plan::counts() {
  if (!counts_certain_) {
    refuse_while_capturing("asking what steps have counted");
    const DeviceState state = parts_[0]->read_state();
    counts_ = state.counts;
    skipped_ = state.skipped != 0;
    counts_certain_ = !captured_;
  }
  return counts_;
}

void Plan::set_counts(const Counts& counts) {
  refuse_while_capturing("setting what steps count");
  rates_left_ = 0;
  counts_ = counts;
  for (const auto& part : parts_) part->write_counts(counts);
}

bool Plan::skipped() {
  counts();
  return skipped_;
}

// One of the numbers that a device which decides for itself has beside its tables.
py::object Plan::number_on_device(double* number) const {
  return py::cast(DeviceArray(number, DType::float64, {}, parts_[0]->device(), parts_[0]->share_tables()));
}

py::object Plan::loss_scale_on_device() const {
  return is_alone() ? number_on_device(&parts_[0]->state()->counts.loss_scale) : py::none();
}

py::object Plan::norm() {
  if (norm_on_device_) return number_on_device(&parts_[0]->state()->norm);
  return norm_ ? py::object(py::float_(*norm_)) : py::none();
}

void Plan::look_ahead(const std::vector<double>& rates) {
  rates_left_ = 0;
  rates_begin_ = counts().calls;
  if (rates.size() > most_rates) refuse_value("there is room for " + std::to_string(most_rates) + " learning rates");
  if (!rates.empty() && parts_.empty()) refuse_value("a GPU looks up learning rates, but all variables are on the CPU");
  if (!rates.empty()) parts_[0]->write_rates(rates);
  rates_left_ = rates.size();
}

// An array stays as long as a graph may read it.
void Plan::give_rate_to_graphs(const Rate& rate, const py::object& array, bool capturing) {
  parts_[0]->write_rate_of_graphs(rate, capturing);
  // Where nothing was waited for, steps before this one may read the former yet.
  if (capturing && !rate_of_graphs_.is_none()) kept_for_graphs_.push_back(rate_of_graphs_);
  rate_of_graphs_ = array;
}

void Plan::set_learning_rate(const py::object& rate) {
  if (!captured_) return;
  const bool is_number = PyFloat_Check(rate.ptr()) != 0;
  const Rate given = is_number ? Rate{rate.cast<double>(), nullptr, DType::float64} : take_rate_on_device(rate);
  give_rate_to_graphs(given, is_number ? py::none() : rate, is_capturing());
}

}  // namespace fusedstep
