// A tile that one thread of a GPU has in registers, and how it gets there: 16 bytes at a time where the address
// allows.
#pragma once

#include <utility>

#include "core/stages.hpp"
#include "cuda/launch.hpp"
#include "cuda/packet.hpp"
#include "cuda/rows.hpp"

namespace fusedstep::FUSEDSTEP_TARGET {

// V neighbouring elements, of which those in [low, high) are meant: at the ends of a slice not all of them are its
// own. Loops over them run over all V, which the compiler knows, so that they are unrolled and arrays of V are
// registers; loads and stores leave the others alone.
template <int V>
struct Elements {
  int low = 0, high = V;

  FUSEDSTEP_HOST_DEVICE constexpr operator std::int64_t() const { return V; }
  FUSEDSTEP_HOST_DEVICE bool all() const { return low == 0 && high == V; }
  FUSEDSTEP_HOST_DEVICE bool has(int i) const { return low <= i && i < high; }
};

template <class Storage, int V>
FUSEDSTEP_HOST_DEVICE inline bool takes_packets(const Storage* values, Elements<V> of) {
  return of.all() && reinterpret_cast<std::uintptr_t>(values) % (packet_size<Storage, V> * sizeof(Storage)) == 0;
}

template <class Storage, int V>
FUSEDSTEP_HOST_DEVICE inline Loaded<Storage, V> load_packets(const Storage* from, Elements<V> of) {
  constexpr int n = packet_size<Storage, V>;
  is_in_arrays(from);
  Loaded<Storage, V> loaded;
  if (takes_packets(from, of)) {
    FUSEDSTEP_UNROLLED
    for (int k = 0; k < V / n; ++k) loaded.template set_packet<n>(k, from);
  } else {
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) loaded.set(i, of.has(i) ? from[i] : Storage());
  }
  return loaded;
}

template <class Storage, class C, int V>
FUSEDSTEP_HOST_DEVICE inline void widen_loaded(const Loaded<Storage, V>& loaded, C* to) {
  FUSEDSTEP_UNROLLED
  for (int i = 0; i < V; ++i) to[i] = static_cast<C>(widen(loaded.get(i)));
}

template <class Storage, class C, int V>
FUSEDSTEP_HOST_DEVICE inline void load_values(const Storage* from, C* to, Elements<V> of) {
  widen_loaded(load_packets(from, of), to);
}

template <class Storage, class C, int V>
FUSEDSTEP_HOST_DEVICE inline void store_values(const C* from, Storage* to, Elements<V> of) {
  constexpr int n = packet_size<Storage, V>;
  is_in_arrays(to);
  if (takes_packets(to, of)) {
    FUSEDSTEP_UNROLLED
    for (int k = 0; k < V / n; ++k) {
      Packet<Storage, n> packet;
      FUSEDSTEP_UNROLLED
      for (int i = 0; i < n; ++i) narrow(from[k * n + i], packet.values[i]);
      store_packet(packet, reinterpret_cast<Packet<Storage, n>*>(to) + k);
    }
  } else {
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) {
      if (of.has(i)) narrow(from[i], to[i]);
    }
  }
}

// The same as core/gather.hpp's, for registers.
template <class C, int V>
FUSEDSTEP_HOST_DEVICE inline void load(const void* from, DType dtype, std::int64_t begin, C* to, Elements<V> of) {
  switch (dtype) {
    case DType::float32: return load_values(static_cast<const float*>(from) + begin, to, of);
    case DType::float64: return load_values(static_cast<const double*>(from) + begin, to, of);
    case DType::float16: return load_values(static_cast<const Float16*>(from) + begin, to, of);
    case DType::bfloat16: return load_values(static_cast<const BFloat16*>(from) + begin, to, of);
  }
}

