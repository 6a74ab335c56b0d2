# The module _native for the rehearsal of the tests of GPUs (tests/test_gpu_rehearsal.py): CUDA's kernels on the host,
# behind all of the binding. It is built fast, not to be fast.

set(FUSEDSTEP_REHEARSAL_KERNELS "" CACHE STRING "Where tests/ptx.py wrote what nvcc made of the kernels")

pybind11_add_module(rehearsal MODULE NO_EXTRAS ${binding} ${devices} ${runner} tests/native/rehearsal.cpp
                    csrc/cuda/kernels.cu ${FUSEDSTEP_REHEARSAL_KERNELS})
set_source_files_properties(csrc/cuda/kernels.cu PROPERTIES LANGUAGE CXX COMPILE_DEFINITIONS FUSEDSTEP_TARGET=cuda
                                                            COMPILE_OPTIONS -O2)
# They take the place of those that this compiler makes, which are weak. (Variables are many there, and few are used.)
set_source_files_properties(${FUSEDSTEP_REHEARSAL_KERNELS} PROPERTIES COMPILE_OPTIONS "-w;-fno-strict-aliasing")
set_target_properties(rehearsal PROPERTIES OUTPUT_NAME _native)
target_compile_definitions(rehearsal PRIVATE FUSEDSTEP_CUDA FUSEDSTEP_VERSION="rehearsal")
target_include_directories(rehearsal PRIVATE tests/native/cuda)
target_compile_options(rehearsal PRIVATE ${optimize})
target_link_libraries(rehearsal PRIVATE fusedstep_options)
# Tests ask the driver's library of what a graph is made; here that is this module, too.
add_custom_command(
  TARGET rehearsal POST_BUILD COMMAND ${CMAKE_COMMAND} -E create_symlink $<TARGET_FILE:rehearsal> libcuda.so.1)
