// Refusals: how a bad call ends. One form for the sentence: who: what is, what it should be; what to do.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace fusedstep {

// The kind or the dtype of an object.
[[noreturn]] inline void refuse_type(const std::string& sentence) {
  throw pybind11::type_error(sentence);
}

// A shape, a layout, a device, an interval, or memory used twice.
[[noreturn]] inline void refuse_value(const std::string& sentence) {
  throw pybind11::value_error(sentence);
}

// What this machine, build or moment lacks.
[[noreturn]] inline void refuse_now(const std::string& sentence) {
  throw std::runtime_error(sentence);
}

// Memory.
[[noreturn]] inline void refuse_memory(const std::string& sentence) {
  PyErr_SetString(PyExc_MemoryError, sentence.c_str());
  throw pybind11::error_already_set();
}

}  // namespace fusedstep
