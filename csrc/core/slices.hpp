// How the work of a step is cut into parts of equal cost, across and inside arrays.
#pragma once

#include <algorithm>

#include "core/touched.hpp"

namespace fusedstep {

// Costs are in elements of float32; visiting an array costs as much as this many.
constexpr std::uint64_t cost_of_visit = 64;

inline std::uint64_t cost_of_element(const Array& array) {
  return array.compute == compute_float64 ? 2 : 1;
}

inline std::uint64_t cost_of(const Array& array, std::int64_t elements) {
  return cost_of_visit + cost_of_element(array) * static_cast<std::uint64_t>(elements);
}

inline std::uint64_t cost_of(const Array& array) {
  return cost_of(array, array.size);
}

// A place in a step: an element of an array.
struct Place {
  std::size_t array;
  std::int64_t element;
};

// Where part `part` of `parts` begins; the last one ends where part number `parts` would begin.
inline Place part_begin(const Step& step, std::uint64_t part, std::uint64_t parts) {
  const std::uint64_t total = step.cost_before[step.count];
  if (part == 0) return {0, 0};
  if (part == parts) return {step.count, 0};
  // total / parts * part and the remainder's share apart: total * part could overflow.
  const std::uint64_t cost = total / parts * part + total % parts * part / parts;
  const std::uint64_t* const after = std::upper_bound(step.cost_before, step.cost_before + step.count + 1, cost);
  if (after == step.cost_before + step.count + 1) return {step.count, 0};
  const std::size_t array = static_cast<std::size_t>(after - step.cost_before) - 1;
  const std::uint64_t inside = cost - step.cost_before[array];
  std::int64_t element = static_cast<std::int64_t>(inside / cost_of_element(step.arrays[array]));
  if (const Rows* const rows = baseline::touched_rows(step, array)) {
    const std::int64_t k = element / rows->size;
    element = k < rows->count ? rows->indices[k] * rows->size : step.arrays[array].size;
  }
  return {array, std::min(element / slice_unit * slice_unit, step.arrays[array].size)};
}

}  // namespace fusedstep
