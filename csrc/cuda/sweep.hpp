// The kernels that update, as functions of a team: the threads of a block on a GPU, or one after another in a
// simulation of it. A block takes a slice, its threads take tiles of that.
#pragma once

#include "cuda/norm.hpp"
#include "rules/coefficients.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// What a block has made for the settings of the array at hand.
struct Made {
  std::uint32_t group;  // which settings
  ComputeType compute;
  CallSettings call;
  Settings settings;
  alignas(16) std::byte rule[max_rule_size];
};

FUSEDSTEP_HOST_DEVICE inline double learning_rate_of(const Launch& launch) {
  if (launch.looks_up_rate) return launch.table.rates[launch.table.state->counts.calls - launch.rates_begin];
  Rate given = launch.rate;
  if (launch.in_graph) given = launch.table.state->rate;
  if (given.array == nullptr) return given.number;
  double rate = 0;
  load(given.array, given.dtype, 0, &rate, Elements<1>());
  return rate;
}

FUSEDSTEP_HOST_DEVICE_CALLED inline void make_settings(const Launch& launch, const Array& array, Made& made) {
  const Counts& counts = launch.table.state->counts;
  made.group = array.settings;
  made.compute = array.compute;
  made.call = describe_call(launch.options, counts, launch.replicas, launch.mean);
  made.settings = settings_of(launch.options, counts, made.call, launch.table.groups[array.settings],
                              launch.hyperparameters, learning_rate_of(launch));
  if (launch.averages_only) {
    made.settings.stages = {};
    made.settings.stages.average = Average::keep;
    made.settings.stages.average_overwrites = true;
  }
}

template <template <class> class R>
FUSEDSTEP_HOST_DEVICE_CALLED inline void make(const Launch& launch, const Array& array, Made& made) {
  make_settings(launch, array, made);
  const Settings& settings = made.settings;
  if (array.compute == compute_float64) {
    coefficients<R<double>>(settings.hyperparameters, settings.learning_rate, settings.t, settings.carried, made.rule);
  } else {
    coefficients<R<float>>(settings.hyperparameters, settings.learning_rate, settings.t, settings.carried, made.rule);
  }
}

