// Memory that is asked for before it is needed. GCC takes a function that does nothing else for one without effect, and
// drops its calls: so these are always inlined.
#pragma once

#include "core/compiled_for.hpp"
#include "core/dtypes.hpp"
#include "core/step.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// Small arrays lie all over the memory, where no hardware foresees the next one. (Slots lie one after another.) So the
// beginnings of arrays are asked for a few arrays before.
constexpr std::size_t arrays_ahead = 4;

constexpr std::int64_t cache_line = 64, most_ahead = 4 * cache_line;  // then the hardware has seen where it goes

[[gnu::always_inline]] inline void prefetch_gradient(const Step& step, std::size_t index) {
  const Gradient& gradient = step.gradients[index];
  const auto* const data = static_cast<const char*>(gradient.data);
  const std::int64_t bytes = step.arrays[index].size * bytes_of(gradient.dtype);
  for (std::int64_t at = 0; at < bytes && at < most_ahead; at += cache_line) __builtin_prefetch(data + at);
}

[[gnu::always_inline]] inline void prefetch_array(const Step& step, std::size_t index) {
  const Array& array = step.arrays[index];
  const auto* const variable = static_cast<const char*>(array.variable);
  const auto* const gradient = static_cast<const char*>(step.gradients[index].data);
  const std::int64_t bytes = array.size * bytes_of(array.dtype);
  for (std::int64_t at = 0; at < bytes && at < most_ahead; at += cache_line) {
    __builtin_prefetch(variable + at);
    __builtin_prefetch(gradient + at);
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
