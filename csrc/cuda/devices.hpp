// The GPUs: those that CUDA has here, or simulated ones.
#pragma once

namespace fusedstep {

// The number of the GPU that memory is of; 0 where there is none.
inline int device_of_memory(const void*) {
  return 0;
}

}  // namespace fusedstep
