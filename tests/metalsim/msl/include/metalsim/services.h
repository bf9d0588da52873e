#pragma once

#include "metalsim/types.h"

// The executor's services as kernels call them, through the table that the loader fills.
extern "C" {
extern MetalsimServices metalsim_services __attribute__((visibility("hidden")));
}

// What runs for all lanes at once belongs to no thread and is not checked.
#define METALSIM_UNCHECKED __attribute__((no_sanitize("coverage")))

namespace metalsim {

METALSIM_UNCHECKED METAL_FUNC const MetalsimThread& this_thread() {
    return *metalsim_services.this_thread();
}

// Constants do not change while a kernel runs.
__attribute__((const, noinline)) METALSIM_UNCHECKED inline const unsigned char* constants_block() {
    return metalsim_services.function_constants();
}
template <typename T, unsigned Offset>
METALSIM_UNCHECKED METAL_FUNC T function_constant() {
    return *reinterpret_cast<const T*>(constants_block() + Offset);
}

// Atomic accesses are reported as such, and stay out of line so that they are not reported as others too.
#ifdef METALSIM_CHECKED
#define METALSIM_ATOMIC METALSIM_UNCHECKED inline __attribute__((noinline))
#else
#define METALSIM_ATOMIC METAL_FUNC
#endif
METALSIM_UNCHECKED METAL_FUNC void checked_atomic(const void* address, unsigned bytes) {
#ifdef METALSIM_CHECKED
    metalsim_services.check_atomic(address, bytes);
#else
    (void)address;
    (void)bytes;
#endif
}

// ---- lanes that meet ----

// Calls F::combine once with the values of the active lanes: in[i] of lane i, out[i] for lane i.
template <typename F, typename R, typename A>
struct meeting {
    static METALSIM_UNCHECKED void combine(const void* const* in, void* const* out, uint32_t active, const void*) {
        F::combine(reinterpret_cast<const A* const*>(in), reinterpret_cast<R* const*>(out), active);
    }
};
template <typename F, typename R, typename A>
[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC R meet_simdgroup(A input) {
    R output;
    metalsim_services.simdgroup_collective(&meeting<F, R, A>::combine, &input, &output, nullptr);
    return output;
}
template <typename F, typename R, typename A>
[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC R meet_quadgroup(A input) {
    R output;
    metalsim_services.quadgroup_collective(&meeting<F, R, A>::combine, &input, &output, nullptr);
    return output;
}

// ---- threadgroup variables of kernels ----

template <typename T>
[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC threadgroup T& threadgroup_variable(const void* site) {
    return *reinterpret_cast<threadgroup T*>(
        reinterpret_cast<uintptr_t>(metalsim_services.threadgroup_storage(site, sizeof(T), alignof(T))));
}

}  // namespace metalsim
