// A tile that stays in L1, on its way through the stages of core/stages.hpp.
#pragma once

#include "core/dtypes.hpp"
#include "core/stages.hpp"
#include "cpu/norm.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

template <class Storage>
void narrow_all(const float* from, void* to, std::int64_t begin, std::int64_t size) {
  Storage* const values = static_cast<Storage*>(to) + begin;
  const std::int64_t done = narrow_vectors(from, values, size);
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = done; i < size; ++i) narrow(from[i], values[i]);
}

inline void store(const float* from, void* to, DType dtype, std::int64_t begin, std::int64_t size) {
  if (dtype == DType::float16) narrow_all<Float16>(from, to, begin, size);
  if (dtype == DType::bfloat16) narrow_all<BFloat16>(from, to, begin, size);
}

inline void store(const double*, void*, DType, std::int64_t, std::int64_t) {}  // float64 is updated in place

// What a rule does to a tile: `only` to variable and gradient; or `first` turns the gradient into the update, and
// `second` moves the variable.
template <class C>
struct TileRule {
  void (*only)(const void* rule, C* p, const C* g, C* const* slots, std::int64_t size);
  void (*first)(const void* rule, C* g, C* const* slots, std::int64_t size);
  void (*second)(const void* rule, C factor, C* p, C* const* slots, std::int64_t size);
};

// The sums of squares of a leaf, as its tiles come.
class LeafSquares {
 public:
  template <class C>
  void add(const C* x, std::int64_t begin, std::int64_t size) {
    add_squares(x, size, lane_, begin % lanes);
  }
  double take() {
    const double sum = sum_of_lanes(lane_);
    for (double& lane : lane_) lane = 0;
    return sum;
  }

 private:
  alignas(64) double lane_[lanes] = {};
};

// What a first pass sums, and nothing in another one: to make it costs as much as some hundred elements.
template <Pass pass>
struct Squares {};
template <>
struct Squares<Pass::first> {
  LeafSquares of_variable, of_update;
};

// Out of line: in the loop over arrays it would take registers from the bare rule, which has no factor.
[[gnu::noinline]] inline double factor_of(const Step& step, std::size_t index, const Stages& stages) {
  return step.factors != nullptr ? step.factors[index] : stages.factor.coefficient;
}

// A product with 1 is the number itself.
inline bool scales_by(double factor, const Stages& stages) {
  return stages.factor.on && factor != 1;
}

// The stages before the decay, in one pass from g to h: a function for each combination of the three.
template <class C>
using PrepareAll = void (*)(const Preparation<C>& prepared, const C* p, const C* g, C* h, std::int64_t size);

template <class C, bool scales, bool clips, bool penalizes>
void prepare_all(const Preparation<C>& prepared, const C* p, const C* g, C* h, std::int64_t size) {
  const Preparation<C> in_registers = prepared;
  FUSEDSTEP_INDEPENDENT
  for (std::int64_t i = 0; i < size; ++i) h[i] = in_registers.template of<scales, clips, penalizes>(g[i], p[i]);
}

// Null where none of them is on.
template <class C>
PrepareAll<C> choose_prepare_all(const Stages& stages, double factor) {
  static constexpr PrepareAll<C> all[2][2][2] = {
      {{nullptr, prepare_all<C, false, false, true>},
       {prepare_all<C, false, true, false>, prepare_all<C, false, true, true>}},
      {{prepare_all<C, true, false, false>, prepare_all<C, true, false, true>},
       {prepare_all<C, true, true, false>, prepare_all<C, true, true, true>}}};
  return all[scales_by(factor, stages)][stages.clip.on][stages.l2.on];
}

