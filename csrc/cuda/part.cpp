#include "cuda/part.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "core/dtypes.hpp"

namespace fusedstep {
namespace {

std::uint32_t slices_of(const Array& array) {
  return static_cast<std::uint32_t>((array.size + slice_unit - 1) / slice_unit);
}

// What puts the rows of a gradient in order takes: its SparseGradient, and its keys twice.
constexpr std::size_t keys_at = 256;
static_assert(sizeof(SparseGradient) <= keys_at);

std::size_t order_bytes(std::int64_t count) {
  return keys_at + 2 * static_cast<std::size_t>(count) * sizeof(std::uint64_t);
}

// What a rule in Python gets lies where a slot of its array would, up to multiples of this.
constexpr std::size_t handed_alignment = 256;

// That takes so many bytes of the largest array, twice.
std::size_t handed_bytes(const std::vector<Array>& arrays) {
  std::int64_t most = 0;
  for (const Array& array : arrays) most = std::max(most, array.size * bytes_of(array.compute));
  return (static_cast<std::size_t>(most) / handed_alignment + 2) * handed_alignment;
}

// Places for things one after another in one piece of memory.
class Places {
 public:
  template <class T>
  std::size_t add(std::size_t count) {
    constexpr std::size_t alignment = 256;
    const std::size_t place = end_;
    end_ += (count * sizeof(T) + alignment - 1) / alignment * alignment;
    return place;
  }
  std::size_t size() const { return end_; }

