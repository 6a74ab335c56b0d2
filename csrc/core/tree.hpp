// Sums of many doubles, to the same bits however the work is cut: a tree of a fixed shape.
//
// A leaf is slice_unit consecutive values as rows of `lanes`, missing ones 0. Each lane is the sum of its column
// from the first row to the last; then lane j takes in lane j + h for h = lanes / 2, ..., 2, 1. The leaves' sums go
// through the same tree until one is left.
#pragma once

#include "core/compiled_for.hpp"
#include "core/step.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

constexpr int lanes = 128;

// Of the lanes of one leaf. Each half has its size at compile time: of a short leaf this is most of the work.
template <int h = lanes / 2>
FUSEDSTEP_HOST_DEVICE inline double sum_of_lanes(double* lane) {
  for (int j = 0; j < h; ++j) lane[j] += lane[j + h];
  if constexpr (h > 1) sum_of_lanes<h / 2>(lane);
  return lane[0];
}

// Of any number of values, which it overwrites.
inline double sum_of_tree(double* values, std::int64_t count) {
  while (count > 1) {
    std::int64_t leaves = 0;
    for (std::int64_t begin = 0; begin < count; begin += slice_unit) {
      const std::int64_t size = count - begin < slice_unit ? count - begin : slice_unit;
      double lane[lanes] = {};
      for (std::int64_t i = 0; i < size; ++i) lane[i % lanes] += values[begin + i];
      values[leaves++] = sum_of_lanes(lane);
    }
    count = leaves;
  }
  return count == 1 ? values[0] : 0;
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
