// Around a rule in Python, which takes one array after another: a kernel before it makes variable and gradient in the
// compute type, a kernel after it stores the variable.
#pragma once

#include "cuda/sweep.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class C>
FUSEDSTEP_HOST_DEVICE inline C* handed(const Launch& launch, const Array& array, int which, std::int64_t begin) {
  return slot_of<C>(launch.table.slots[which], array) + begin;
}

// One slice, the part of one thread of a block.
template <Kernel kernel, class C>
FUSEDSTEP_HOST_DEVICE inline void custom_slice(const Launch& launch, const Made& made, const Span& span, int thread) {
  constexpr int V = widest_access / static_cast<int>(sizeof(C));
  const Array array = launch.table.arrays[span.index];
  for_tiles<V>(array, element_bytes(array.dtype), span.begin, span.end, thread, [&](std::int64_t at, Elements<V> of) {
    C p[V], h[V];
    if constexpr (kernel == Kernel::hand_over) {
      const Flow flow = flow_of(launch, made, span.index, true);
      Gathering<true, C, V> gradient;
      Arriving<C, V> variable;
      gradient.load(launch, flow.stages, span.index, array, at, of);
      variable.load(array.variable, stored_as<C>(array), at, of);
      variable.widen_all(p);
      gradient.sum(launch, flow.stages, span.index, at, h, of);
      if (flow.stages.clears_gradient) clear(gradient_of(launch, 0, span.index), at, of);
      prepare<C, V>(flow, p, h);
      decay(flow.stages, p, of);
      store_values(p, handed<C>(launch, array, handed_variable, at), of);
      store_values(h, handed<C>(launch, array, handed_gradient, at), of);
    } else {
      load_values(handed<C>(launch, array, handed_variable, at), p, of);
      store_variable(p, array, at, of);
    }
  });
}

template <Kernel kernel, class Team>
FUSEDSTEP_HOST_DEVICE inline void custom_block(Team& team, const Launch& launch, Made& made) {
  const Table& table = launch.table;
  for (std::uint32_t i = team.block(); i < launch.slices; i += team.blocks()) {
    const Span span = span_of(table, table.slices[launch.first_slice + i]);
    const Array& array = table.arrays[span.index];
    if (kernel == Kernel::hand_over && i == team.block()) team.once([&] { make_settings(launch, array, made); });
    team.each([&](int thread) {
      if (array.compute == compute_float64) {
        custom_slice<kernel, double>(launch, made, span, thread);
      } else {
        custom_slice<kernel, float>(launch, made, span, thread);
      }
    });
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
