// The memory that a plan's steps write, and where gradients lie between it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bind/arrays.hpp"

namespace fusedstep {

class WrittenMemory {
 public:
  static constexpr std::ptrdiff_t slots = -1;

  struct Piece {
    std::uintptr_t begin, end;
    std::ptrdiff_t variable;  // its index, or slots
  };

  void add(const void* data, std::size_t bytes, std::ptrdiff_t variable) {
    if (bytes > 0) pieces_.push_back({address(data), address(data) + bytes, variable});
  }

  // After the last one was added: from now on so many gradients are looked for.
  void finish(std::size_t gradients) {
    std::ranges::sort(pieces_, {}, &Piece::begin);
    gap_.resize(gradients);
  }

  const std::vector<Piece>& in_order() const { return pieces_; }

  // The first that shares memory with another's piece; null where none does.
  const Piece* find(const Piece& other) const {
    const std::size_t gap = gap_of(other.begin);
    return lies_in(gap, other.begin, other.end) ? nullptr : &pieces_[gap];
  }

  // Whether a gradient's memory is apart from all of it. Often it lies where it lay last time.
  bool is_apart(std::size_t gradient, const void* data, std::int64_t bytes) {
    const std::uintptr_t begin = address(data), end = begin + static_cast<std::uintptr_t>(bytes);
    return lies_in(gap_[gradient], begin, end) || lies_in(gap_[gradient] = gap_of(begin), begin, end);
  }

  // What a gradient's memory shares, right after it was not apart.
  const Piece& met_by(std::size_t gradient) const { return pieces_[gap_[gradient]]; }

 private:
  // A gap is known by the piece behind it: the first that ends after `begin`.
  [[gnu::noinline]] std::size_t gap_of(std::uintptr_t begin) const {
    return static_cast<std::size_t>(std::ranges::upper_bound(pieces_, begin, {}, &Piece::end) - pieces_.begin());
  }

  bool lies_in(std::size_t gap, std::uintptr_t begin, std::uintptr_t end) const {
    return (gap == 0 || pieces_[gap - 1].end <= begin) && (gap == pieces_.size() || end <= pieces_[gap].begin);
  }

  std::vector<Piece> pieces_;
  std::vector<std::size_t> gap_;  // that in which each gradient lay last time
};

}  // namespace fusedstep
