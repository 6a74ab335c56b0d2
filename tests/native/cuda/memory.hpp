// A device's memory: a part of the address space that nobody can touch but while the device works, so that host code
// which reads a device's pointer, or a kernel which reads another device's, ends the program.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

namespace on_the_host {

class Memory {
 public:
  static constexpr std::size_t alignment = 256;  // of what CUDA gives
  static constexpr unsigned char unset = 0xa5;   // all bytes that nobody has written

  std::size_t left = std::size_t{2} << 30;

  // Null where there is not so much.
  void* allocate(std::size_t bytes) {
    if (begin_ == nullptr) reserve();
    const std::size_t size = with_margin(bytes);
    auto gap = gaps_.begin();
    while (gap != gaps_.end() && gap->second < size) ++gap;
    if (bytes > left || gap == gaps_.end()) return nullptr;
    const auto [place, room] = *gap;
    gaps_.erase(gap);
    if (room > size) gaps_[place + size] = room - size;
    std::byte* const memory = begin_ + place;
    const Opened here(*this, memory, size);
    if (used_ > place && !is_unset(memory, std::min(size, used_ - place))) sound_ = false;
    used_ = std::max(used_, place + size);
    std::memset(memory, unset, size);
    left -= bytes;
    sizes_[address(memory)] = bytes;
    return memory;
  }

  bool free(void* memory) {
    const auto found = sizes_.find(address(memory));
    if (found == sizes_.end()) return false;
    const std::size_t size = with_margin(found->second);
    const Opened here(*this, memory, size);
    std::memset(memory, unset, size);
    left += found->second;
    sizes_.erase(found);
    add_gap(static_cast<std::size_t>(static_cast<std::byte*>(memory) - begin_), size);
    return true;
  }

  // Whether that is inside of one piece of it.
  bool has(const void* begin, std::size_t bytes) const {
    auto after = sizes_.upper_bound(address(begin));
    if (after == sizes_.begin()) return false;
    const auto& [first, size] = *--after;
    return address(begin) + bytes <= first + size;
  }

  // Whether nothing was written behind any piece of it, which is open; nor, before it was given again, where none was.
  bool is_sound() const {
    return sound_ && std::ranges::all_of(sizes_, [](const auto& piece) {
             const auto [first, size] = piece;
             return is_unset(reinterpret_cast<const std::byte*>(first) + size, with_margin(size) - size);
           });
  }

  // As long as there is one, all of it can be touched, or some bytes.
  class Opened {
   public:
    explicit Opened(Memory& memory) : Opened(memory, memory.begin_, memory.used_) {}
    Opened(Memory& memory, const void* begin, std::size_t bytes) : memory_(memory), begin_(begin), bytes_(bytes) {
      changes_ = !std::exchange(memory_.opened_, true);
      if (changes_) set_access(begin_, bytes_, PROT_READ | PROT_WRITE);
    }
    ~Opened() {
      if (!changes_) return;
      set_access(begin_, bytes_, PROT_NONE);
      memory_.opened_ = false;
    }
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;

   private:
    Memory& memory_;
    const void* begin_;
    std::size_t bytes_;
    bool changes_;
  };

 private:
  static constexpr std::size_t reserved = std::size_t{64} << 30, page = 4096;

  // There is always something behind a piece, where nobody may write.
  static std::size_t with_margin(std::size_t bytes) { return (bytes / alignment + 2) * alignment; }

  static std::uintptr_t address(const void* memory) { return reinterpret_cast<std::uintptr_t>(memory); }

  static bool is_unset(const std::byte* begin, std::size_t bytes) {
    return std::all_of(begin, begin + bytes, [](std::byte one) { return one == std::byte{unset}; });
  }

  static void check(bool done, const char* what) {
    if (done) return;
    std::perror(what);
    std::_Exit(EXIT_FAILURE);
  }

  void reserve() {
    void* const got = mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(got != MAP_FAILED, "address space for a device");
    begin_ = static_cast<std::byte*>(got);
    gaps_[0] = reserved;
  }

  // One with those that it touches.
  void add_gap(std::size_t place, std::size_t size) {
    const auto next = gaps_.find(place + size);
    if (next != gaps_.end()) {
      size += next->second;
      gaps_.erase(next);
    }
    auto before = gaps_.lower_bound(place);
    if (before != gaps_.begin() && (--before)->first + before->second == place) {
      before->second += size;
    } else {
      gaps_[place] = size;
    }
  }

  // Of all pages that these bytes lie in.
  static void set_access(const void* begin, std::size_t bytes, int access) {
    if (bytes == 0) return;
    const std::uintptr_t first = address(begin) / page * page;
    const std::size_t size = (address(begin) + bytes - first + page - 1) / page * page;
    check(mprotect(reinterpret_cast<void*>(first), size, access) == 0, "access to a device's memory");
  }

  std::byte* begin_ = nullptr;
  std::size_t used_ = 0;
  bool opened_ = false, sound_ = true;
  std::map<std::uintptr_t, std::size_t> sizes_;  // by address
  std::map<std::size_t, std::size_t> gaps_;      // by place behind begin_
};

}  // namespace on_the_host
