#pragma once

#include "metalsim/services.h"

// metal_compute: barriers.
namespace metal {

enum class mem_flags : uint {
    mem_none = 0,
    mem_device = 1,
    mem_threadgroup = 2,
    mem_texture = 4,
    mem_threadgroup_imageblock = 8,
    mem_object_data = 16,
};
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) {
    return mem_flags(uint(a) | uint(b));
}
METAL_FUNC constexpr mem_flags operator&(mem_flags a, mem_flags b) {
    return mem_flags(uint(a) & uint(b));
}

enum thread_scope {
    thread_scope_thread,
    thread_scope_simdgroup,
    thread_scope_threadgroup,
    thread_scope_device,
};

[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC void threadgroup_barrier(mem_flags flags) {
    metalsim_services.threadgroup_barrier(uint(flags));
}
[[clang::convergent]] METALSIM_UNCHECKED METAL_FUNC void simdgroup_barrier(mem_flags flags) {
    metalsim_services.simdgroup_barrier(uint(flags));
}

// metal_uniform: a promise about values, which changes none.
template <typename T>
using uniform = T;
template <typename T>
METAL_FUNC constexpr T make_uniform(T x) {
    return x;
}

}  // namespace metal