 private:
  std::size_t end_ = 0;
};

}  // namespace

DevicePart::DevicePart(int device, std::vector<Array> arrays, std::size_t most_groups, std::size_t slot_stride,
                       int rule_slots, bool accumulates, bool averages, bool custom)
    : device_(device),
      arrays_(std::move(arrays)),
      shared_slots_(std::make_shared<DeviceMemory>(
          device,
          std::max<std::size_t>(slot_stride * static_cast<std::size_t>(rule_slots + accumulates + averages), 1))),
      slots_(*shared_slots_) {
  std::vector<Slice> slices;
  std::vector<LeafGroup> leaf_groups;
  std::vector<std::uint32_t> leaf_groups_before = {0}, long_groups, long_arrays;
  slices_before_ = {0};
  constexpr std::size_t most = std::numeric_limits<std::uint32_t>::max();
  for (std::size_t i = 0; i < arrays_.size(); ++i) {
    const std::uint32_t count = slices_of(arrays_[i]);
    if (arrays_[i].size / slice_unit + static_cast<std::int64_t>(slices.size()) > static_cast<std::int64_t>(most)) {
      throw std::runtime_error("more than 2^44 elements on one device");
    }
    for (std::uint32_t k = 0; k < count; k += static_cast<std::uint32_t>(slice_unit)) {
      const std::uint32_t left = count - k, unit = static_cast<std::uint32_t>(slice_unit);
      if (left > 1) long_groups.push_back(static_cast<std::uint32_t>(leaf_groups.size()));
      leaf_groups.push_back({static_cast<std::uint32_t>(slices.size()) + k, std::min(left, unit)});
    }
    for (std::uint32_t k = 0; k < count; ++k) slices.push_back({static_cast<std::uint32_t>(i), k});
    if (leaf_groups.size() - leaf_groups_before.back() > 1) long_arrays.push_back(static_cast<std::uint32_t>(i));
    leaf_groups_before.push_back(static_cast<std::uint32_t>(leaf_groups.size()));
    slices_before_.push_back(static_cast<std::uint32_t>(slices.size()));
  }

  // The sum over the arrays needs as many sums of leaves, too.
  const std::size_t group_sums = std::max(leaf_groups.size(), arrays_.size() / slice_unit + 1);
  Places places;
  const std::size_t state_at = places.add<DeviceState>(1), rates_at = places.add<double>(most_rates),
                    arrays_at = places.add<Array>(arrays_.size()), slices_at = places.add<Slice>(slices.size()),
                    before_at = places.add<std::uint32_t>(leaf_groups_before.size()),
                    leaf_groups_at = places.add<LeafGroup>(leaf_groups.size()),
                    long_groups_at = places.add<std::uint32_t>(long_groups.size()),
                    long_arrays_at = places.add<std::uint32_t>(long_arrays.size()),
                    slice_sums_at = places.add<double>(slices.size()),
                    update_sums_at = places.add<double>(slices.size()), group_sums_at = places.add<double>(group_sums),
                    array_sums_at = places.add<double>(arrays_.size()), factors_at = places.add<double>(arrays_.size()),
                    groups_at = places.add<Group>(most_groups), other_groups_at = places.add<Group>(most_groups);
  shared_tables_ = std::make_shared<DeviceMemory>(device, places.size());
  std::byte* const tables = shared_tables_->as<std::byte>();
  const auto put = [&](std::size_t at, const auto& values) {
    if (!values.empty()) devices()->write(device_, tables + at, values.data(), values.size() * sizeof(values[0]));
  };
  put(arrays_at, arrays_);
  put(slices_at, slices);
  put(before_at, leaf_groups_before);
  put(leaf_groups_at, leaf_groups);
  put(long_groups_at, long_groups);
  put(long_arrays_at, long_arrays);
  state_ = reinterpret_cast<DeviceState*>(tables + state_at);
  write_counts(Counts());

  table_.arrays = reinterpret_cast<const Array*>(tables + arrays_at);
  table_.slices = reinterpret_cast<const Slice*>(tables + slices_at);
  table_.leaf_groups_before = reinterpret_cast<const std::uint32_t*>(tables + before_at);
  table_.leaf_groups = reinterpret_cast<const LeafGroup*>(tables + leaf_groups_at);
  table_.long_groups = reinterpret_cast<const std::uint32_t*>(tables + long_groups_at);
  table_.long_arrays = reinterpret_cast<const std::uint32_t*>(tables + long_arrays_at);
  table_.state = state_;
  table_.rates = reinterpret_cast<double*>(tables + rates_at);
  int kind = 0;
  const auto next_kind = [&] { return slots() + slot_stride * static_cast<std::size_t>(kind++); };
  while (kind < rule_slots) {
    const int k = kind;
    std::byte* const slots_of_kind = next_kind();
    if (!custom) table_.slots[k] = slots_of_kind;
  }
  if (accumulates) table_.accumulator = next_kind();
  if (averages) table_.average = next_kind();
  table_.slice_sums = reinterpret_cast<double*>(tables + slice_sums_at);
  table_.update_sums = reinterpret_cast<double*>(tables + update_sums_at);
  table_.group_sums = reinterpret_cast<double*>(tables + group_sums_at);
  table_.array_sums = reinterpret_cast<double*>(tables + array_sums_at);
  table_.factors = reinterpret_cast<double*>(tables + factors_at);
  groups_places_[0] = table_.groups = reinterpret_cast<Group*>(tables + groups_at);
  groups_places_[1] = reinterpret_cast<Group*>(tables + other_groups_at);
  table_.arrays_count = static_cast<std::uint32_t>(arrays_.size());
  table_.leaf_groups_count = static_cast<std::uint32_t>(leaf_groups.size());
  table_.long_groups_count = static_cast<std::uint32_t>(long_groups.size());
  table_.long_arrays_count = static_cast<std::uint32_t>(long_arrays.size());
  if (custom) shared_handed_ = std::make_shared<DeviceMemory>(device, 2 * handed_bytes(arrays_));
}

void DevicePart::configure(const std::vector<Group>& groups, const std::vector<Array>& build, bool at_once) {
  // What was written is remembered after that: where it cannot be, the next call finds the change again.
  if (std::ranges::any_of(arrays_,
                          [&](const Array& array) { return array.settings != build[array.number].settings; })) {
    std::vector<Array> changed = arrays_;
    for (Array& array : changed) array.settings = build[array.number].settings;
    devices()->write(device_, const_cast<Array*>(table_.arrays), changed.data(), changed.size() * sizeof(Array));
    arrays_ = std::move(changed);
  }
  const std::size_t bytes = groups.size() * sizeof(Group);
  if (groups.size() == groups_.size() && std::memcmp(groups.data(), groups_.data(), bytes) == 0) return;
  at_once |= groups_.empty();  // a build has waited already
  if (at_once) devices()->write(device_, table_.groups, groups.data(), bytes);
  groups_ = groups;
  table_.groups_count = static_cast<std::uint32_t>(groups.size());
  groups_changed_ = !at_once;
}

void DevicePart::write_groups(bool capturing, void* stream) {
  if (!groups_changed_) return;
  const std::size_t bytes = groups_.size() * sizeof(Group);
  if (capturing) {
    // That is not in the order of any stream, and steps before this one may still read the former groups.
    Group* const other = table_.groups == groups_places_[0] ? groups_places_[1] : groups_places_[0];
    devices()->write_during_capture(device_, other, groups_.data(), bytes);
    table_.groups = other;
  } else {
    devices()->write_in_order(device_, table_.groups, groups_.data(), bytes, stream);
  }
  groups_changed_ = false;
}

// Whether there is nothing to do but the rule.
bool DevicePart::is_bare(const DeviceStep& step) const {
  const auto call = baseline::describe_call(step.options, Counts(), step.replicas, step.mean);
  const auto has_stage = [&](const Group& group) {
    return baseline::any_stage(baseline::settings_of(step.options, Counts(), call, group, nullptr, 0).stages);
  };
  if (step.two_passes || step.replicas > 1 || std::ranges::any_of(groups_, has_stage)) return false;
  return std::ranges::all_of(arrays_, [&](const Array& array) {
    const Gradient& gradient = step.gradients[array.number];
    return gradient.data == nullptr || (gradient.rows == nullptr && gradient.dtype == array.dtype);
  });
}

bool DevicePart::has_rows(const DeviceStep& step) {
  const Gradient* const end = step.gradients + step.replicas * step.variables;
  return std::any_of(step.gradients, end, [](const Gradient& gradient) { return gradient.rows != nullptr; });
}

PackedGradient DevicePart::packed_gradient(const DeviceStep& step, std::size_t replica, std::size_t index) const {
  const Gradient& gradient = step.gradients[replica * step.variables + arrays_[index].number];
  if (gradient.data == nullptr) return {0};
  if (gradient.rows == nullptr) return packed(gradient.data, gradient.dtype, false);
  return packed(orders_[replica * arrays_.size() + index].memory.as<void>(), gradient.dtype, true);
}

// Calls work(gradient, array, order) for each sparse gradient. (Of an empty variable no kernel looks for rows.)
template <class Work>
void DevicePart::for_rows(const DeviceStep& step, const Work& work) {
  orders_.resize(std::max(orders_.size(), step.replicas * arrays_.size()));
  for (std::size_t replica = 0; replica < step.replicas; ++replica) {
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      const Gradient& gradient = step.gradients[replica * step.variables + arrays_[i].number];
      if (gradient.rows == nullptr || arrays_[i].size == 0) continue;
      work(gradient, arrays_[i], orders_[replica * arrays_.size() + i]);
    }
  }
}