// A tile on its way through the stages (core/stages.hpp). What is of the compute type is worked on in its place.
template <Pass pass, class C>
class Tile {
 public:
  Tile(const TileRule<C>& tile_rule, const void* rule, const Step& step, std::size_t index, C* const* slots,
       int slot_count, bool in_place, const Flow& flow)
      : tile_rule_(tile_rule),
        rule_(rule),
        step_(step),
        index_(index),
        array_(step.arrays[index]),
        slots_(slots),
        slot_count_(slot_count),
        in_place_(in_place),
        plain_(plain_gradient<C>(step, flow.stages, index)),
        prepared_(flow.stages, flow.factor),
        prepare_all_(choose_prepare(flow)) {}

  void move_to(std::int64_t begin, std::int64_t size) {
    begin_ = begin;
    size_ = size;
    for (int k = 0; k < slot_count_; ++k) s_[k] = slots_[k] + begin;
  }

  C* variable() {
    if (in_place_) return static_cast<C*>(array_.variable) + begin_;
    load(array_.variable, array_.dtype, begin_, p_, size_);
    return p_;
  }
  const C* gather() {
    if (plain_ != nullptr) return plain_ + begin_;
    gather_sum(step_, step_.settings[array_.settings].stages, index_, begin_, h_, size_);
    return h_;
  }
  C* prepare(const Flow&, const C* p, const C* g) {
    if (prepare_all_ == nullptr) return const_cast<C*>(g);
    prepare_all_(prepared_, p, g, h_, size_);
    return h_;
  }
  void clear_gradient() {
    const Gradient& gradient = step_.gradients[index_];
    const std::int64_t bytes = bytes_of(gradient.dtype);  // of an element; zeros have no bits in any dtype
    auto* const memory = static_cast<std::byte*>(const_cast<void*>(gradient.data));
    __builtin_memset(memory + begin_ * bytes, 0, static_cast<std::size_t>(size_ * bytes));
  }
  void set_sum(const C* values) {
    C* const sum = slot(step_.accumulator);
    for (std::int64_t i = 0; i < size_; ++i) sum[i] = values[i];
  }
  void clear_sum() {
    C* const sum = slot(step_.accumulator);
    for (std::int64_t i = 0; i < size_; ++i) sum[i] = 0;
  }
  void apply_rule(C* p, C* h) { tile_rule_.only(rule_, p, h, s_, size_); }
  void first(C* p, C* h) {
    tile_rule_.first(rule_, h, s_, size_);
    squares.of_variable.add(p, begin_, size_);
    squares.of_update.add(h, begin_, size_);
  }
  void second(C* p, double factor) { tile_rule_.second(rule_, static_cast<C>(factor), p, s_, size_); }
  void store(const C* p) {
    if (!in_place_) fusedstep::FUSEDSTEP_TARGET::store(p, array_.variable, array_.dtype, begin_, size_);
  }
  void as_stored(C* p) {
    if (!in_place_) load(array_.variable, array_.dtype, begin_, p, size_);
  }
  C* average() { return slot(step_.average); }
  void store_average() {}

  Squares<pass> squares;

 private:
  C* slot(std::byte* kind) const { return reinterpret_cast<C*>(kind + array_.slot_offset) + begin_; }

  PrepareAll<C> choose_prepare(const Flow& flow) const {
    const PrepareAll<C> chosen = choose_prepare_all<C>(flow.stages, flow.factor);
    // A first pass writes the update there. A gradient that is its variable's memory is read before that decays.
    const bool needs_copy = pass == Pass::first || (flow.stages.decay.on && plain_ == array_.variable);
    return chosen == nullptr && plain_ != nullptr && needs_copy ? prepare_all<C, false, false, false> : chosen;
  }

  const TileRule<C>& tile_rule_;
  const void* const rule_;
  const Step& step_;
  const std::size_t index_;
  const Array& array_;
  C* const* const slots_;
  const int slot_count_;
  const bool in_place_;
  const C* const plain_;  // the gradient, where it needs no gathering
  const Preparation<C> prepared_;
  const PrepareAll<C> prepare_all_;  // null where the gathered gradient can be taken as it is
  std::int64_t begin_ = 0, size_ = 0;
  C* s_[max_slots] = {};
  alignas(64) C p_[tile_size];
  alignas(64) C h_[tile_size];
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
