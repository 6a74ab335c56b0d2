// A launch of a kernel, as plain data: what the host passes and what lies on the device.
//
// What only a build changes is a table on the device. A step passes the rest as the kernel's parameters, of which
// there may be 32 764 bytes: 8 for each gradient. So a step of up to most_gradients arrays is one launch, without a
// copy to the device. What steps advance, counts above all, is on the device, so that a decision there and a replayed
// graph need no host.
#pragma once

#include "core/options.hpp"
#include "core/step.hpp"

namespace fusedstep {

enum class Kernel : std::uint8_t {
  // Of each rule.
  bare,    // the rule alone
  staged,  // with all stages around it; of a rule that takes two passes, the first
  second,  // and the second
  // The same for all rules.
  norms,         // of dense gradients
  norms_of_any,  // of sparse ones, too: more registers, so less is on its way from memory
  hand_over,     // before a rule in Python
  take_back,     // and after it
};

constexpr Kernel all_kernels[] = {Kernel::bare,         Kernel::staged,    Kernel::second,   Kernel::norms,
                                  Kernel::norms_of_any, Kernel::hand_over, Kernel::take_back};

FUSEDSTEP_HOST_DEVICE constexpr bool is_of_norms(Kernel kernel) {
  return kernel == Kernel::norms || kernel == Kernel::norms_of_any;
}

// Which of a table's slots, around a rule in Python, are what that gets.
constexpr int handed_variable = 0, handed_gradient = 1;

constexpr int block_threads = 256;
constexpr int warp_threads = 32;

// A part of an array that a block, or a warp, takes: slice_unit elements from a multiple of it on. The leaves of
// norms are the slices.
struct Slice {
  std::uint32_t array;
  std::uint32_t number;
};

// Up to slice_unit leaves of one array, whose sums the tree takes together.
struct LeafGroup {
  std::uint32_t first;
  std::uint32_t count;
};

// A sparse gradient whose rows have been put in order. A row's key is index * count + position, where it was given: so
// keys are unique, and rows of equal indices are next to each other, in the order in which they were given.
struct SparseGradient {
  const std::uint64_t* keys;  // increasing
  std::int64_t count;
  std::int64_t size;   // of a row, in elements
  const void* values;  // as they were given
  DType dtype;
};

// One of the kernels that make that order: the first puts keys in order within tiles of block_threads, each of the
// others makes two neighbours of what is in order one.
struct OrderPass {
  Rows rows;
  std::int64_t rows_of_variable;
  std::int64_t ordered;  // keys that are in order already, from each multiple of it on; 0 in the first pass
  const std::uint64_t* from;
  std::uint64_t* to;
  SparseGradient gradient;  // with the keys where the last pass puts them,
  SparseGradient* written;  // and where the first pass writes it, so that nothing is copied to the device
};

// What a kernel writes that gets it as a parameter: unlike a copy from the host's memory, that never waits. So much
// fits beside the address where kernels' parameters are at their smallest, 4096 bytes.
constexpr std::uint32_t most_words = 510;

struct WordsToWrite {
  std::uint64_t* to;
  std::uint32_t count;
  std::uint64_t words[most_words];
};
static_assert(sizeof(WordsToWrite) <= 4096);

// A gradient in 8 bytes: its address, which has less than 57 bits, its dtype above them, and on top whether the address
// is that of a SparseGradient. Zero where there is none.
struct PackedGradient {
  std::uint64_t bits;
};

constexpr int dtype_shift = 60, sparse_shift = 63;

inline PackedGradient packed(const void* address, DType dtype, bool sparse) {
  return {static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(address)) |
          static_cast<std::uint64_t>(dtype) << dtype_shift | static_cast<std::uint64_t>(sparse) << sparse_shift};
}

struct UnpackedGradient {
  const void* data;              // null where there is no gradient
  const SparseGradient* sparse;  // what that points to, where there are rows
  DType dtype;
};

FUSEDSTEP_HOST_DEVICE inline UnpackedGradient unpacked(PackedGradient gradient) {
  if (gradient.bits == 0) return {nullptr, nullptr, DType::float32};
  const auto dtype = static_cast<DType>(gradient.bits >> dtype_shift & 3);
  const auto* const address = reinterpret_cast<const void*>(gradient.bits & ((std::uint64_t{1} << dtype_shift) - 1));
  const bool sparse = gradient.bits >> sparse_shift != 0;
  return {address, sparse ? static_cast<const SparseGradient*>(address) : nullptr, dtype};
}

// A learning rate: a number, or what an array on the device has when it is read, where that is not null.
struct Rate {
  double number;
  const void* array;
  DType dtype;
};

// What a build has on the device beside its tables and slots.
struct DeviceState {
  Counts counts;
  Rate rate;                      // of steps in graphs, whatever it was when they were captured
  double norm;                    // of the gradients of the last call
  double factor;                  // that it came to, where all are clipped together
  std::uint32_t skipped;          // whether the last call was left out
  std::uint32_t not_finite;       // whether the call that runs has seen a gradient that is not
  std::uint32_t seen_not_finite;  // whether the last one has
  std::uint32_t blocks_done;      // of the kernel that runs
};

// How many calls a device can be told the learning rates of at once.
constexpr std::size_t most_rates = 256;

// Where things are on the device.
struct Table {
  const Array* arrays;
  const Slice* slices;
  Group* groups;
  const std::uint32_t* leaf_groups_before;  // of each array, in leaf_groups
  const LeafGroup* leaf_groups;
  // Which groups have more than one leaf, and which arrays more than one group: for a sum of one, no warp is needed.
  const std::uint32_t* long_groups;
  const std::uint32_t* long_arrays;
  DeviceState* state;
  double* rates;  // learning rates of calls ahead, most_rates of them
  std::byte* slots[max_slots];
  std::byte* accumulator;
  std::byte* average;
  // Sums of squares: of each slice, group, array; where a rule takes two passes, of the updates, too.
  double* slice_sums;
  double* update_sums;
  double* group_sums;
  double* array_sums;
  double* factors;  // of each array: of its gradient, or of its update between two passes
  std::uint32_t arrays_count;
  std::uint32_t leaf_groups_count;
  std::uint32_t long_groups_count;
  std::uint32_t long_arrays_count;
  std::uint32_t groups_count;
};

// In one kernel's parameters, beside what else there is.
constexpr std::uint32_t most_gradients = 4000;

// What is the same in all launches of a step, on all its devices.
struct DeviceCall {
  Options options;
  double hyperparameters[max_hyperparameters];
  Rate rate;
  bool in_graph;             // the device's state has it
  bool looks_up_rate;        // it is among the table's,
  std::int64_t rates_begin;  // of which the first is that after so many calls
  std::uint32_t replicas;    // lists of gradients, one after another
  bool mean;                 // over them
  bool alone;                // all arrays of the build are on one device, which so decides for itself
  double factor;             // where it is not, and all gradients are clipped together
};

struct Launch : DeviceCall {
  Table table;
  bool averages_only;  // no update: the variables take the values of their averages
  bool last;           // of the launches of a kernel in this step
  std::uint32_t first_array, arrays;
  std::uint32_t first_slice, slices;
  PackedGradient gradients[most_gradients];
};
static_assert(sizeof(Launch) <= 32764, "the parameters of a kernel");

}  // namespace fusedstep