const Array* DevicePart::find_without_room(const DeviceStep& step) {
  const Array* found = nullptr;
  for_rows(step, [&](const Gradient& gradient, const Array& array, const Order& order) {
    if (order.memory.size() < order_bytes(gradient.rows->count)) found = &array;
  });
  return found;
}

void DevicePart::make_room(const DeviceStep& step) {
  for_rows(step, [&](const Gradient& gradient, const Array&, Order& order) {
    const auto count = static_cast<std::uint64_t>(gradient.rows->count);
    if (order.memory.size() >= order_bytes(gradient.rows->count)) return;
    // More than is needed, because an allocation waits for the device. It has to: steps before this one may use what is
    // outgrown until then.
    DeviceMemory larger(device_, order_bytes(static_cast<std::int64_t>(std::bit_ceil(count))));
    std::swap(order.memory, larger);
    if (order.in_graph) outgrown_.push_back(std::move(larger));
    order.in_graph = false;
  });
}

void DevicePart::order_rows(const DeviceStep& step, bool capturing, void* stream) {
  for_rows(step, [&](const Gradient& gradient, const Array& array, Order& order) {
    order.in_graph |= capturing;
    const Rows& rows = *gradient.rows;
    auto* const keys = reinterpret_cast<std::uint64_t*>(order.memory.as<std::byte>() + keys_at);
    std::uint64_t* const buffers[] = {keys, keys + rows.count};
    int merges = 0;
    for (std::int64_t ordered = block_threads; ordered < rows.count; ordered *= 2) ++merges;
    OrderPass pass = {};
    pass.rows = rows;
    pass.rows_of_variable = array.size / rows.size;
    pass.gradient = {buffers[merges % 2], rows.count, rows.size, gradient.data, gradient.dtype};
    pass.written = order.memory.as<SparseGradient>();
    for (int number = 0; number <= merges; ++number) {
      pass.to = buffers[number % 2];
      devices()->launch_order(device_, pass, stream);
      pass.from = pass.to;
      pass.ordered = number == 0 ? block_threads : 2 * pass.ordered;
    }
  });
}

