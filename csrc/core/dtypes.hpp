// Facts about dtypes, for code outside of the targets (see compiled_for.hpp).
#pragma once

#include "core/step.hpp"

namespace fusedstep {

constexpr std::int64_t bytes_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

constexpr std::int64_t bytes_of(ComputeType compute) {
  return compute == compute_float64 ? 8 : 4;
}

constexpr const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16"};
  return names[static_cast<int>(dtype)];
}

constexpr const char* name_of(ComputeType compute) {
  return compute == compute_float64 ? "float64" : "float32";
}

constexpr ComputeType compute_type_of(DType dtype) {
  return dtype == DType::float64 ? compute_float64 : compute_float32;
}

constexpr DType dtype_of(ComputeType compute) {
  return compute == compute_float64 ? DType::float64 : DType::float32;
}

}  // namespace fusedstep
