#pragma once

#include "metalsim/compute.h"
#include "metalsim/traits.h"

// metal_atomic.
namespace metal {

enum memory_order {
    memory_order_relaxed = __ATOMIC_RELAXED,
    memory_order_acquire = __ATOMIC_ACQUIRE,
    memory_order_release = __ATOMIC_RELEASE,
    memory_order_acq_rel = __ATOMIC_ACQ_REL,
    memory_order_seq_cst = __ATOMIC_SEQ_CST,
};

// Copied by no one; the functions below are the only way in.
template <typename T>
struct _atomic {
    T __s;
};
template <typename T>
using atomic = _atomic<T>;
using atomic_int = _atomic<int>;
using atomic_uint = _atomic<uint>;
using atomic_bool = _atomic<bool>;
using atomic_float = _atomic<float>;
using atomic_ulong = _atomic<ulong>;

METAL_FUNC void atomic_thread_fence(mem_flags, memory_order order, thread_scope = thread_scope_device) {
    __atomic_thread_fence(order);
}

}  // namespace metal

namespace metalsim {

template <typename T>
METALSIM_ATOMIC T atomic_read(const T* at) {
    T value;
    checked_atomic(at, sizeof(T));
    __atomic_load(at, &value, __ATOMIC_RELAXED);
    return value;
}
template <typename T>
METALSIM_ATOMIC T atomic_replace(T* at, T value) {
    T old;
    checked_atomic(at, sizeof(T));
    __atomic_exchange(at, &value, &old, __ATOMIC_RELAXED);
    return old;
}
template <typename T>
METALSIM_ATOMIC bool atomic_replace_if(T* at, T* expected, T desired) {
    checked_atomic(at, sizeof(T));
    return __atomic_compare_exchange(at, expected, &desired, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
template <typename Op, typename T>
METALSIM_ATOMIC T atomic_update(T* at, T value) {
    T seen, wanted;
    checked_atomic(at, sizeof(T));
    __atomic_load(at, &seen, __ATOMIC_RELAXED);
    do wanted = Op::of(seen, value);
    while (!__atomic_compare_exchange(at, &seen, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return seen;
}
#define METALSIM_ATOMIC_OP(name, expression) \
    struct atomic_##name {                   \
        template <typename T>                \
        METAL_FUNC static T of(T a, T b) {   \
            return T(expression);            \
        }                                    \
    };
METALSIM_ATOMIC_OP(add, a + b)
METALSIM_ATOMIC_OP(sub, a - b)
METALSIM_ATOMIC_OP(and, a& b)
METALSIM_ATOMIC_OP(or, a | b)
METALSIM_ATOMIC_OP(xor, a ^ b)
METALSIM_ATOMIC_OP(max, a > b ? a : b)
METALSIM_ATOMIC_OP(min, a < b ? a : b)
#undef METALSIM_ATOMIC_OP

}  // namespace metalsim

namespace metal {

// Only relaxed order exists before Metal 3.2.
#define METALSIM_ATOMICS(SPACE)                                                                                       \
    template <typename T>                                                                                             \
    METAL_FUNC T atomic_load_explicit(const volatile SPACE _atomic<T>* object, memory_order) {                        \
        return metalsim::atomic_read(metalsim::host_pointer<const T>(object));                                        \
    }                                                                                                                 \
    template <typename T>                                                                                             \
    METAL_FUNC void atomic_store_explicit(volatile SPACE _atomic<T>* object, metalsim::plain_t<T> value,              \
                                          memory_order) {                                                             \
        metalsim::atomic_replace(metalsim::host_pointer<T>(object), value);                                           \
    }                                                                                                                 \
    template <typename T>                                                                                             \
    METAL_FUNC T atomic_exchange_explicit(volatile SPACE _atomic<T>* object, metalsim::plain_t<T> value,              \
                                          memory_order) {                                                             \
        return metalsim::atomic_replace(metalsim::host_pointer<T>(object), value);                                    \
    }                                                                                                                 \
    template <typename T>                                                                                             \
    METAL_FUNC bool atomic_compare_exchange_weak_explicit(volatile SPACE _atomic<T>* object, thread T* expected,      \
                                                          metalsim::plain_t<T> desired, memory_order, memory_order) { \
        return metalsim::atomic_replace_if(metalsim::host_pointer<T>(object), expected, desired);                     \
    }                                                                                                                 \
    METALSIM_ATOMIC_FETCH(SPACE, add)                                                                                 \
    METALSIM_ATOMIC_FETCH(SPACE, sub)                                                                                 \
    METALSIM_ATOMIC_FETCH(SPACE, and)                                                                                 \
    METALSIM_ATOMIC_FETCH(SPACE, or)                                                                                  \
    METALSIM_ATOMIC_FETCH(SPACE, xor)                                                                                 \
    METALSIM_ATOMIC_FETCH(SPACE, max)                                                                                 \
    METALSIM_ATOMIC_FETCH(SPACE, min)
#define METALSIM_ATOMIC_FETCH(SPACE, name)                                                                     \
    template <typename T>                                                                                      \
    METAL_FUNC T atomic_fetch_##name##_explicit(volatile SPACE _atomic<T>* object, metalsim::plain_t<T> value, \
                                                memory_order) {                                                \
        return metalsim::atomic_update<metalsim::atomic_##name>(metalsim::host_pointer<T>(object), value);     \
    }
METALSIM_ATOMICS(device)
METALSIM_ATOMICS(threadgroup)
#undef METALSIM_ATOMICS
#undef METALSIM_ATOMIC_FETCH

}  // namespace metal