// Elements of any dtype on their way from memory. Whoever widens them waits for them, and so would all that is loaded
// later: what a tile needs is asked for first, and widened once all of it is under way.
template <class C, int V>
class Arriving {
 public:
  // Of a dtype that is not wider than C.
  FUSEDSTEP_HOST_DEVICE void load(const void* from, DType dtype, std::int64_t begin, Elements<V> of) {
    dtype_ = dtype;
    if constexpr (sizeof(C) == sizeof(float)) {
      if (dtype == DType::float32) return load_values(static_cast<const float*>(from) + begin, values_, of);
      // Or of Float16, which has as many bits.
      const auto loaded = load_packets(static_cast<const BFloat16*>(from) + begin, of);
      FUSEDSTEP_UNROLLED
      for (int i = 0; i < V / 2; ++i) pairs_[i] = loaded.pairs[i];
    } else {
      FUSEDSTEP_TARGET::load(from, dtype, begin, values_, of);
    }
  }
  FUSEDSTEP_HOST_DEVICE void take(const C* values) {
    dtype_ = dtype_of(C());
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) values_[i] = values[i];
  }

  FUSEDSTEP_HOST_DEVICE void widen_all(C* to) const {
    if constexpr (sizeof(C) == sizeof(float)) {
      if (dtype_ == DType::float16) return widen_loaded(pairs<Float16>(), to);
      if (dtype_ == DType::bfloat16) return widen_loaded(pairs<BFloat16>(), to);
    }
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) to[i] = values_[i];
  }

 private:
  template <class Storage>
  FUSEDSTEP_HOST_DEVICE Loaded<Storage, V> pairs() const {
    Loaded<Storage, V> loaded;
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V / 2; ++i) loaded.pairs[i] = pairs_[i];
    return loaded;
  }

  DType dtype_ = dtype_of(C());
  // Not in one place: to bring what comes by two ways into the same registers is to wait for it. (The zeros are for no
  // reader, as in a Tile.)
  C values_[V] = {};
  std::uint32_t pairs_[V / 2] = {};  // of 16 bits
};

// Of a variable, which is stored in the compute type or in less: what it is stored as.
template <class C>
FUSEDSTEP_HOST_DEVICE inline DType stored_as(const Array& array) {
  return sizeof(C) == sizeof(double) ? DType::float64 : array.dtype;
}

template <int V>
FUSEDSTEP_HOST_DEVICE inline void store_variable(const float* from, const Array& array, std::int64_t begin,
                                                 Elements<V> of) {
  if (array.dtype == DType::float32) store_values(from, static_cast<float*>(array.variable) + begin, of);
  if (array.dtype == DType::float16) store_values(from, static_cast<Float16*>(array.variable) + begin, of);
  if (array.dtype == DType::bfloat16) store_values(from, static_cast<BFloat16*>(array.variable) + begin, of);
}
template <int V>
FUSEDSTEP_HOST_DEVICE inline void store_variable(const double* from, const Array& array, std::int64_t begin,
                                                 Elements<V> of) {
  store_values(from, static_cast<double*>(array.variable) + begin, of);
}

// Zeros into a gradient.
template <int V>
FUSEDSTEP_HOST_DEVICE inline void clear(const UnpackedGradient& gradient, std::int64_t begin, Elements<V> of) {
  void* const memory = const_cast<void*>(gradient.data);
  const float zeros[V] = {};
  const double wide_zeros[V] = {};
  switch (gradient.dtype) {
    case DType::float32: return store_values(zeros, static_cast<float*>(memory) + begin, of);
    case DType::float64: return store_values(wide_zeros, static_cast<double*>(memory) + begin, of);
    case DType::float16: return store_values(zeros, static_cast<Float16*>(memory) + begin, of);
    case DType::bfloat16: return store_values(zeros, static_cast<BFloat16*>(memory) + begin, of);
  }
}

FUSEDSTEP_HOST_DEVICE inline UnpackedGradient gradient_of(const Launch& launch, std::uint32_t replica,
                                                          std::uint32_t array) {
  return unpacked(launch.gradients[replica * launch.arrays + (array - launch.first_array)]);
}

// What a step updates of an array: all of it, or with `lazy`, where all its gradients are sparse, the rows that any of
// them has.
class Touched {
 public:
  FUSEDSTEP_HOST_DEVICE Touched(const Launch& launch, std::uint32_t index)
      : launch_(launch), index_(index), all_(!launch.options.lazy || !has_only_rows()) {}

  FUSEDSTEP_HOST_DEVICE bool any(std::int64_t begin, std::int64_t end) const { return all_ || has_any(begin, end - 1); }

  // Of a tile's elements those that come first: all, or of one row. None where there are no more.
  template <int V>
  FUSEDSTEP_HOST_DEVICE Elements<V> next(std::int64_t begin, Elements<V> of) const {
    while (!all_ && of.low < of.high) {
      const std::int64_t from = begin + of.low, end = (from / row_size_ + 1) * row_size_ - begin;
      const int row_end = end < of.high ? static_cast<int>(end) : of.high;
      if (has_any(from, from)) return {of.low, row_end};
      of.low = row_end;
    }
    return of;
  }

 private:
  FUSEDSTEP_HOST_DEVICE bool has_only_rows() {
    for (std::uint32_t replica = 0; replica < launch_.replicas; ++replica) {
      const UnpackedGradient gradient = gradient_of(launch_, replica, index_);
      if (gradient.data == nullptr) continue;
      if (gradient.sparse == nullptr) return false;
      is_in_arrays(gradient.sparse);
      row_size_ = gradient.sparse->size;
    }
    return row_size_ > 0;
  }

