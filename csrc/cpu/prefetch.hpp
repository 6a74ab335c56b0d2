// Memory that is asked for before it is needed.
#pragma once

#include "core/compiled_for.hpp"
#include "core/dtypes.hpp"
#include "core/step.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

inline void prefetch(const void* memory) {
  __builtin_prefetch(memory);
  asm volatile("");  // GCC takes a function that does nothing else for one without effect, and drops its calls
}

// Small arrays lie all over the memory, where no hardware foresees the next one. (Slots lie one after another.) So the
// beginnings of arrays are asked for a few arrays before.
constexpr std::size_t arrays_ahead = 4;

inline void prefetch_beginning(const void* memory, std::int64_t bytes) {
  constexpr std::int64_t line = 64, most = 4 * line;  // then the hardware has seen where it goes
  for (std::int64_t at = 0; at < bytes && at < most; at += line) prefetch(static_cast<const char*>(memory) + at);
}

inline void prefetch_gradient(const Step& step, std::size_t index) {
  const Gradient& gradient = step.gradients[index];
  prefetch_beginning(gradient.data, step.arrays[index].size * bytes_of(gradient.dtype));
}

inline void prefetch_variable(const Step& step, std::size_t index) {
  const Array& array = step.arrays[index];
  prefetch_beginning(array.variable, array.size * bytes_of(array.dtype));
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