void DevicePart::describe_launch(const DeviceCall& call, bool averages_only) {
  static_cast<DeviceCall&>(launch_) = call;
  launch_.table = table_;
  launch_.averages_only = averages_only;
}

// What was described, over some arrays.
void DevicePart::launch_arrays(const DeviceStep& step, Kernel kernel, std::size_t begin, std::size_t end, bool last,
                               void* stream) {
  Launch& launch = launch_;
  launch.first_array = static_cast<std::uint32_t>(begin);
  launch.arrays = static_cast<std::uint32_t>(end - begin);
  launch.first_slice = slices_before_[begin];
  launch.slices = slices_before_[end] - slices_before_[begin];
  launch.last = last;
  for (std::size_t replica = 0; replica < step.replicas; ++replica) {
    PackedGradient* const list = launch.gradients + replica * (end - begin);
    for (std::size_t i = begin; i < end; ++i) {
      list[i - begin] = launch.averages_only ? PackedGradient{0} : packed_gradient(step, replica, i);
    }
  }
  devices()->launch(device_, step.rule, kernel, launch, stream);
}

void DevicePart::launch(const DeviceStep& step, Kernel kernel, bool averages_only, void* stream) {
  describe_launch(step, averages_only);
  const std::size_t at_once = most_gradients / step.replicas;
  for (std::size_t begin = 0; begin == 0 || begin < arrays_.size(); begin += at_once) {
    const std::size_t end = std::min(begin + at_once, arrays_.size());
    launch_arrays(step, kernel, begin, end, end == arrays_.size(), stream);
  }
}

std::byte* DevicePart::handed(int which, std::size_t index) const {
  const std::size_t offset = arrays_[index].slot_offset % handed_alignment;
  return shared_handed_->as<std::byte>() + static_cast<std::size_t>(which) * (shared_handed_->size() / 2) + offset;
}

void DevicePart::launch_custom(const DeviceStep& step, Kernel kernel, std::size_t index, void* stream) {
  describe_launch(step, false);
  for (const int which : {handed_variable, handed_gradient}) {
    launch_.table.slots[which] = handed(which, index) - arrays_[index].slot_offset;
  }
  launch_arrays(step, kernel, index, index + 1, false, stream);
}

void DevicePart::launch_rest(const DeviceStep& step, std::size_t count, bool completes, void* stream) {
  describe_launch(step, false);
  for (std::size_t begin = 0; begin < count; begin += most_gradients) {
    const std::size_t end = std::min<std::size_t>(begin + most_gradients, count);
    launch_arrays(step, Kernel::staged, begin, end, completes && end == count, stream);
  }
}

void DevicePart::launch_norms(const DeviceStep& step, void* stream) {
  launch(step, has_rows(step) ? Kernel::norms_of_any : Kernel::norms, false, stream);
}

void DevicePart::launch_update(const DeviceStep& step, void* stream) {
  launch(step, is_bare(step) ? Kernel::bare : Kernel::staged, false, stream);
  if (step.two_passes) launch(step, Kernel::second, false, stream);
}

void DevicePart::launch_averages(const DeviceStep& step, void* stream) {
  launch(step, step.two_passes ? Kernel::second : Kernel::staged, true, stream);
}

bool DevicePart::read_sums(std::vector<double>& of_variables) {
  std::vector<double> sums(arrays_.size());
  if (!sums.empty()) devices()->read(device_, sums.data(), table_.array_sums, sums.size() * sizeof(double));
  for (std::size_t i = 0; i < arrays_.size(); ++i) of_variables[arrays_[i].number] = sums[i];
  return read_state().seen_not_finite == 0;
}

DeviceState DevicePart::read_state() {
  DeviceState state;
  devices()->read(device_, &state, state_, sizeof(state));
  return state;
}

void DevicePart::write_counts(const Counts& counts) {
  devices()->write(device_, &state_->counts, &counts, sizeof(counts));
}

void DevicePart::write_rates(const std::vector<double>& rates) {
  devices()->write(device_, table_.rates, rates.data(), rates.size() * sizeof(double));
}

void DevicePart::write_rate_of_graphs(const Rate& rate, bool capturing) {
  if (capturing) {
    devices()->write_during_capture(device_, &state_->rate, &rate, sizeof(rate));
  } else {
    devices()->write(device_, &state_->rate, &rate, sizeof(rate));
  }
}

}  // namespace fusedstep
