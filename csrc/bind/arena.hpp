// The memory of a plan's slots: one piece, zeros at first, which never moves. Arrays that Python sees
// share it.
#pragma once

#include <cstddef>

namespace fusedstep {

class Arena {
 public:
  explicit Arena(std::size_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_;
  std::size_t size_;
};

}  // namespace fusedstep
