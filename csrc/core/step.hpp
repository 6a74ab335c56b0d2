// What a step is, as plain data: the language between the bindings, the runner and the targets.
// No functions here: this header is compiled under every target's flags.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fusedstep {

enum class DType : std::uint8_t { float32, float64, float16, bfloat16 };

// float64 variables are computed in float64, all others in float32.
enum ComputeType : std::uint8_t { compute_float32, compute_float64, compute_types };

constexpr int max_slots = 4;
constexpr int max_hyperparameters = 8;
constexpr int max_rule_size = 128;  // bytes of a rule's struct

// Slices of an array start at multiples of this many elements.
constexpr std::int64_t slice_unit = 4096;

// One variable, as the plan knows it since build.
struct Array {
  void* variable;
  std::int64_t size;
  std::uint64_t slot_offset;  // bytes from the start of every kind of slot
  DType dtype;
  ComputeType compute;
};

// Its gradient in this step; no data where there is none.
struct Gradient {
  const void* data;
  DType dtype;
};

// A stage of the pass around the rule. One that is off is absent: a coefficient of 0 or 1 would not
// do the same to -0, inf and NaN.
struct Stage {
  bool on;
  double coefficient;
};

struct Stages {
  Stage factor;  // h = h * factor
  Stage l2;      // h = h + l2 * p
  Stage decay;   // p = p - p * decay
};

// One optimizer rule as one target compiled it, for one compute type. `coefficients` makes the rule's
// struct; `sweep` applies it, with the stages around it, to consecutive arrays: to the first one from
// element `first` on, to the last one up to element `last`.
struct CompiledRule {
  void (*coefficients)(const double* hyperparameters, double learning_rate, std::uint64_t t, double carried,
                       void* rule);
  void (*sweep)(const void* rule, const Stages& stages, const Array* arrays, const Gradient* gradients,
                std::size_t count, std::int64_t first, std::int64_t last, std::byte* const* slots);
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
};

struct Step {
  int rule;  // index in the list of rules, the same in every target
  const double* hyperparameters;
  double learning_rate;
  std::uint64_t t;  // this update's number, from 1
  double carried;   // what the rule carries from update to update; 1 before the first
  Stages stages;
  const Array* arrays;
  const Gradient* gradients;
  const std::uint64_t* cost_before;  // count + 1 running sums of the arrays' costs, see slices.hpp
  std::size_t count;
  std::byte* slots[max_slots];
};

}  // namespace fusedstep
