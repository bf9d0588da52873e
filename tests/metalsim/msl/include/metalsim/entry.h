#pragma once

#include "metalsim/library_info.h"
#include "metalsim/services.h"

// From a kernel's signature to an entry that takes the argument tables: what the translator generates is made of these.
namespace metalsim {

template <typename P>
struct memory_argument;  // a pointer or reference to device, constant or threadgroup memory
template <typename T>
struct memory_argument<T*> {
    using element = T;
    static constexpr bool reference = false;
    static METALSIM_UNCHECKED METAL_FUNC T* at(void* p) { return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p)); }
};
template <typename T>
struct memory_argument<T&> {
    using element = T;
    static constexpr bool reference = true;
    static METALSIM_UNCHECKED METAL_FUNC T& at(void* p) {
        return *reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p));
    }
};

// The declared address space of what an argument points to.
enum class space { none, device_space, constant_space, threadgroup_space };
template <typename T>
struct space_of {
    static constexpr space value = space::none;
};
#define METALSIM_SPACE_OF(SPACE, VALUE)              \
    template <typename T>                            \
    struct space_of<SPACE T> {                       \
        static constexpr space value = space::VALUE; \
    };
METALSIM_SPACE_OF(device, device_space)
METALSIM_SPACE_OF(constant, constant_space)
METALSIM_SPACE_OF(threadgroup, threadgroup_space)
#undef METALSIM_SPACE_OF

template <typename T, bool Void = metalsim::same<plain_t<T>, void>::value>
struct layout {
    static constexpr unsigned bytes = sizeof(plain_t<T>), alignment = alignof(plain_t<T>);
};
template <typename T>
struct layout<T, true> {
    static constexpr unsigned bytes = 1, alignment = 1;
};

// ---- where the value of a parameter comes from ----

template <unsigned Index>
struct from_buffer {
    template <typename P>
    static METALSIM_UNCHECKED METAL_FUNC P get(const MetalsimArguments* a, void* const*, const MetalsimThread*) {
        using element = typename memory_argument<P>::element;
        static_assert(
            space_of<element>::value == space::device_space || space_of<element>::value == space::constant_space,
            "a buffer argument points to device or constant memory");
        return memory_argument<P>::at(a->buffers[Index]);
    }
    template <typename P>
    static constexpr MetalsimArgumentInfo info(const char* name, const char* type, int function_constant) {
        using memory = memory_argument<P>;
        using element = typename memory::element;
        return MetalsimArgumentInfo{name,
                                    type,
                                    0,
                                    Index,
                                    space_of<element>::value == space::constant_space,
                                    space_of<element>::value == space::device_space && !__is_const(element),
                                    space_of<element>::value == space::constant_space && layout<element>::alignment < 4
                                        ? 4
                                        : layout<element>::alignment,
                                    memory::reference ? layout<element>::bytes : 0,
                                    function_constant};
    }
};
template <unsigned Index>
struct from_threadgroup {
    template <typename P>
    static METALSIM_UNCHECKED METAL_FUNC P get(const MetalsimArguments*, void* const* threadgroups,
                                               const MetalsimThread*) {
        static_assert(space_of<typename memory_argument<P>::element>::value == space::threadgroup_space,
                      "a threadgroup argument points to threadgroup memory");
        return memory_argument<P>::at(threadgroups[Index]);
    }
    template <typename P>
    static constexpr MetalsimArgumentInfo info(const char* name, const char* type, int function_constant) {
        using memory = memory_argument<P>;
        return MetalsimArgumentInfo{name,
                                    type,
                                    1,
                                    Index,
                                    0,
                                    1,
                                    layout<typename memory::element>::alignment,
                                    memory::reference ? layout<typename memory::element>::bytes : 0,
                                    function_constant};
    }
};

