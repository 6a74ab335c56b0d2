// Sparse gradients on a GPU: how their rows are put in order, and how they are read. Who gives indices gives them on
// the device, where the host would have to wait to see them.
#pragma once

#include "core/gather.hpp"
#include "cuda/launch.hpp"
#include "cuda/packet.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// How many of the keys, which are in order, are smaller than one.
FUSEDSTEP_HOST_DEVICE inline std::int64_t count_smaller(const std::uint64_t* keys, std::int64_t count,
                                                        std::uint64_t key) {
  is_in_arrays(keys);
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Indices of no row, negative ones among them, come after all others, where no row looks.
FUSEDSTEP_HOST_DEVICE inline std::uint64_t key_of(const OrderPass& pass, std::int64_t position) {
  const Rows& rows = pass.rows;
  const std::int64_t index = rows.narrow_indices != nullptr ? rows.narrow_indices[position] : rows.indices[position];
  const std::int64_t row = 0 <= index && index < pass.rows_of_variable ? index : pass.rows_of_variable;
  return static_cast<std::uint64_t>(row) * static_cast<std::uint64_t>(rows.count) +
         static_cast<std::uint64_t>(position);
}

// The first pass: a key's place in its tile is the number of smaller ones.
template <class Team>
FUSEDSTEP_HOST_DEVICE inline void order_tiles(Team& team, const OrderPass& pass, std::uint64_t* tile) {
  const std::int64_t count = pass.rows.count, stride = static_cast<std::int64_t>(team.blocks()) * block_threads;
  if (team.block() == 0) team.once([&] { *pass.written = pass.gradient; });
  for (std::int64_t begin = static_cast<std::int64_t>(team.block()) * block_threads; begin < count; begin += stride) {
    const int size = count - begin < block_threads ? static_cast<int>(count - begin) : block_threads;
    team.wait();  // until all have read the tile before
    team.each([&](int thread) {
      if (thread < size) tile[thread] = key_of(pass, begin + thread);
    });
    team.wait();
    team.each([&](int thread) {
      if (thread >= size) return;
      int smaller = 0;
      for (int i = 0; i < size; ++i) smaller += tile[i] < tile[thread] ? 1 : 0;
      pass.to[begin + smaller] = tile[thread];
    });
  }
}

// A later pass: a key's place is its own in what was in order, and the number of smaller ones in the neighbour.
template <class Team>
FUSEDSTEP_HOST_DEVICE inline void merge_neighbours(Team& team, const OrderPass& pass) {
  const std::int64_t count = pass.rows.count, stride = static_cast<std::int64_t>(team.blocks()) * block_threads;
  const std::int64_t ordered = pass.ordered;  // a power of two
  team.each([&](int thread) {
    for (std::int64_t at = static_cast<std::int64_t>(team.block()) * block_threads + thread; at < count; at += stride) {
      const std::int64_t own = at & (ordered - 1), neighbour = (at - own) ^ ordered, both = at & ~(2 * ordered - 1);
      const std::int64_t left = count - neighbour, size = left < 0 ? 0 : left < ordered ? left : ordered;
      const std::uint64_t key = pass.from[at];
      pass.to[both + own + count_smaller(pass.from + neighbour, size, key)] = key;
    }
  });
}

// A pass. `tile` has room for block_threads keys, which the block shares.
template <class Team>
FUSEDSTEP_HOST_DEVICE inline void order_block(Team& team, const OrderPass& pass, std::uint64_t* tile) {
  if (pass.ordered == 0) return order_tiles(team, pass, tile);
  merge_neighbours(team, pass);
}

// How many tiles a pass has, for as many blocks.
inline std::int64_t tiles_of(const OrderPass& pass) {
  return (pass.rows.count + block_threads - 1) / block_threads;
}

// Whether a gradient has any of the rows [first, last].
FUSEDSTEP_HOST_DEVICE_CALLED inline bool has_rows(const SparseGradient& gradient, std::int64_t first,
                                                  std::int64_t last) {
  is_in_arrays(&gradient);
  is_in_arrays(gradient.keys);
  const auto count = static_cast<std::uint64_t>(gradient.count);
  const std::int64_t place = count_smaller(gradient.keys, gradient.count, static_cast<std::uint64_t>(first) * count);
  return place < gradient.count && gradient.keys[place] < static_cast<std::uint64_t>(last + 1) * count;
}

template <class C, int V>
struct Values {
  C of[V];
};

// The gradient's elements [begin + low, begin + high): each the sum over the rows of its index, in the order in which
// they were given, or 0. The keys are searched once; from row to row they follow each other.
template <class C, int V>
FUSEDSTEP_HOST_DEVICE_CALLED inline Values<C, V> values_of_rows(const SparseGradient& gradient, std::int64_t begin,
                                                                int low, int high) {
  is_in_arrays(&gradient);
  const std::uint64_t* const keys = gradient.keys;
  is_in_arrays(keys);
  const auto count = static_cast<std::uint64_t>(gradient.count);
  const std::int64_t row = (begin + low) / gradient.size;
  std::int64_t column = begin + low - row * gradient.size;
  std::uint64_t first = static_cast<std::uint64_t>(row) * count;  // the least key that the row may have
  std::int64_t place = count_smaller(keys, gradient.count, first);
  Values<C, V> values = {};
  FUSEDSTEP_UNROLLED
  for (int i = 0; i < V; ++i) {
    if (i < low || i >= high) continue;
    std::int64_t next = place;
    C sum = 0;
    for (; next < gradient.count && keys[next] - first < count; ++next) {
      C value = 0;
      load(gradient.values, gradient.dtype, static_cast<std::int64_t>(keys[next] - first) * gradient.size + column,
           &value, 1);
      sum = next == place ? value : sum + value;
    }
    values.of[i] = sum;
    if (++column < gradient.size) continue;
    column = 0;
    first += count;
    place = next;
  }
  return values;
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
