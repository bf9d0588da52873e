#pragma once

// Address spaces of MSL as address spaces of clang. They never convert into each other, and none into the default one,
// which is MSL's `thread`. They are 0 in code, so that what a kernel computes with is a host address.
#define device __attribute__((opencl_global))
// What is constant is const.
#ifdef METALSIM_LENIENT
#define constant const __attribute__((opencl_global_host))
#else
#define constant const __attribute__((opencl_constant))
#endif
#define threadgroup __attribute__((opencl_local))
#define thread

// Lenient compilation (see library.cpp): members may be called on objects of any address space, as in MSL, and
// unqualified pointers convert. Copies from other spaces then need no constructor of their own.
#ifdef METALSIM_LENIENT
#define METALSIM_COPIES(type)
#else
#define METALSIM_COPIES(type)               \
    type(const type&) = default;            \
    type& operator=(const type&) = default; \
    type(const device type&) = default;     \
    type(constant type&) = default;         \
    type(const threadgroup type&) = default;
#endif
