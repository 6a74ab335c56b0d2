// A tile of an array's gradient in the compute type: widened, from rows or all elements, summed over replicas.
//
// A tile is consecutive elements. Its size is an integer on a CPU, where it stays in L1; on a GPU, where a thread
// has it in registers, it is a type that knows its number (cuda/tile.hpp), and brings a `load` of its own.
#pragma once

#include "core/step.hpp"
#include "core/storage.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

constexpr std::int64_t tile_size = 512;  // on a CPU

FUSEDSTEP_HOST_DEVICE constexpr DType dtype_of(float) {
  return DType::float32;
}
FUSEDSTEP_HOST_DEVICE constexpr DType dtype_of(double) {
  return DType::float64;
}

template <class Storage, class C>
FUSEDSTEP_HOST_DEVICE inline void widen_all(const void* from, std::int64_t begin, C* to, std::int64_t size) {
  const Storage* const values = static_cast<const Storage*>(from) + begin;
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = 0; i < size; ++i) to[i] = static_cast<C>(widen(values[i]));
}

// Elements [begin, begin + size) of memory.
template <class C>
FUSEDSTEP_HOST_DEVICE inline void load(const void* from, DType dtype, std::int64_t begin, C* to, std::int64_t size) {
  switch (dtype) {
    case DType::float32: return widen_all<float>(from, begin, to, size);
    case DType::float64: return widen_all<double>(from, begin, to, size);
    case DType::float16: return widen_all<Float16>(from, begin, to, size);
    case DType::bfloat16: return widen_all<BFloat16>(from, begin, to, size);
  }
}

template <class Storage>
inline void clear_all(void* memory, std::int64_t begin, std::int64_t size) {
  Storage* const values = static_cast<Storage*>(memory) + begin;
  for (std::int64_t i = 0; i < size; ++i) values[i] = Storage();
}

// Zeros into elements [begin, begin + size) of memory.
[[gnu::noinline]] inline void clear(void* memory, DType dtype, std::int64_t begin, std::int64_t size) {
  switch (dtype) {
    case DType::float32: return clear_all<float>(memory, begin, size);
    case DType::float64: return clear_all<double>(memory, begin, size);
    case DType::float16: return clear_all<Float16>(memory, begin, size);
    case DType::bfloat16: return clear_all<BFloat16>(memory, begin, size);
  }
}

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
    if (!move_to_row()) this->end = begin;
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

// The same of an array that has only some of its rows: zeros elsewhere.
template <class C>
[[gnu::noinline]] void load_rows(const Gradient& gradient, std::int64_t begin, C* to, std::int64_t size) {
  const Rows& rows = *gradient.rows;
  for (std::int64_t i = 0; i < size; ++i) to[i] = 0;
  const std::int64_t end = begin + size;
  for (std::int64_t k = first_row(rows, begin); k < rows.count && rows.indices[k] * rows.size < end; ++k) {
    const std::int64_t row_begin = rows.indices[k] * rows.size, row_end = row_begin + rows.size;
    const std::int64_t from = row_begin < begin ? begin : row_begin, until = row_end < end ? row_end : end;
    load(gradient.data, gradient.dtype, k * rows.size + (from - row_begin), to + (from - begin), until - from);
  }
}

template <class C>
void load(const Gradient& gradient, std::int64_t begin, C* to, std::int64_t size) {
  if (gradient.rows == nullptr) return load(gradient.data, gradient.dtype, begin, to, size);
  load_rows(gradient, begin, to, size);
}

// The stages up to the sum over calls, of which `sum` has the former ones; null where there is none.
template <class C, class Size>
FUSEDSTEP_HOST_DEVICE inline void add_sum(const Stages& stages, const C* sum, C* h, Size size) {
  if (stages.unscale.on) {
    const C unscale = static_cast<C>(stages.unscale.coefficient);
    for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] * unscale;
  }
  if (stages.accumulation != Accumulation::off) {
    for (std::int64_t i = 0; i < size; ++i) h[i] = sum[i] + h[i];
  }
}

// Elements [begin, begin + size) of the gradient of an array of the step, and the stages up to the sum over calls.
// The accumulator is read, not changed.
template <class C>
void gather_sum(const Step& step, const Stages& stages, std::size_t array, std::int64_t begin, C* h,
                std::int64_t size) {
  load(step.gradients[array], begin, h, size);
  for (std::size_t replica = 1; replica < step.replicas; ++replica) {
    const Gradient& gradient = step.gradients[replica * step.count + array];
    if (gradient.data == nullptr) continue;
    alignas(64) C more[tile_size];
    load(gradient, begin, more, size);
    for (std::int64_t i = 0; i < size; ++i) h[i] = h[i] + more[i];
  }
  const C* const sum = reinterpret_cast<const C*>(step.accumulator + step.arrays[array].slot_offset) + begin;
  add_sum(stages, sum, h, size);
}

}  // namespace fusedstep::FUSEDSTEP_TARGET
