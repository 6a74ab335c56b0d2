// Work without Python's GIL.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace fusedstep {

#if PY_VERSION_HEX >= 0x030D0000
inline bool python_is_ending() {
  return Py_IsFinalizing() != 0;
}
#else
inline bool python_is_ending() {
  return _Py_IsFinalizing() != 0;
}
#endif

// Releases the GIL from begin() on until it is destroyed.
class GilRelease {
 public:
  GilRelease() = default;
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  void begin() {
    if (python_is_ending()) return;  // in the thread that ends it: nobody else needs the GIL
    state_ = PyEval_SaveThread();
  }

  ~GilRelease() {
    if (state_ == nullptr) return;
    // When Python ends, daemon threads do not get the GIL back: up to 3.13 it ends them here, by an unwinding
    // of the stack. That must not pass: it would drop references without the GIL. They wait for the end.
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      while (true) pause();
    }
  }

 private:
  PyThreadState* state_ = nullptr;
};

}  // namespace fusedstep
