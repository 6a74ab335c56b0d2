# The tests' drivers, programs without Python.

# A step over a file; for other compilers and processors.
add_executable(step_file tests/native/step_file.cpp ${runner})
target_link_libraries(step_file PRIVATE fusedstep_options -static)

# CUDA's kernels as threads of the host, where ThreadSanitizer looks at them.
add_executable(cuda_threads tests/native/cuda_threads.cpp ${devices} ${simulation} csrc/cuda/kernels.cu)
set_source_files_properties(csrc/cuda/kernels.cu PROPERTIES LANGUAGE CXX COMPILE_DEFINITIONS FUSEDSTEP_TARGET=cuda)
target_compile_definitions(cuda_threads PRIVATE FUSEDSTEP_CUDA)
target_include_directories(cuda_threads PRIVATE tests/native/cuda)
target_compile_options(cuda_threads PRIVATE -fsanitize=thread -O1 -g1)
target_link_options(cuda_threads PRIVATE -fsanitize=thread)
target_link_libraries(cuda_threads PRIVATE fusedstep_options)
