// What a step updates of an array on the CPU: all of it, or only rows that sparse gradients have. (cuda/tile.hpp has
// the same for a GPU.)
#pragma once

#include "core/compiled_for.hpp"
#include "core/step.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// The first of the rows that does not end before an element.
inline std::int64_t first_row(const Rows& rows, std::int64_t element) {
  std::int64_t low = 0, high = rows.count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if ((rows.indices[middle] + 1) * rows.size <= element) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The rows of an array that a step updates; null for all of them.
inline const Rows* touched_rows(const Step& step, std::size_t array) {
  return step.touched == nullptr ? nullptr : step.touched[array];
}

// What a step updates of elements [begin, end) of an array, range by range: all of it, or the rows that are touched.
// The first range is there from the start, and may be empty.
class Ranges {
 public:
  Ranges(const Rows* touched, std::int64_t begin, std::int64_t end)
      : begin(begin), end(end), touched_(touched), first_(begin), last_(end) {
    if (touched == nullptr) return;
    number_ = first_row(*touched, begin);
    if (!move_to_row()) this->begin = this->end = begin;
  }

  bool next() {
    if (touched_ == nullptr) return false;
    ++number_;
    return move_to_row();
  }

  // Where a gradient would begin if it had all rows: one that has those that are touched, or all.
  template <class Storage>
  const Storage* from(const void* gradient) const {
    const auto before = static_cast<std::uintptr_t>(missing_) * sizeof(Storage);
    return reinterpret_cast<const Storage*>(reinterpret_cast<std::uintptr_t>(gradient) - before);
  }

  std::int64_t begin, end;

 private:
  bool move_to_row() {
    if (number_ >= touched_->count) return false;
    const std::int64_t row = touched_->indices[number_] * touched_->size;
    begin = row < first_ ? first_ : row;
    end = row + touched_->size < last_ ? row + touched_->size : last_;
    missing_ = row - number_ * touched_->size;
    return begin < end;
  }

  const Rows* const touched_;
  const std::int64_t first_, last_;
  std::int64_t number_ = 0;   // of the row, among those that are touched
  std::int64_t missing_ = 0;  // elements before it that are not touched
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