// Positions and sizes are uint or ushort, or vectors of these; a shorter vector takes the first components.
template <typename P>
struct place {
    static_assert(same<P, uint>::value || same<P, ushort>::value,
                  "a position or size is ushort or uint, or a vector of these");
    static METALSIM_UNCHECKED METAL_FUNC P of(uint32_t v) { return P(v); }
    static METALSIM_UNCHECKED METAL_FUNC P of(MetalsimUint3 v) { return P(v.x); }
};
template <typename T>
struct place<metal::vec<T, 2>> {
    static METALSIM_UNCHECKED METAL_FUNC metal::vec<T, 2> of(MetalsimUint3 v) {
        return metal::vec<T, 2>{T(v.x), T(v.y)};
    }
};
template <typename T>
struct place<metal::vec<T, 3>> {
    static METALSIM_UNCHECKED METAL_FUNC metal::vec<T, 3> of(MetalsimUint3 v) {
        return metal::vec<T, 3>{T(v.x), T(v.y), T(v.z)};
    }
};
#define METALSIM_FROM_THREAD(field)                                                                                   \
    struct from_##field {                                                                                             \
        template <typename P>                                                                                         \
        static METALSIM_UNCHECKED METAL_FUNC P get(const MetalsimArguments*, void* const*, const MetalsimThread* t) { \
            return place<plain_t<P>>::of(t->field);                                                                   \
        }                                                                                                             \
    };
METALSIM_FROM_THREAD(thread_position_in_grid)
METALSIM_FROM_THREAD(threads_per_grid)
METALSIM_FROM_THREAD(thread_position_in_threadgroup)
METALSIM_FROM_THREAD(threads_per_threadgroup)
METALSIM_FROM_THREAD(dispatch_threads_per_threadgroup)
METALSIM_FROM_THREAD(threadgroup_position_in_grid)
METALSIM_FROM_THREAD(threadgroups_per_grid)
METALSIM_FROM_THREAD(grid_origin)
METALSIM_FROM_THREAD(grid_size)
METALSIM_FROM_THREAD(thread_index_in_threadgroup)
METALSIM_FROM_THREAD(thread_index_in_simdgroup)
METALSIM_FROM_THREAD(simdgroup_index_in_threadgroup)
METALSIM_FROM_THREAD(simdgroups_per_threadgroup)
METALSIM_FROM_THREAD(dispatch_simdgroups_per_threadgroup)
METALSIM_FROM_THREAD(threads_per_simdgroup)
METALSIM_FROM_THREAD(thread_execution_width)
METALSIM_FROM_THREAD(thread_index_in_quadgroup)
METALSIM_FROM_THREAD(quadgroup_index_in_threadgroup)
METALSIM_FROM_THREAD(quadgroups_per_threadgroup)
METALSIM_FROM_THREAD(dispatch_quadgroups_per_threadgroup)
#undef METALSIM_FROM_THREAD

// ---- a kernel ----

template <typename F, F f>
struct kernel {
    static_assert(same<F, void>::value, "a kernel returns void");
};
template <typename... P, void (*f)(P...)>
struct kernel<void (*)(P...), f> {
    // Known by its address, which names the instance without making code for it.
    static constexpr char tag = 0;

    template <typename... From>
    struct arguments {
        static METALSIM_UNCHECKED METAL_FUNC void run(const MetalsimArguments* a, void* const* threadgroups,
                                                      const MetalsimThread* t) {
            static_assert(sizeof...(P) == sizeof...(From), "parameters");
            f(From::template get<P>(a, threadgroups, t)...);
        }
    };
    template <typename, unsigned I, typename... Q>
    struct nth_of;
    template <unsigned I, typename Q, typename... R>
    struct nth_of<void, I, Q, R...> : nth_of<void, I - 1, R...> {};
    template <typename Q, typename... R>
    struct nth_of<void, 0, Q, R...> {
        using type = Q;
    };
    template <unsigned I>
    using parameter = typename nth_of<void, I, P...>::type;
};
template <typename... P, void (*f)(P...)>
constexpr char kernel<void (*)(P...), f>::tag;

}  // namespace metalsim