  // Of the rows of elements [first, last].
  FUSEDSTEP_HOST_DEVICE bool has_any(std::int64_t first, std::int64_t last) const {
    for (std::uint32_t replica = 0; replica < launch_.replicas; ++replica) {
      const SparseGradient* const gradient = gradient_of(launch_, replica, index_).sparse;
      if (gradient != nullptr && has_rows(*gradient, first / row_size_, last / row_size_)) return true;
    }
    return false;
  }

  const Launch& launch_;
  const std::uint32_t index_;
  std::int64_t row_size_ = 0;  // in elements
  const bool all_;
};

template <class C>
FUSEDSTEP_HOST_DEVICE inline C* slot_of(std::byte* kind, const Array& array) {
  return reinterpret_cast<C*>(kind + array.slot_offset);
}

template <bool may_be_sparse, class C, int V>
FUSEDSTEP_HOST_DEVICE inline void load_gradient(const UnpackedGradient& gradient, std::int64_t begin,
                                                Arriving<C, V>& to, Elements<V> of) {
  if (may_be_sparse && gradient.sparse != nullptr) {
    to.take(values_of_rows<C, V>(*gradient.sparse, begin, of.low, of.high).of);
  } else if (sizeof(C) < sizeof(double) && gradient.dtype == DType::float64) {
    C values[V];
    load_values(static_cast<const double*>(gradient.data) + begin, values, of);
    to.take(values);
  } else {
    to.load(gradient.data, gradient.dtype, begin, of);
  }
}

// The gradient of a tile up to the sum over calls: on its way, and then there. (Sparse ones are there at once.)
template <bool may_be_sparse, class C, int V>
class Gathering {
 public:
  FUSEDSTEP_HOST_DEVICE void load(const Launch& launch, const Stages& stages, std::uint32_t index, const Array& array,
                                  std::int64_t begin, Elements<V> of) {
    load_gradient<may_be_sparse>(gradient_of(launch, 0, index), begin, first_, of);
    if (stages.accumulation == Accumulation::off) return;
    load_values(slot_of<C>(launch.table.accumulator, array) + begin, sum_, of);
  }

  FUSEDSTEP_HOST_DEVICE void sum(const Launch& launch, const Stages& stages, std::uint32_t index, std::int64_t begin,
                                 C* h, Elements<V> of) const {
    first_.widen_all(h);
    for (std::uint32_t replica = 1; replica < launch.replicas; ++replica) {
      const UnpackedGradient gradient = gradient_of(launch, replica, index);
      if (gradient.data == nullptr) continue;
      Arriving<C, V> next;
      C more[V];
      load_gradient<may_be_sparse>(gradient, begin, next, of);
      next.widen_all(more);
      FUSEDSTEP_UNROLLED
      for (int i = 0; i < V; ++i) h[i] = h[i] + more[i];
    }
    add_sum(stages, sum_, h, of);
  }

 private:
  Arriving<C, V> first_;  // of the replicas
  C sum_[V] = {};
};

template <class C, int V>
FUSEDSTEP_HOST_DEVICE inline void prepare(const Flow& flow, const C* p, C* h) {
  const Preparation<C> prepared(flow.stages, flow.factor);
  if (flow.stages.factor.on) {
    for (int i = 0; i < V; ++i) h[i] = prepared.template of<true, false, false>(h[i], p[i]);
  }
  if (flow.stages.clip.on) {
    for (int i = 0; i < V; ++i) h[i] = prepared.template of<false, true, false>(h[i], p[i]);
  }
  if (flow.stages.l2.on) {
    for (int i = 0; i < V; ++i) h[i] = prepared.template of<false, false, true>(h[i], p[i]);
  }
}

// A tile on its way through the stages (core/stages.hpp). All that will be needed is loaded at once, so that the
// accesses wait together.
template <class Rule, class C, int V>
class Tile {
 public:
  FUSEDSTEP_HOST_DEVICE Tile(const Launch& launch, const Rule& rule, const Flow& flow, std::uint32_t index,
                             const Array& array, std::int64_t begin, Elements<V> of)
      : launch_(launch), rule_(rule), index_(index), array_(array), begin_(begin), of_(of) {
    const Average averages = flow.stages.average;
    const bool updates = flow.has_gradient && flow.stages.accumulation != Accumulation::add;
    Gathering<true, C, V> gradient;
    Arriving<C, V> p;
    if (flow.has_gradient) gradient.load(launch, flow.stages, index, array, begin, of);
    if (updates || averages != Average::off) p.load(array.variable, stored_as<C>(array), begin, of);
    if (updates) {
      FUSEDSTEP_UNROLLED
      for (int k = 0; k < slots; ++k) load_values(slot(launch.table.slots[k]), s_[k], of);
    }
    if (averages == Average::keep || averages == Average::move) load_values(slot(launch.table.average), average_, of);
    p.widen_all(p_);
    if (flow.has_gradient) gradient.sum(launch, flow.stages, index, begin, h_, of);
  }

