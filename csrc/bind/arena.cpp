#include "bind/arena.hpp"

#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fusedstep {

Arena::Arena(std::size_t bytes) : size_(bytes) {
  constexpr std::size_t smallest_alignment = 64;
  constexpr std::size_t huge_page = std::size_t{2} << 20;
  const std::size_t alignment = bytes >= 2 * huge_page ? huge_page : smallest_alignment;
  size_ = (bytes + alignment - 1) / alignment * alignment;
  data_ = size_ == 0 ? nullptr : static_cast<std::byte*>(std::aligned_alloc(alignment, size_));
  if (size_ != 0 && data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == huge_page) madvise(data_, size_, MADV_HUGEPAGE);  // only advice: NumPy gives it too
#endif
  if (size_ != 0) std::memset(data_, 0, size_);
}

Arena::~Arena() {
  std::free(data_);
}

}  // namespace fusedstep
