// The norms of gradients, and of what a first pass made: the tree of core/tree.hpp, a leaf by a warp.
#pragma once

#include "core/primitives.hpp"
#include "core/tree.hpp"
#include "cuda/tile.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// The lanes of a leaf that one thread of a warp sums: neighbours, so that it loads them at once.
constexpr int lanes_of_thread = lanes / warp_threads;

// Elements of an array that a slice has.
struct Span {
  std::uint32_t index;  // of the array
  std::int64_t begin, end;
};

FUSEDSTEP_HOST_DEVICE inline Span span_of(const Table& table, Slice slice) {
  const std::int64_t size = table.arrays[slice.array].size;
  const std::int64_t begin = static_cast<std::int64_t>(slice.number) * slice_unit;
  return {slice.array, begin, size - begin < slice_unit ? size : begin + slice_unit};
}

template <int V>
FUSEDSTEP_HOST_DEVICE inline Elements<V> elements_until(std::int64_t from, std::int64_t end) {
  return {0, end - from < V ? static_cast<int>(end - from) : V};
}

template <class C>
FUSEDSTEP_HOST_DEVICE inline void add_square(C x, double& sum) {
  sum += static_cast<double>(x) * static_cast<double>(x);
}

// What a thread of a warp sums of a leaf, elements [begin, end) of an array: its lanes, row after row. `read` gives
// some neighbours.
template <class C, class Read>
FUSEDSTEP_HOST_DEVICE inline void sum_rows(std::int64_t begin, std::int64_t end, const Read& read, double* lane) {
  for (std::int64_t from = begin; from < end; from += lanes) {
    C x[lanes_of_thread] = {};
    const auto of = elements_until<lanes_of_thread>(from, end);
    read(from, x, of);
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < lanes_of_thread; ++i) {
      if (of.has(i)) add_square(x[i], lane[i]);
    }
  }
}

// The same of a gradient in memory, where that is all there is to read: of as many rows at once as take four accesses
// of 16 bytes, so that these wait together, and of no others. Returns where those begin.
template <class Storage>
FUSEDSTEP_HOST_DEVICE inline std::int64_t sum_rows_at_once(const void* gradient, std::int64_t begin, std::int64_t end,
                                                           double* lane) {
  constexpr int bytes = lanes_of_thread * static_cast<int>(sizeof(Storage)), rows = 4 * widest_access / bytes;
  constexpr int n = packet_size<Storage, lanes_of_thread>;
  const auto* const values = static_cast<const Storage*>(gradient);
  if (!takes_packets(values + begin, Elements<lanes_of_thread>())) return begin;
  is_in_arrays(values);
  for (; begin + (rows - 1) * lanes + lanes_of_thread <= end; begin += rows * lanes) {
    Loaded<Storage, lanes_of_thread> loaded[rows];
    FUSEDSTEP_UNROLLED
    for (int row = 0; row < rows; ++row) {
      FUSEDSTEP_UNROLLED
      for (int k = 0; k < lanes_of_thread / n; ++k) {
        loaded[row].template set_packet<n>(k, values + begin + row * lanes);
      }
    }
    FUSEDSTEP_UNROLLED
    for (int row = 0; row < rows; ++row) {
      FUSEDSTEP_UNROLLED
      for (int i = 0; i < lanes_of_thread; ++i) add_square(widen(loaded[row].get(i)), lane[i]);
    }
  }
  return begin;
}

template <class C>
FUSEDSTEP_HOST_DEVICE inline std::int64_t sum_rows_at_once(const UnpackedGradient& gradient, std::int64_t begin,
                                                           std::int64_t end, double* lane) {
  if (gradient.sparse != nullptr) return begin;
  if (gradient.dtype == dtype_of(C())) return sum_rows_at_once<C>(gradient.data, begin, end, lane);
  if constexpr (sizeof(C) == sizeof(float)) {
    if (gradient.dtype == DType::bfloat16) return sum_rows_at_once<BFloat16>(gradient.data, begin, end, lane);
    if (gradient.dtype == DType::float16) return sum_rows_at_once<Float16>(gradient.data, begin, end, lane);
  }
  return begin;
}

