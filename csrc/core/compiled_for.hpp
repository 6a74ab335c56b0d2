// The two macros of this project: where a function runs, and which target a unit is compiled for.
#pragma once

// A function that host and device code share.
#if defined(__CUDACC__)
#define FUSEDSTEP_HOST_DEVICE __host__ __device__
#else
#define FUSEDSTEP_HOST_DEVICE
#endif

// The namespace of everything that a target compiles. The same inline function compiled under two
// sets of -m flags is ONE symbol to the linker, which keeps either: on an older CPU that is an
// illegal instruction. So rules, primitives and sweeps live in a namespace per target, and the
// headers that targets include use nothing of the standard library that has inline functions.
#ifndef FUSEDSTEP_TARGET
#define FUSEDSTEP_TARGET baseline
#endif
