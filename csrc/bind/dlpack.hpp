// The binary interface of DLPack, by which array libraries show each other their memory: as much of it as is read
// or given here. The layout is DLPack's, version 1.
#pragma once

#include <cstdint>

#include "core/dtypes.hpp"

namespace fusedstep::dlpack {

constexpr std::int32_t cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13;
constexpr std::uint8_t int_code = 0, float_code = 2, bfloat_code = 4;
constexpr std::uint64_t read_only_flag = 1;

struct Device {
  std::int32_t type;
  std::int32_t id;
};

struct DataType {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

inline DataType type_of(DType dtype) {
  return {dtype == DType::bfloat16 ? bfloat_code : float_code, static_cast<std::uint8_t>(8 * bytes_of(dtype)), 1};
}

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null where it is contiguous
  std::uint64_t byte_offset;
};

// In a capsule named "dltensor".
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

// In a capsule named "dltensor_versioned".
struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

// What some libraries' array types have as __dlpack_c_exchange_api__, in a capsule named "dlpack_exchange_api": the
// same without a Python call. Functions return 0, or -1 with a Python error set.
struct ExchangeApi {
  Version version;
  const ExchangeApi* older;
  void* allocate;
  int (*managed_of)(void* object, ManagedVersioned** out);
  void* object_of;
  int (*tensor_of)(void* object, Tensor* out);  // valid as long as the object is; may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

}  // namespace fusedstep::dlpack
