// The floating-point mode of a thread: a kernel runs in IEEE's default one, whatever the process uses.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fusedstep {

// For its lifetime: round to nearest, subnormals kept, exceptions masked. Any library may have
// switched the process to flush-to-zero (one built with -ffast-math does on load).
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() : saved_(read()) { write(default_mode); }
  ~DefaultFloatEnvironment() { write(saved_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using Mode = unsigned int;
  static constexpr Mode default_mode = 0x1f80;
  static Mode read() { return _mm_getcsr(); }
  static void write(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = std::uint64_t;
  static constexpr Mode default_mode = 0;
  static Mode read() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(Mode mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
#else
#error "fusedstep is made for x86-64 and aarch64"
#endif
  Mode saved_;
};

// The same value. What it came from is computed before, what comes from it after: without this the
// compiler may move arithmetic across the change of mode, of which it knows nothing. (Arithmetic in
// functions called through pointers, as all kernels are, stays where it is.)
template <class T>
inline T pinned(T value) {
  asm volatile("" : "+m"(value));
  return value;
}

}  // namespace fusedstep
