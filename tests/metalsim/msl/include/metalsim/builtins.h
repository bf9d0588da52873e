#pragma once

#include "metalsim/math.h"
#include "metalsim/simd.h"

// Builtins of Apple's compiler that its headers are made of. They are no part of the specification; sources that add
// overloads to namespace metal (MLX's bf16_math.h) use them. The last argument says fast or precise, which is one here.
#define METALSIM_BUILTIN(name)              \
    template <typename T>                   \
    METAL_FUNC T __metal_##name(T x, int) { \
        return metal::name(x);              \
    }
METALSIM_BUILTIN(acos)
METALSIM_BUILTIN(acosh)
METALSIM_BUILTIN(asin)
METALSIM_BUILTIN(asinh)
METALSIM_BUILTIN(atan)
METALSIM_BUILTIN(atanh)
METALSIM_BUILTIN(ceil)
METALSIM_BUILTIN(cos)
METALSIM_BUILTIN(cosh)
METALSIM_BUILTIN(cospi)
METALSIM_BUILTIN(exp)
METALSIM_BUILTIN(exp10)
METALSIM_BUILTIN(exp2)
METALSIM_BUILTIN(fabs)
METALSIM_BUILTIN(floor)
METALSIM_BUILTIN(fract)
METALSIM_BUILTIN(log)
METALSIM_BUILTIN(log10)
METALSIM_BUILTIN(log2)
METALSIM_BUILTIN(rint)
METALSIM_BUILTIN(round)
METALSIM_BUILTIN(rsqrt)
METALSIM_BUILTIN(sin)
METALSIM_BUILTIN(sinh)
METALSIM_BUILTIN(sinpi)
METALSIM_BUILTIN(sqrt)
METALSIM_BUILTIN(tan)
METALSIM_BUILTIN(tanh)
METALSIM_BUILTIN(tanpi)
METALSIM_BUILTIN(trunc)
#undef METALSIM_BUILTIN
#define METALSIM_BUILTIN(name)                   \
    template <typename T>                        \
    METAL_FUNC T __metal_##name(T x, T y, int) { \
        return metal::name(x, y);                \
    }
METALSIM_BUILTIN(atan2)
METALSIM_BUILTIN(divide)
METALSIM_BUILTIN(fmax)
METALSIM_BUILTIN(fmin)
METALSIM_BUILTIN(fmod)
METALSIM_BUILTIN(pow)
METALSIM_BUILTIN(powr)
#undef METALSIM_BUILTIN
#define METALSIM_BUILTIN(name)                        \
    template <typename T>                             \
    METAL_FUNC T __metal_##name(T x, T y, T z, int) { \
        return metal::name(x, y, z);                  \
    }
METALSIM_BUILTIN(fmax3)
METALSIM_BUILTIN(fmin3)
METALSIM_BUILTIN(fmedian3)
#undef METALSIM_BUILTIN
METAL_FUNC float __metal_fma(float x, float y, float z) {
    return metal::fma(x, y, z);
}
METAL_FUNC float __metal_nextafter(float x, float y) {
    return metal::nextafter(x, y);
}
METAL_FUNC float __metal_ldexp(float x, int k, int) {
    return metal::ldexp(x, k);
}
METAL_FUNC float __metal_frexp(float x, thread int* exponent) {
    return metal::frexp(x, *exponent);
}

METAL_FUNC ushort __metal_get_simdgroup_size(ushort) {
    return 32;
}
METAL_FUNC ushort __metal_get_thread_index_in_simdgroup(ushort) {
    return ushort(metalsim::this_thread().thread_index_in_simdgroup);
}
#define METALSIM_BUILTIN(name)              \
    template <typename T>                   \
    METAL_FUNC T __metal_simd_##name(T x) { \
        return metal::simd_##name(x);       \
    }
METALSIM_BUILTIN(max)
METALSIM_BUILTIN(min)
METALSIM_BUILTIN(product)
METALSIM_BUILTIN(sum)
METALSIM_BUILTIN(and)
METALSIM_BUILTIN(or)
METALSIM_BUILTIN(xor)
METALSIM_BUILTIN(prefix_exclusive_product)
METALSIM_BUILTIN(prefix_exclusive_sum)
METALSIM_BUILTIN(prefix_inclusive_product)
METALSIM_BUILTIN(prefix_inclusive_sum)
#undef METALSIM_BUILTIN
#define METALSIM_BUILTIN(name)                           \
    template <typename T>                                \
    METAL_FUNC T __metal_simd_##name(T x, ushort lane) { \
        return metal::simd_##name(x, lane);              \
    }
METALSIM_BUILTIN(broadcast)
METALSIM_BUILTIN(shuffle)
METALSIM_BUILTIN(shuffle_down)
METALSIM_BUILTIN(shuffle_rotate_down)
METALSIM_BUILTIN(shuffle_rotate_up)
METALSIM_BUILTIN(shuffle_up)
METALSIM_BUILTIN(shuffle_xor)
#undef METALSIM_BUILTIN
#define METALSIM_BUILTIN(name)                                                   \
    template <typename T>                                                        \
    METAL_FUNC T __metal_simd_##name(T x, T fill, ushort delta, ushort modulo) { \
        return metal::simd_##name(x, fill, delta, modulo);                       \
    }
METALSIM_BUILTIN(shuffle_and_fill_down)
METALSIM_BUILTIN(shuffle_and_fill_up)
#undef METALSIM_BUILTIN