  FUSEDSTEP_HOST_DEVICE C* variable() { return p_; }
  FUSEDSTEP_HOST_DEVICE C* gather() { return h_; }
  FUSEDSTEP_HOST_DEVICE C* prepare(const Flow& flow, const C* p, C* h) {
    FUSEDSTEP_TARGET::prepare<C, V>(flow, p, h);
    return h;
  }
  FUSEDSTEP_HOST_DEVICE void clear_gradient() { clear(gradient_of(launch_, 0, index_), begin_, of_); }
  FUSEDSTEP_HOST_DEVICE void set_sum(const C* values) { store_values(values, slot(launch_.table.accumulator), of_); }
  FUSEDSTEP_HOST_DEVICE void clear_sum() {
    const C zeros[V] = {};
    store_values(zeros, slot(launch_.table.accumulator), of_);
  }
  FUSEDSTEP_HOST_DEVICE void apply_rule(C* p, const C* h) {
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) call(p[i], h[i], i, AllSlots());
    store_slots();
  }
  FUSEDSTEP_HOST_DEVICE void first(C*, C* h) {
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) h[i] = direction(h[i], i, AllSlots());
    store_slots();
    updates = true;
  }
  FUSEDSTEP_HOST_DEVICE void second(C* p, double factor) {
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) p[i] = p[i] - static_cast<C>(factor) * again(i, AllSlots());
  }
  FUSEDSTEP_HOST_DEVICE void store(const C* p) { store_variable(p, array_, begin_, of_); }
  FUSEDSTEP_HOST_DEVICE void as_stored(C* p) {
    if constexpr (sizeof(C) == sizeof(float)) {
      if (array_.dtype == DType::float16) round_to<Float16>(p);
      if (array_.dtype == DType::bfloat16) round_to<BFloat16>(p);
    }
  }
  FUSEDSTEP_HOST_DEVICE C* average() { return average_; }
  FUSEDSTEP_HOST_DEVICE void store_average() { store_values(average_, slot(launch_.table.average), of_); }

  FUSEDSTEP_HOST_DEVICE const C* update() const { return h_; }  // after the first pass
  bool updates = false;

 private:
  static constexpr int slots = Rule::slots.count;
  using AllSlots = std::make_integer_sequence<int, slots>;

  FUSEDSTEP_HOST_DEVICE C* slot(std::byte* kind) const { return slot_of<C>(kind, array_) + begin_; }
  FUSEDSTEP_HOST_DEVICE void store_slots() {
    FUSEDSTEP_UNROLLED
    for (int k = 0; k < slots; ++k) store_values(s_[k], slot(launch_.table.slots[k]), of_);
  }
  template <class Storage>
  FUSEDSTEP_HOST_DEVICE static void round_to(C* p) {
    FUSEDSTEP_UNROLLED
    for (int i = 0; i < V; ++i) {
      Storage stored;
      narrow(p[i], stored);
      p[i] = widen(stored);
    }
  }
  template <int... k>
  FUSEDSTEP_HOST_DEVICE void call(C& p, C g, [[maybe_unused]] int i, std::integer_sequence<int, k...>) {
    rule_(p, g, s_[k][i]...);
  }
  template <int... k>
  FUSEDSTEP_HOST_DEVICE C direction(C g, int i, std::integer_sequence<int, k...>) {
    return rule_.direction(g, s_[k][i]...);
  }
  template <int... k>
  FUSEDSTEP_HOST_DEVICE C again(int i, std::integer_sequence<int, k...>) {
    return rule_.again(s_[k][i]...);
  }

  const Launch& launch_;
  const Rule& rule_;
  const std::uint32_t index_;
  const Array& array_;
  const std::int64_t begin_;
  const Elements<V> of_;
  // Nobody reads these zeros. But a register that some way through a tile leaves unset is taken for one that keeps its
  // value from tile to tile, and is lost to all else.
  C p_[V] = {}, h_[V] = {}, average_[V] = {};
  C s_[slots == 0 ? 1 : slots][V] = {};
};

}  // namespace fusedstep::FUSEDSTEP_TARGET
