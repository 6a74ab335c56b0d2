// The macros of this project: where a function runs, how its loops are compiled, and which target a unit is for.
#pragma once

// A function that host and device code share. On a device all are inlined: what they point to is in registers.
#if defined(__CUDACC__)
#define FUSEDSTEP_HOST_DEVICE __host__ __device__ __attribute__((always_inline))
#define FUSEDSTEP_HOST_DEVICE_CALLED __host__ __device__ __attribute__((noinline))  // rare, or once for each block
#else
#define FUSEDSTEP_HOST_DEVICE
#define FUSEDSTEP_HOST_DEVICE_CALLED
#endif

// The iterations of the loop are independent, and it is worth vectorising; on a device it is over registers.
// (`restrict` would promise more than is true: a gradient may be its own variable.)
#if defined(__CUDACC__)
#define FUSEDSTEP_INDEPENDENT _Pragma("unroll")
#define FUSEDSTEP_UNROLLED _Pragma("unroll")
#else
#if defined(__clang__)
#define FUSEDSTEP_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define FUSEDSTEP_INDEPENDENT _Pragma("GCC ivdep")
#endif
#define FUSEDSTEP_UNROLLED
#endif

// The namespace of everything that a target compiles. The same inline function compiled under two
// sets of -m flags is ONE symbol to the linker, which keeps either: on an older CPU that is an
// illegal instruction. So rules, primitives and sweeps live in a namespace per target, and the
// headers that targets include use nothing of the standard library that has inline functions.
#ifndef FUSEDSTEP_TARGET
#define FUSEDSTEP_TARGET baseline
#endif
