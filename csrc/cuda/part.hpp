// What a plan has on one device: its tables and slots there, and how a step over them is launched. Host code, the
// same over CUDA's devices and simulated ones.
#pragma once

#include <vector>

#include "cuda/devices.hpp"
#include "cuda/launch.hpp"

namespace fusedstep {

// A step as the host describes it to all devices.
struct DeviceStep : DeviceCall {
  int rule;
  bool two_passes;
  const Gradient* gradients;  // each list of as many as the build has variables
  std::size_t variables;
};

class DevicePart {
 public:
  // `arrays` are the build's on this device, in its order; their numbers are those in the build, whose
  // variables are in up to `most_groups`. A slot of any kind takes `slot_stride` bytes over all of them.
  DevicePart(int device, std::vector<Array> arrays, std::size_t most_groups, std::size_t slot_stride, int rule_slots,
             bool accumulates, bool averages, bool custom);

  int device() const { return device_; }
  const std::vector<Array>& arrays() const { return arrays_; }
  std::byte* slots() const { return slots_.as<std::byte>(); }
  std::size_t slots_size() const { return slots_.size(); }
  std::shared_ptr<DeviceMemory> share_slots() const { return shared_slots_; }
  DeviceState* state() const { return state_; }
  std::shared_ptr<DeviceMemory> share_tables() const { return shared_tables_; }

  // What single variables have of their own from now on. Groups are on the device before the next launch, of which
  // write_groups tells; before this returns, and having waited, where graphs are replayed without one.
  void configure(const std::vector<Group>& groups, const std::vector<Array>& build, bool at_once);
  void write_groups(bool capturing, void* stream);

  // What sparse gradients need before the kernels of a step: memory to put their rows in order, which is kept, then the
  // kernels that do it, on the same stream. Null, or an array for whose rows there is no memory yet.
  const Array* find_without_room(const DeviceStep& step);
  void make_room(const DeviceStep& step);
  void order_rows(const DeviceStep& step, bool capturing, void* stream);

  // The sums of the squares of all gradients, and what they come to where the device is alone.
  void launch_norms(const DeviceStep& step, void* stream);
  void launch_update(const DeviceStep& step, void* stream);
  void launch_averages(const DeviceStep& step, void* stream);

  // Around a rule in Python, for one array: what the rule gets comes to where `handed` says, and from there the
  // variable is stored. Arrays take turns with that memory.
  void launch_custom(const DeviceStep& step, Kernel kernel, std::size_t index, void* stream);
  // After it, what is not the rule's, of the first `count` arrays; the call counts where it `completes`.
  void launch_rest(const DeviceStep& step, std::size_t count, bool completes, void* stream);
  std::byte* handed(int which, std::size_t index) const;
  std::shared_ptr<DeviceMemory> share_handed() const { return shared_handed_; }

  // Waits. Adds the arrays' sums to those of the build's variables; false where a gradient was not finite.
  bool read_sums(std::vector<double>& of_variables);
  DeviceState read_state();
  void write_counts(const Counts& counts);
  void write_rate_of_graphs(const Rate& rate, bool capturing);
  void write_rates(const std::vector<double>& rates);

 private:
  // Where the rows of one gradient are put in order. Steps use it one after another, as they do the variables.
  struct Order {
    DeviceMemory memory;  // a SparseGradient, and twice its keys
    bool in_graph = false;
  };

  void describe_launch(const DeviceCall& call, bool averages_only);
  void launch_arrays(const DeviceStep& step, Kernel kernel, std::size_t begin, std::size_t end, bool last,
                     void* stream);
  void launch(const DeviceStep& step, Kernel kernel, bool averages_only, void* stream);
  bool is_bare(const DeviceStep& step) const;
  static bool has_rows(const DeviceStep& step);
  PackedGradient packed_gradient(const DeviceStep& step, std::size_t replica, std::size_t index) const;
  template <class Work>
  void for_rows(const DeviceStep& step, const Work& work);

  int device_;
  std::vector<Array> arrays_;
  std::vector<std::uint32_t> slices_before_;  // of each array
  std::vector<Group> groups_;
  Table table_ = {};
  DeviceState* state_ = nullptr;
  std::shared_ptr<DeviceMemory> shared_slots_, shared_tables_, shared_handed_;
  DeviceMemory& slots_;
  Group* groups_places_[2] = {};        // of which a table has one, and a graph that was captured with it, too
  bool groups_changed_ = false;         // and are not on the device yet
  std::vector<Order> orders_;           // of the arrays of each replica
  std::vector<DeviceMemory> outgrown_;  // which graphs still use
  Launch launch_ = {};                  // the one that is made at a time
};

}  // namespace fusedstep