FUSEDSTEP_HOST_DEVICE inline int element_bytes(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// Works through the tiles of a slice, elements [begin, end) of an array: `work(first, Elements<V>)` on neighbours that
// start at a multiple of V elements in memory. The slice's own bounds move down to such places, but at the ends of the
// array, which alone have parts of tiles: so no slice has a tile more than its threads can share.
template <int V, class Work>
FUSEDSTEP_HOST_DEVICE inline void for_tiles(const Array& array, int bytes_of_element, std::int64_t begin,
                                            std::int64_t end, int thread, const Work& work) {
  static_assert(slice_unit % (block_threads * V) == 0);
  const auto phase = static_cast<int>(reinterpret_cast<std::uintptr_t>(array.variable) /
                                      static_cast<std::uintptr_t>(bytes_of_element) % V);
  const std::int64_t until = end < array.size ? end - phase : end;
  for (std::int64_t at = begin - phase + thread * V; at < until; at += block_threads * V) {
    const std::int64_t left = until - at;
    work(at, Elements<V>{at < 0 ? static_cast<int>(-at) : 0, left < V ? static_cast<int>(left) : V});
  }
}

// Works on what a step updates of a tile.
template <int V, class Work>
FUSEDSTEP_HOST_DEVICE inline void for_touched(const Touched& touched, std::int64_t begin, Elements<V> of,
                                              const Work& work) {
  while (of.low < of.high) {
    const Elements<V> part = touched.next(begin, of);
    if (part.low < part.high) work(part);
    of.low = part.high;
  }
}

// The rule alone, where variable and gradient are stored alike.
template <class Rule, class C, class Storage, int V, int... slot>
FUSEDSTEP_HOST_DEVICE inline void bare_tile(const Rule& rule, const Launch& launch, const Array& array,
                                            const void* gradient, std::int64_t begin, Elements<V> of,
                                            std::integer_sequence<int, slot...>) {
  Storage* const variable = static_cast<Storage*>(array.variable) + begin;
  C p[V], g[V], s[sizeof...(slot) + 1][V];
  const auto variable_loaded = load_packets(variable, of);
  const auto gradient_loaded = load_packets(static_cast<const Storage*>(gradient) + begin, of);
  (load_values(slot_of<C>(launch.table.slots[slot], array) + begin, s[slot], of), ...);
  widen_loaded(variable_loaded, p);  // which waits
  widen_loaded(gradient_loaded, g);
  FUSEDSTEP_UNROLLED
  for (int i = 0; i < V; ++i) rule(p[i], g[i], s[slot][i]...);
  store_values(p, variable, of);
  (store_values(s[slot], slot_of<C>(launch.table.slots[slot], array) + begin, of), ...);
}

template <class Rule, class C, class Storage>
FUSEDSTEP_HOST_DEVICE inline void bare_slice(const Launch& launch, const Made& made, const Array& array,
                                             const void* gradient, std::int64_t begin, std::int64_t end, int thread) {
  constexpr int V = widest_access / static_cast<int>(sizeof(Storage));
  const Rule rule = *reinterpret_cast<const Rule*>(made.rule);
  for_tiles<V>(array, sizeof(Storage), begin, end, thread, [&](std::int64_t at, Elements<V> of) {
    bare_tile<Rule, C, Storage>(rule, launch, array, gradient, at, of,
                                std::make_integer_sequence<int, Rule::slots.count>());
  });
}

template <Pass pass, class Rule, class C>
FUSEDSTEP_HOST_DEVICE inline void staged_slice(const Launch& launch, const Made& made, const Flow& flow,
                                               std::uint32_t index, const Array& array, std::int64_t begin,
                                               std::int64_t end, int thread) {
  constexpr int V = widest_access / static_cast<int>(sizeof(C));
  const Rule rule = *reinterpret_cast<const Rule*>(made.rule);
  const Touched touched(launch, index);
  if (!touched.any(begin < V ? 0 : begin - V, end)) return;  // where its tiles may begin
  for_tiles<V>(array, element_bytes(array.dtype), begin, end, thread, [&](std::int64_t at, Elements<V> of) {
    for_touched(touched, at, of, [&](Elements<V> part) {
      Tile<Rule, C, V> tile(launch, rule, flow, index, array, at, part);
      stage_tile<pass>(flow, tile, part);
    });
  });
}

FUSEDSTEP_HOST_DEVICE inline Flow flow_of(const Launch& launch, const Made& made, std::uint32_t index,
                                          bool has_gradient) {
  const Stages& stages = made.settings.stages;
  const double* const factors = launch.table.factors;
  Flow flow = {stages, stages.factor.coefficient, 0, has_gradient};
  if (made.call.clips && launch.options.clip == Clip::each) flow.factor = factors[index];
  if (made.call.clips && launch.options.clip == Clip::all) {
    flow.factor = launch.alone ? launch.table.state->factor : launch.factor;
  }
  return flow;
}

// The counts after a call that was not left out.
template <template <class> class R>
FUSEDSTEP_HOST_DEVICE_CALLED inline void advance(const Launch& launch, DeviceState& state) {
  if (launch.averages_only) return;
  Counts& counts = state.counts;
  const CallSettings call = describe_call(launch.options, counts, launch.replicas, launch.mean);
  count_made(launch.options, counts);
  if (!call.updating) return;
  const auto t = static_cast<std::uint64_t>(++counts.updates);
  if constexpr (!carries<R<double>>) return;
  counts.carried = carry<R<double>>(launch.hyperparameters, t, counts.carried);
  for (std::uint32_t k = 0; k < launch.table.groups_count; ++k) {
    Group& group = launch.table.groups[k];
    if (!group.apart) continue;
    group.carried =
        carry<R<double>>(group.hyperparameters, t - static_cast<std::uint64_t>(group.behind), group.carried);
  }
}

// The ratios of norms between two passes, by the block that is last: first the variables' norms, then the updates'.
template <class Team>
FUSEDSTEP_HOST_DEVICE_CALLED inline void finish_ratios(Team& team, const Table& table) {
  sum_arrays(team, table, table.slice_sums);
  const auto for_arrays = [&](const auto& work) {
    team.each([&](int thread) {
      for (std::uint32_t i = static_cast<std::uint32_t>(thread); i < table.arrays_count; i += block_threads) work(i);
    });
    team.wait();
  };
  for_arrays([&](std::uint32_t i) { table.factors[i] = sqrt(team.fresh(table.array_sums + i)); });
  sum_arrays(team, table, table.update_sums);
  for_arrays([&](std::uint32_t i) {
    table.factors[i] = norm_ratio(team.fresh(table.factors + i), sqrt(team.fresh(table.array_sums + i)));
  });
}

FUSEDSTEP_HOST_DEVICE inline bool is_made_for(const Made& made, const Array& array) {
  return made.group == array.settings && made.compute == array.compute;
}

template <class Rule, class C>
FUSEDSTEP_HOST_DEVICE inline void bare_slice_of(const Launch& launch, const Made& made, const Span& span,
                                                const Array& array, const void* gradient, int thread) {
  if constexpr (sizeof(C) == 4) {
    if (array.dtype == DType::bfloat16) {
      return bare_slice<Rule, C, BFloat16>(launch, made, array, gradient, span.begin, span.end, thread);
    }
    if (array.dtype == DType::float16) {
      return bare_slice<Rule, C, Float16>(launch, made, array, gradient, span.begin, span.end, thread);
    }
  }
  bare_slice<Rule, C, C>(launch, made, array, gradient, span.begin, span.end, thread);
}

// One slice, the part of one thread of a block.
template <Kernel kernel, class Rule, class C>
FUSEDSTEP_HOST_DEVICE inline void take_slice(const Launch& launch, const Made& made, const Span& span,
                                             const Array& array, const UnpackedGradient& gradient, int thread) {
  if constexpr (kernel == Kernel::bare) {
    bare_slice_of<Rule, C>(launch, made, span, array, gradient.data, thread);
  } else {
    constexpr Pass pass = kernel == Kernel::second ? Pass::second : Pass::only;
    Flow flow = flow_of(launch, made, span.index, gradient.data != nullptr);
    if (pass == Pass::second) flow.update_factor = made.settings.learning_rate * launch.table.factors[span.index];
    staged_slice<pass, Rule, C>(launch, made, flow, span.index, array, span.begin, span.end, thread);
  }
}

// The same for a first pass, the part of one thread of a warp, which sums squares of the variable and the update.
template <class Rule, class C>
FUSEDSTEP_HOST_DEVICE inline void first_slice(const Launch& launch, const Made& made, const Span& span,
                                              const Array& array, const UnpackedGradient& gradient, int thread,
                                              double* of_variable, double* of_update) {
  const Rule rule = *reinterpret_cast<const Rule*>(made.rule);
  const Flow flow = flow_of(launch, made, span.index, gradient.data != nullptr);
  constexpr int V = widest_access / static_cast<int>(sizeof(C));
  static_assert(lanes_of_thread % V == 0);
  const Touched touched(launch, span.index);
  if (!touched.any(span.begin, span.end)) return;
  for (std::int64_t row = span.begin + thread * lanes_of_thread; row < span.end; row += lanes) {
    FUSEDSTEP_UNROLLED
    for (int lane = 0; lane < lanes_of_thread; lane += V) {
      const std::int64_t from = row + lane;
      for_touched(touched, from, elements_until<V>(from, span.end), [&](Elements<V> part) {
        Tile<Rule, C, V> tile(launch, rule, flow, span.index, array, from, part);
        stage_tile<Pass::first>(flow, tile, part);
        if (!tile.updates) return;
        FUSEDSTEP_UNROLLED
        for (int i = 0; i < V; ++i) {
          const double p = tile.variable()[i], u = tile.update()[i];
          if (!part.has(i)) continue;
          of_variable[lane + i] += p * p;
          of_update[lane + i] += u * u;
        }
      });
    }
  }
}

// The first of two passes: a slice by a warp.
template <template <class> class R, class Team>
FUSEDSTEP_HOST_DEVICE inline void first_pass(Team& team, const Launch& launch, Made* made_by_warps) {
  const Table& table = launch.table;
  team.each_warp([&](std::uint32_t warp) {
    Made& made = made_by_warps[warp];
    const std::uint32_t warps = Team::warps * team.blocks();
    for (std::uint32_t i = team.block() * Team::warps + warp; i < launch.slices; i += warps) {
      const std::uint32_t slice = launch.first_slice + i;
      const Span span = span_of(table, table.slices[slice]);
      const Array array = table.arrays[span.index];
      team.wait_in_warp();
      team.by_one_of_warp([&] {
        if (i < warps || !is_made_for(made, array)) make<R>(launch, table.arrays[span.index], made);
      });
      team.wait_in_warp();
      const UnpackedGradient gradient = gradient_of(launch, 0, span.index);
      const bool visited = gradient.data != nullptr || visits_without_gradient(made.settings.stages);
      team.sum_two_lanes(
          [&](int thread, double* of_variable, double* of_update) {
            if (!visited) return;
            if (array.compute == compute_float64) {
              first_slice<R<double>, double>(launch, made, span, array, gradient, thread, of_variable, of_update);
            } else {
              first_slice<R<float>, float>(launch, made, span, array, gradient, thread, of_variable, of_update);
            }
          },
          table.slice_sums + slice, table.update_sums + slice);
    }
  });
}

// The only pass, or the second one: a slice by a block.
template <template <class> class R, Kernel kernel, class Team>
FUSEDSTEP_HOST_DEVICE inline void last_pass(Team& team, const Launch& launch, Made& made) {
  const Table& table = launch.table;
  for (std::uint32_t i = team.block(); i < launch.slices; i += team.blocks()) {
    const Span span = span_of(table, table.slices[launch.first_slice + i]);
    const Array array = table.arrays[span.index];  // a copy: of what is in memory, any store may change it
    const UnpackedGradient gradient = gradient_of(launch, 0, span.index);
    if (i == team.block() || !is_made_for(made, array)) {
      team.once([&] { make<R>(launch, table.arrays[span.index], made); });
    }
    if (gradient.data == nullptr && !visits_without_gradient(made.settings.stages)) continue;
    team.each([&](int thread) {
      if (array.compute == compute_float64) {
        take_slice<kernel, R<double>, double>(launch, made, span, array, gradient, thread);
      } else {
        take_slice<kernel, R<float>, float>(launch, made, span, array, gradient, thread);
      }
    });
  }
}

template <template <class> class R, Kernel kernel>
constexpr bool is_first_pass = takes_two_passes<R<float>> && kernel == Kernel::staged;

// A kernel of a rule. `made` has room for one of each warp in a first pass.
template <template <class> class R, Kernel kernel, class Team>
FUSEDSTEP_HOST_DEVICE inline void sweep_block(Team& team, const Launch& launch, Made* made) {
  DeviceState& state = *launch.table.state;
  const bool left_out = launch.options.skips_not_finite && launch.alone && !launch.averages_only && state.skipped != 0;
  if (!left_out) {
    if constexpr (is_first_pass<R, kernel>) {
      first_pass<R>(team, launch, made);
    } else {
      last_pass<R, kernel>(team, launch, *made);
    }
  }
  if (!team.is_last(state.blocks_done) || !launch.last || left_out) return;
  if constexpr (is_first_pass<R, kernel>) {
    finish_ratios(team, launch.table);
  } else {
    team.once([&] { advance<R>(launch, state); });
  }
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
