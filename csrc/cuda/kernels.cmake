# The kernels for GPUs, as the object library fusedstep_kernels; none where nvcc is missing and may be.

set(FUSEDSTEP_CUDA AUTO CACHE STRING "Kernels for GPUs: ON, OFF, or AUTO, where there is an nvcc")
set(FUSEDSTEP_CUDA_ARCHITECTURES all CACHE STRING "The GPUs they are for: all, native, or numbers such as 80;90")

set(oldest_nvcc 12.1)  # the first that gives a kernel 32 764 bytes of parameters

set(missing "")
if(FUSEDSTEP_CUDA STREQUAL "OFF")
  set(missing "FUSEDSTEP_CUDA is OFF")
elseif(NOT FUSEDSTEP_CUDA MATCHES "^(AUTO|ON)$")
  message(FATAL_ERROR "FUSEDSTEP_CUDA is ${FUSEDSTEP_CUDA}, but it must be AUTO, ON or OFF")
else()
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # an earlier search found none, but by now there may be one
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # the options below say which
    enable_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER_ID STREQUAL "NVIDIA" OR CMAKE_CUDA_COMPILER_VERSION VERSION_LESS oldest_nvcc)
      set(missing "${CMAKE_CUDA_COMPILER} is ${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
  else()
    set(missing "there is no nvcc that works on the PATH or in the environment variable CUDACXX")
  endif()
endif()

if(missing)
  if(FUSEDSTEP_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FUSEDSTEP_CUDA is ON, but ${missing}. Install NVIDIA's CUDA ${oldest_nvcc} or newer and set "
                        "CUDACXX to its nvcc, or build for the CPU alone with FUSEDSTEP_CUDA=OFF.")
  endif()
  message(STATUS "No kernels for GPUs: ${missing}; nvcc ${oldest_nvcc} or newer makes them")
  return()
endif()

# A cubin runs on later devices of its major version, too, so one of each is enough. All are made from one PTX, that of
# the oldest: the kernels need nothing newer, and half of the work is done once. What has no cubin here, like devices
# that are yet to come, compiles that PTX when it loads it.
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known)
string(REGEX MATCHALL "[0-9]+" known "${known}")
set(architectures ${FUSEDSTEP_CUDA_ARCHITECTURES})
if(architectures STREQUAL "all")
  set(architectures "")
  foreach(architecture IN ITEMS 75 80 90 100 120)
    if(architecture IN_LIST known)
      list(APPEND architectures ${architecture})
    endif()
  endforeach()
elseif(architectures STREQUAL "native")
  string(REPLACE "-real" "" architectures "${CMAKE_CUDA_ARCHITECTURES_NATIVE}")
endif()
set(code "")
foreach(architecture IN LISTS architectures)
  if(NOT architecture IN_LIST known)
    message(FATAL_ERROR "FUSEDSTEP_CUDA_ARCHITECTURES is ${FUSEDSTEP_CUDA_ARCHITECTURES}, but this nvcc does not know "
                        "'${architecture}'; it knows ${known}")
  endif()
  string(APPEND code ",sm_${architecture}")
endforeach()
list(SORT architectures COMPARE NATURAL)
list(GET architectures 0 oldest)
message(STATUS "Kernels for GPUs: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${architectures}")

set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # to be imported where there is no CUDA
add_library(fusedstep_kernels OBJECT csrc/cuda/kernels.cu)
target_include_directories(fusedstep_kernels PRIVATE csrc)
target_compile_definitions(fusedstep_kernels PUBLIC FUSEDSTEP_CUDA PRIVATE FUSEDSTEP_TARGET=cuda)
set_target_properties(fusedstep_kernels PROPERTIES CUDA_VISIBILITY_PRESET hidden)
# The same bits as on the CPU: no contraction, roots and quotients rounded exactly, no flush to zero.
target_compile_options(
  fusedstep_kernels
  PRIVATE --expt-relaxed-constexpr
          --generate-code=arch=compute_${oldest},code=[compute_${oldest}${code}]
          --threads=0
          --fmad=false
          --prec-div=true
          --prec-sqrt=true
          --ftz=false
          -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas
          -Xfatbin=-compress-all
          -Xptxas=--warn-on-spills,--warn-on-local-memory-usage)
if(FUSEDSTEP_WERROR)
  target_compile_options(fusedstep_kernels PRIVATE -Werror=all-warnings)
endif()
