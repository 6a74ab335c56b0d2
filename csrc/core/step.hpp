// What a step is, as plain data: the language between the bindings, the runner and the targets.
// No functions here: this header is compiled under every target's flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedstep {

enum class DType : std::uint8_t { float32, float64, float16, bfloat16 };

// float64 variables are computed in float64, all others in float32.
enum ComputeType : std::uint8_t { compute_float32, compute_float64, compute_types };

constexpr int max_slots = 4;  // of a rule
constexpr int max_hyperparameters = 8;
constexpr int max_rule_size = 128;  // bytes of a rule's struct

// Slices of an array start at multiples of this many elements, and so do the leaves of a norm's tree.
constexpr std::int64_t slice_unit = 4096;

// One variable, as the plan knows it since build.
struct Array {
  void* variable;
  std::int64_t size;
  std::uint64_t slot_offset;  // bytes from the start of every kind of slot
  DType dtype;
  ComputeType compute;
  std::uint16_t settings;  // which of the step's
  std::uint32_t number;    // the variable's, in the build
};

// The rows that a sparse gradient has: increasing indices, each with `size` elements of the gradient's data. On a GPU,
// where the host cannot look at them, they are as they were given: in any order, several of them equal, some of no row.
struct Rows {
  const std::int64_t* indices;
  std::int64_t count;
  std::int64_t size;
  const std::int32_t* narrow_indices = nullptr;  // in the place of the others, on a GPU
};

// A variable's gradient in this step; no data where there is none.
struct Gradient {
  const void* data;
  const Rows* rows;  // null where all elements are there
  DType dtype;
};

// A stage of the pass around the rule. One that is off is absent: a coefficient of 0 or 1 would not
// do the same to -0, inf and NaN.
struct Stage {
  bool on;
  double coefficient;
};

// What becomes of the gradients' sums over calls.
enum class Accumulation : std::uint8_t { off, add, flush };

// What becomes of the variables' averages. start: average = p; move: average = momentum * average + (1 - momentum) * p.
enum class Average : std::uint8_t { off, keep, start, move };

// In the order in which they come; h is the gradient, p the variable.
struct Stages {
  bool clears_gradient;       // once it is read: g = 0
  Stage unscale;              // h = h * unscale
  Accumulation accumulation;  // add: acc = acc + h, and no update; flush: h = acc + h, acc = 0
  Stage factor;               // h = h * factor; of the array where the step has factors
  Stage clip;                 // h = clip(h, -clip, clip)
  Stage l2;                   // h = h + l2 * p
  Stage decay;                // p = p - p * decay
  Average average;            // after the rule, with p as stored
  double average_momentum;
  bool average_overwrites;  // p = average
};

// What may differ between the variables of a step.
struct Settings {
  double learning_rate;
  Stages stages;
  const double* hyperparameters;
  std::uint64_t t;  // this update's number, from 1
  double carried;   // what the rule carries from update to update; 1 before the first
};

struct Step;

// Elements of consecutive arrays, which have the same compute type and settings: of the first one from
// element `first` on, of the last one up to element `last`.
struct Run {
  std::size_t begin;
  std::size_t count;
  std::int64_t first;
  std::int64_t last;
};

// One optimizer rule as one target compiled it, for one compute type. `coefficients` makes the rule's
// struct; `sweep` applies it, with the stages around it, to a run. A rule that needs norms of its updates takes
// two passes: `sweep` writes the sums of squares that `finish` needs, once they are ratios.
struct CompiledRule {
  void (*coefficients)(const double* hyperparameters, double learning_rate, std::uint64_t t, double carried,
                       void* rule);
  void (*sweep)(const void* rule, const Step& step, const Run& run);
  void (*finish)(const void* rule, const Step& step, const Run& run);  // null where there is one pass
};

// What a target compiled beside the rules, for one compute type.
struct CompiledNorm {
  // The sum of the squares of one leaf of an array's gradient: up to slice_unit elements from `begin` on. Of the
  // gradient that the stages would accumulate to. Says whether all its elements are finite.
  bool (*leaf)(const Step& step, std::size_t array, std::int64_t begin, double* sum);
};

struct Rule {
  const char* name;
  const char* const* slots;
  int slot_count;
  const char* const* hyperparameters;
  int hyperparameter_count;
  // What the next update's coefficients get as `carried`, after update t; null where they need none.
  double (*carry)(const double* hyperparameters, std::uint64_t t, double carried);
  CompiledRule compiled[compute_types];
  bool divides_by_learning_rate = false;
};

// Between the passes of a rule that takes two: sums of squares for each leaf of the tree, of the variable before its
// update and of the update; and for each array what its updates are multiplied by.
struct Ratios {
  const std::size_t* leaves_before;  // of each array
  double* variable_squares;
  double* update_squares;
  const double* ratios;
};

struct Step {
  int rule;            // index in the list of rules, the same in every target
  const Rule* custom;  // in its place, one that targets do not have; may be null
  const Settings* settings;
  std::size_t settings_count;
  const Array* arrays;
  const Gradient* gradients;   // `replicas` lists of them, one after another; the sum counts, in their order
  const Rows* const* touched;  // of each array, the rows that are updated, or null for all; may be null itself
  std::size_t replicas;
  const std::uint64_t* cost_before;  // count + 1 running sums of the arrays' costs, see slices.hpp
  std::size_t count;
  const double* factors;  // for each array; may be null
  const Ratios* ratios;
  std::byte* slots[max_slots];
  std::byte* accumulator;
  std::byte* average;
};

}  // namespace fusedstep
