// One leaf of the tree that sums a gradient's squares (core/tree.hpp).
#pragma once

#include "core/gather.hpp"
#include "core/tree.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// Adds the squares of elements to their lanes, of which `first` is that of the first element.
template <class C>
void add_squares(const C* x, std::int64_t size, double* lane, std::int64_t first = 0) {
  std::int64_t row = 0;
  if (first != 0) {
    for (std::int64_t j = first; j < lanes && row < size; ++j, ++row) {
      const double value = x[row];
      lane[j] += value * value;
    }
  }
  for (; row + lanes <= size; row += lanes) {
    for (int j = 0; j < lanes; ++j) {
      const double value = x[row + j];
      lane[j] += value * value;
    }
  }
  for (int j = 0; row + j < size; ++j) {
    const double value = x[row + j];
    lane[j] += value * value;
  }
}

template <class C>
bool all_finite(const C* x, std::int64_t size) {
  bool finite = true;
  for (std::int64_t i = 0; i < size; ++i) finite &= x[i] - x[i] == 0;
  return finite;
}

template <class C>
bool norm_leaf(const Step& step, std::size_t index, std::int64_t begin, double* sum) {
  static_assert(tile_size % lanes == 0 && slice_unit % tile_size == 0);
  const Array& array = step.arrays[index];
  const Stages& stages = step.settings[array.settings].stages;
  const std::int64_t end = array.size - begin < slice_unit ? array.size : begin + slice_unit;
  const C* const plain = plain_gradient<C>(step, stages, index);
  alignas(64) C tile[tile_size];
  alignas(64) double lane[lanes] = {};
  const auto values = [&](std::int64_t from, std::int64_t size) -> const C* {
    if (plain != nullptr) return plain + from;
    gather_sum(step, stages, index, from, tile, size);
    return tile;
  };
  for (std::int64_t from = begin; from < end; from += tile_size) {
    const std::int64_t size = end - from < tile_size ? end - from : tile_size;
    add_squares(values(from, size), size, lane);
  }
  *sum = sum_of_lanes(lane);
  if (*sum - *sum == 0) return true;
  // An element is not finite, or the sum of finite ones was too large.
  bool finite = true;
  for (std::int64_t from = begin; from < end; from += tile_size) {
    const std::int64_t size = end - from < tile_size ? end - from : tile_size;
    finite &= all_finite(values(from, size), size);
  }
  return finite;
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