// A leaf by a warp of the team.
template <Kernel kernel, class C, class Team>
FUSEDSTEP_HOST_DEVICE inline void norm_leaf(Team& team, const Launch& launch, const Stages& stages, const Span& span,
                                            double* sum) {
  const std::uint32_t index = span.index;
  const std::int64_t begin = span.begin, end = span.end;
  const Array& array = launch.table.arrays[index];
  const auto read = [&](std::int64_t from, C* x, auto of) {
    Gathering<kernel == Kernel::norms_of_any, C, lanes_of_thread> gathering;
    gathering.load(launch, stages, index, array, from, of);
    gathering.sum(launch, stages, index, from, x, of);
  };
  const UnpackedGradient gradient = gradient_of(launch, 0, index);
  const bool plain = launch.replicas == 1 && !stages.unscale.on && stages.accumulation == Accumulation::off;
  const double total = team.sum_lanes([&](int thread, double* lane) {
    std::int64_t from = begin + thread * lanes_of_thread;
    if (plain) from = sum_rows_at_once<C>(gradient, from, end, lane);
    sum_rows<C>(from, end, read, lane);
  });
  team.by_one_of_warp([&] { *sum = total; });
  if (total - total == 0) return;
  // An element is not finite, or the sum of finite ones was too large.
  team.each_of_warp([&](int thread) {
    bool finite = true;
    for (std::int64_t from = begin + thread * lanes_of_thread; from < end; from += lanes) {
      C x[lanes_of_thread] = {};
      read(from, x, elements_until<lanes_of_thread>(from, end));
      FUSEDSTEP_UNROLLED
      for (int i = 0; i < lanes_of_thread; ++i) finite &= x[i] - x[i] == 0;
    }
    if (!finite) team.raise(&launch.table.state->not_finite);
  });
}

// The sum of up to slice_unit values by a warp, as a leaf of the tree; of one, that one.
template <class Team>
FUSEDSTEP_HOST_DEVICE_CALLED inline double sum_values(Team& team, const double* values, std::uint32_t count) {
  if (count == 0) return 0;
  if (count == 1) return team.fresh(values);
  return team.sum_lanes([&](int thread, double* lane) {
    for (std::uint32_t row = 0; row < count; row += lanes) {
      for (int i = 0; i < lanes_of_thread; ++i) {
        const std::uint32_t j = row + static_cast<std::uint32_t>(thread * lanes_of_thread + i);
        if (j < count) lane[i] += team.fresh(values + j);
      }
    }
  });
}

// Neighbours in a list of sums, of which one more is made.
struct Summands {
  const double* first;
  std::uint32_t count;
};

// Makes `count` sums, by one block: a thread each where there is one summand or none, a warp each for the `longs`.
template <class Team, class SummandsOf>
FUSEDSTEP_HOST_DEVICE inline void sum_each(Team& team, std::uint32_t count, const std::uint32_t* longs,
                                           std::uint32_t longs_count, const SummandsOf& summands_of, double* sums) {
  team.each([&](int thread) {
    for (std::uint32_t i = static_cast<std::uint32_t>(thread); i < count; i += block_threads) {
      const Summands summands = summands_of(i);
      if (summands.count <= 1) sums[i] = summands.count == 0 ? 0 : team.fresh(summands.first);
    }
  });
  team.each_warp([&](std::uint32_t warp) {
    for (std::uint32_t k = warp; k < longs_count; k += Team::warps) {
      const Summands summands = summands_of(longs[k]);
      const double sum = sum_values(team, summands.first, summands.count);
      team.by_one_of_warp([&] { sums[longs[k]] = sum; });
    }
  });
  team.wait();
}

// From the sums of slices to those of arrays, by one block.
template <class Team>
FUSEDSTEP_HOST_DEVICE inline void sum_arrays(Team& team, const Table& table, const double* slice_sums) {
  const auto of_group = [&](std::uint32_t i) {
    return Summands{slice_sums + table.leaf_groups[i].first, table.leaf_groups[i].count};
  };
  const auto of_array = [&](std::uint32_t i) {
    const std::uint32_t begin = table.leaf_groups_before[i];
    return Summands{table.group_sums + begin, table.leaf_groups_before[i + 1] - begin};
  };
  sum_each(team, table.leaf_groups_count, table.long_groups, table.long_groups_count, of_group, table.group_sums);
  sum_each(team, table.arrays_count, table.long_arrays, table.long_arrays_count, of_array, table.array_sums);
}

// The sum over all arrays, by one block. Of more than a leaf of them the leaves' sums take the place of the groups'.
template <class Team>
FUSEDSTEP_HOST_DEVICE inline double sum_all(Team& team, const Table& table) {
  const std::uint32_t count = table.arrays_count, unit = static_cast<std::uint32_t>(slice_unit);
  if (count <= unit) {
    double sum = 0;
    team.each_warp([&](std::uint32_t) { sum = sum_values(team, table.array_sums, count); });
    return sum;
  }
  const std::uint32_t leaves = (count + unit - 1) / unit;
  team.each_warp([&](std::uint32_t warp) {
    for (std::uint32_t i = warp; i < leaves; i += Team::warps) {
      const std::uint32_t left = count - i * unit;
      const double sum = sum_values(team, table.array_sums + i * unit, left < unit ? left : unit);
      team.by_one_of_warp([&] { table.group_sums[i] = sum; });
    }
  });
  team.wait();
  double sum = 0;
  team.each_warp([&](std::uint32_t) { sum = sum_values(team, table.group_sums, leaves); });
  return sum;
}

// What the norms come to, by the block that is last.
template <class Team>
FUSEDSTEP_HOST_DEVICE_CALLED inline void finish_norms(Team& team, const Launch& launch) {
  const Table& table = launch.table;
  DeviceState& state = *table.state;
  const CallSettings call = describe_call(launch.options, state.counts, launch.replicas, launch.mean);
  sum_arrays(team, table, table.slice_sums);
  const double total = sum_all(team, table);
  const double largest = launch.options.largest_norm;
  if (call.clips && launch.options.clip == Clip::each) {
    team.each([&](int thread) {
      for (std::uint32_t i = static_cast<std::uint32_t>(thread); i < table.arrays_count; i += block_threads) {
        const double norm = sqrt(team.fresh(table.array_sums + i)) * call.scale;
        table.factors[i] = call.sign * (clip_factor(norm, largest) * call.scale);
      }
    });
  }
  team.once([&] {
    state.norm = sqrt(total) * call.scale;
    state.factor = call.sign * (clip_factor(state.norm, largest) * call.scale);
    state.seen_not_finite = state.not_finite;
    state.not_finite = 0;
    state.skipped = launch.options.skips_not_finite && launch.alone && state.seen_not_finite != 0;
    if (state.skipped) count_left_out(launch.options, state.counts);
  });
}

// Sums the squares of all gradients, a leaf a warp; the last block finishes.
template <Kernel kernel, class Team>
FUSEDSTEP_HOST_DEVICE inline void norms_block(Team& team, const Launch& launch) {
  const Table& table = launch.table;
  const CallSettings call = describe_call(launch.options, table.state->counts, launch.replicas, launch.mean);
  const Stages stages = settings_of(launch.options, table.state->counts, call, Group(), nullptr, 0).stages;
  team.each_warp([&](std::uint32_t warp) {
    const std::uint32_t warps = Team::warps * team.blocks();
    for (std::uint32_t i = team.block() * Team::warps + warp; i < launch.slices; i += warps) {
      const std::uint32_t slice = launch.first_slice + i;
      const Span span = span_of(table, table.slices[slice]);
      double* const sum = table.slice_sums + slice;
      if (gradient_of(launch, 0, span.index).data == nullptr) {
        team.by_one_of_warp([&] { *sum = 0; });
      } else if (table.arrays[span.index].compute == compute_float64) {
        norm_leaf<kernel, double>(team, launch, stages, span, sum);
      } else {
        norm_leaf<kernel, float>(team, launch, stages, span, sum);
      }
    }
  });
  if (team.is_last(table.state->blocks_done) && launch.last) finish_norms(team, launch);
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
