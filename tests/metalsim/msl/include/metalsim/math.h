#pragma once

#include "metalsim/traits.h"

// metal_math, metal_common, metal_integer, metal_relational and metal_geometric. Overloads as in the specification: for
// each type of its tables, so that calls that are ambiguous there are ambiguous here.

namespace metalsim {

// A vector of T of the size of V, or T.
template <typename T, typename V, bool Vector = shape<V>::vector>
struct like_of {
    using type = T;
};
template <typename T, typename V>
struct like_of<T, V, true> {
    using type = metal::vec<T, shape<V>::size>;
};
template <typename V>
struct like_of<bool, V, true> {
    using type = bool_vector<shape<V>::size>;
};
template <typename T, typename V>
using like = typename like_of<T, V>::type;
template <typename V>
using element_t = typename shape<V>::element;

// f of each component, computed in float.
template <typename R, typename F, typename T>
METAL_FUNC enable_t<!shape<T>::vector, R> map_to(F f, T x) {
    return to<R>(f(float(x)));
}
template <typename R, typename F, typename V>
METAL_FUNC enable_t<shape<V>::vector, R> map_to(F f, V x) {
    R r;
    for (int i = 0; i < shape<V>::size; ++i) r[i] = to<element_t<R>>(f(float(x[i])));
    return r;
}
template <typename F, typename T>
METAL_FUNC T map(F f, T x) {
    return map_to<T>(f, x);
}
template <typename F, typename T, typename U>
METAL_FUNC enable_t<!shape<T>::vector, T> map_with(F f, T x, U y) {
    return to<T>(f(x, y));
}
template <typename F, typename V, typename U>
METAL_FUNC enable_t<shape<V>::vector, V> map_with(F f, V x, U y) {
    V r;
    for (int i = 0; i < shape<V>::size; ++i) r[i] = to<element_t<V>>(f(x[i], y[i]));
    return r;
}
template <typename F, typename T>
METAL_FUNC T map(F f, T x, T y) {
    return map_with(f, x, y);
}

// b where c, else a.
template <typename T>
METAL_FUNC T choose(T a, T b, bool c) {
    return c ? b : a;
}
template <typename T, int N>
METAL_FUNC metal::vec<T, N> choose(metal::vec<T, N> a, metal::vec<T, N> b, bool_vector<N> c) {
    for (int i = 0; i < N; ++i) a[i] = c[i] ? b[i] : a[i];
    return a;
}
template <typename T, int N, typename I>
METAL_FUNC metal::vec<T, N> choose(metal::vec<T, N> a, metal::vec<T, N> b, metal::vec<I, N> c) {
    for (int i = 0; i < N; ++i) a[i] = c[i] ? b[i] : a[i];
    return a;
}

// ---- bits of integers ----

template <typename T, bool Unsigned = metal::is_unsigned<element_t<T>>::value>
struct absolute {
    static METAL_FUNC T of(T x) { return __builtin_elementwise_abs(x); }
};
template <typename T>
struct absolute<T, true> {
    static METAL_FUNC T of(T x) { return x; }
};
template <typename T>
METAL_FUNC T integer_abs(T x) {
    return absolute<T>::of(x);
}

struct count_ones {
    template <typename U>
    static U of(U x) {
        return U(__builtin_popcountll(x));
    }
};
struct leading_zeros {
    template <typename U>
    static U of(U x) {
        return x ? U(__builtin_clzll(x) - (64 - 8 * int(sizeof(U)))) : U(8 * sizeof(U));
    }
};
struct trailing_zeros {
    template <typename U>
    static U of(U x) {
        return x ? U(__builtin_ctzll(x)) : U(8 * sizeof(U));
    }
};
template <typename F, typename T>
METAL_FUNC enable_t<!shape<T>::vector, T> each_bits(T x) {
    return T(F::of(metal::make_unsigned_t<T>(x)));
}
template <typename F, typename V>
METAL_FUNC enable_t<shape<V>::vector, V> each_bits(V x) {
    for (int i = 0; i < shape<V>::size; ++i) x[i] = each_bits<F>(element_t<V>(x[i]));
    return x;
}
template <typename T>
METAL_FUNC enable_t<!shape<T>::vector, T> high_product(T x, T y) {
    return T((__int128(x) * __int128(y)) >> (8 * sizeof(T)));
}
METAL_FUNC ulong high_product(ulong x, ulong y) {
    return ulong((__uint128_t(x) * __uint128_t(y)) >> 64);
}
template <typename V>
METAL_FUNC enable_t<shape<V>::vector, V> high_product(V x, V y) {
    for (int i = 0; i < shape<V>::size; ++i) x[i] = high_product(element_t<V>(x[i]), element_t<V>(y[i]));
    return x;
}
template <typename T>
METAL_FUNC enable_t<!shape<T>::vector, T> rotate_bits(T x, T n) {
    using U = metal::make_unsigned_t<T>;
    const uint bits = 8 * sizeof(T), k = uint(n) % bits;
    return k ? T((U(x) << k) | (U(x) >> (bits - k))) : x;
}
template <typename V>
METAL_FUNC enable_t<shape<V>::vector, V> rotate_bits(V x, V n) {
    for (int i = 0; i < shape<V>::size; ++i) x[i] = rotate_bits(element_t<V>(x[i]), element_t<V>(n[i]));
    return x;
}
template <typename T>
METAL_FUNC enable_t<!shape<T>::vector, T> extract(T x, uint offset, uint bits) {
    using U = metal::make_unsigned_t<T>;
    const uint width = 8 * sizeof(T);
    if (bits == 0) return 0;
    return T(T(U(x) << (width - bits - offset)) >> (width - bits));
}
template <typename V>
METAL_FUNC enable_t<shape<V>::vector, V> extract(V x, uint offset, uint bits) {
    for (int i = 0; i < shape<V>::size; ++i) x[i] = extract(element_t<V>(x[i]), offset, bits);
    return x;
}
template <typename T>
METAL_FUNC T insert(T base, T insert, uint offset, uint bits) {
    using E = element_t<T>;
    using U = metal::make_unsigned_t<E>;
    const U ones = bits >= 8 * sizeof(E) ? U(-1) : U((U(1) << bits) - 1);
    const T mask = T(E(U(ones << offset)));
    return (base & ~mask) | ((insert << T(E(offset))) & mask);
}

}  // namespace metalsim

namespace metal {

#define METALSIM_T float
#define METALSIM_INT int
#include "metalsim/math_of_type.inc"
#define METALSIM_T float2
#define METALSIM_INT int2
#include "metalsim/math_of_type.inc"
#define METALSIM_T float3
#define METALSIM_INT int3
#include "metalsim/math_of_type.inc"
#define METALSIM_T float4
#define METALSIM_INT int4
#include "metalsim/math_of_type.inc"
#define METALSIM_T half
#define METALSIM_INT int
#include "metalsim/math_of_type.inc"
#define METALSIM_T half2
#define METALSIM_INT int2
#include "metalsim/math_of_type.inc"
#define METALSIM_T half3
#define METALSIM_INT int3
#include "metalsim/math_of_type.inc"
#define METALSIM_T half4
#define METALSIM_INT int4
#include "metalsim/math_of_type.inc"
METAL_FUNC float nextafter(float x, float y) {
    return __builtin_nextafterf(x, y);
}

#define METALSIM_T char
#include "metalsim/integer_of_type.inc"
#define METALSIM_T char2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T char3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T char4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uchar
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uchar2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uchar3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uchar4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T short
#include "metalsim/integer_of_type.inc"
#define METALSIM_T short2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T short3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T short4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ushort
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ushort2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ushort3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ushort4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T int
#include "metalsim/integer_of_type.inc"
#define METALSIM_T int2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T int3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T int4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uint
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uint2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uint3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T uint4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T long
#include "metalsim/integer_of_type.inc"
#define METALSIM_T long2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T long3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T long4
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ulong
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ulong2
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ulong3
#include "metalsim/integer_of_type.inc"
#define METALSIM_T ulong4
#include "metalsim/integer_of_type.inc"

METAL_FUNC uint mul24(uint x, uint y) {
    return (x & 0xffffffu) * (y & 0xffffffu);
}
METAL_FUNC int mul24(int x, int y) {
    return ((x << 8) >> 8) * ((y << 8) >> 8);
}
METAL_FUNC uint mad24(uint x, uint y, uint z) {
    return mul24(x, y) + z;
}
METAL_FUNC int mad24(int x, int y, int z) {
    return mul24(x, y) + z;
}

// bfloat converts implicitly to float alone, so a call with one is a call with floats. Sources may overload this.
template <typename B>
using for_bfloat = metalsim::enable_t<metalsim::same<B, bfloat>::value, float>;
#define METALSIM_BFLOAT(name)            \
    template <typename B>                \
    METAL_FUNC for_bfloat<B> name(B x) { \
        return name(float(x));           \
    }
METALSIM_BFLOAT(fabs)
METALSIM_BFLOAT(abs)
METALSIM_BFLOAT(ceil)
METALSIM_BFLOAT(floor)
METALSIM_BFLOAT(trunc)
METALSIM_BFLOAT(round)
METALSIM_BFLOAT(rint)
METALSIM_BFLOAT(sqrt)
METALSIM_BFLOAT(rsqrt)
METALSIM_BFLOAT(exp)
METALSIM_BFLOAT(exp2)
METALSIM_BFLOAT(log)
METALSIM_BFLOAT(log2)
METALSIM_BFLOAT(sin)
METALSIM_BFLOAT(cos)
METALSIM_BFLOAT(tanh)
#undef METALSIM_BFLOAT
#define METALSIM_BFLOAT(name)                 \
    template <typename B>                     \
    METAL_FUNC for_bfloat<B> name(B x, B y) { \
        return name(float(x), float(y));      \
    }
METALSIM_BFLOAT(max)
METALSIM_BFLOAT(min)
METALSIM_BFLOAT(fmax)
METALSIM_BFLOAT(fmin)
METALSIM_BFLOAT(pow)
#undef METALSIM_BFLOAT
#define METALSIM_BFLOAT(name)                                                         \
    template <typename B>                                                             \
    METAL_FUNC metalsim::enable_t<metalsim::same<B, bfloat>::value, bool> name(B x) { \
        return name(float(x));                                                        \
    }
METALSIM_BFLOAT(isnan)
METALSIM_BFLOAT(isinf)
METALSIM_BFLOAT(isfinite)
#undef METALSIM_BFLOAT

// ---- relational ----

template <typename T>
METAL_FUNC metalsim::enable_t<!metalsim::shape<T>::vector, T> select(T a, T b, bool c) {
    return c ? b : a;
}
template <typename T, int N>
METAL_FUNC vec<T, N> select(vec<T, N> a, vec<T, N> b, metalsim::bool_vector<N> c) {
    return metalsim::choose(a, b, c);
}
template <typename T, int N, typename I>
METAL_FUNC vec<T, N> select(vec<T, N> a, vec<T, N> b, vec<I, N> c) {
    return metalsim::choose(a, b, c);
}
METAL_FUNC constexpr bool all(bool x) {
    return x;
}
METAL_FUNC constexpr bool any(bool x) {
    return x;
}
template <int N>
METAL_FUNC bool all(metalsim::bool_vector<N> x) {
    bool r = true;
    for (int i = 0; i < N; ++i) r = r && x[i];
    return r;
}
template <int N>
METAL_FUNC bool any(metalsim::bool_vector<N> x) {
    bool r = false;
    for (int i = 0; i < N; ++i) r = r || x[i];
    return r;
}
template <typename T, int N>
METAL_FUNC bool all(vec<T, N> x) {
    return all(metalsim::bool_vector<N>(x));
}
template <typename T, int N>
METAL_FUNC bool any(vec<T, N> x) {
    return any(metalsim::bool_vector<N>(x));
}

// ---- geometric ----

template <typename T, int N>
METAL_FUNC T dot(vec<T, N> a, vec<T, N> b) {
    T sum = a[0] * b[0];
    for (int i = 1; i < N; ++i) sum += a[i] * b[i];
    return sum;
}
template <typename T, int N>
METAL_FUNC T length_squared(vec<T, N> a) {
    return dot(a, a);
}
template <typename T, int N>
METAL_FUNC T length(vec<T, N> a) {
    return sqrt(dot(a, a));
}
template <typename T, int N>
METAL_FUNC T distance(vec<T, N> a, vec<T, N> b) {
    return length(a - b);
}
template <typename T, int N>
METAL_FUNC T distance_squared(vec<T, N> a, vec<T, N> b) {
    return length_squared(a - b);
}
template <typename T, int N>
METAL_FUNC vec<T, N> normalize(vec<T, N> a) {
    return a * rsqrt(dot(a, a));
}
template <typename T>
METAL_FUNC vec<T, 3> cross(vec<T, 3> a, vec<T, 3> b) {
    return a.yzx * b.zxy - a.zxy * b.yzx;
}

#define METALSIM_PRECISION   \
    using metal::abs;        \
    using metal::fabs;       \
    using metal::ceil;       \
    using metal::floor;      \
    using metal::trunc;      \
    using metal::round;      \
    using metal::rint;       \
    using metal::sqrt;       \
    using metal::rsqrt;      \
    using metal::exp;        \
    using metal::exp2;       \
    using metal::exp10;      \
    using metal::log;        \
    using metal::log2;       \
    using metal::log10;      \
    using metal::sin;        \
    using metal::cos;        \
    using metal::tan;        \
    using metal::sinpi;      \
    using metal::cospi;      \
    using metal::tanpi;      \
    using metal::asin;       \
    using metal::acos;       \
    using metal::atan;       \
    using metal::atan2;      \
    using metal::sinh;       \
    using metal::cosh;       \
    using metal::tanh;       \
    using metal::asinh;      \
    using metal::acosh;      \
    using metal::atanh;      \
    using metal::sincos;     \
    using metal::pow;        \
    using metal::powr;       \
    using metal::fmod;       \
    using metal::fma;        \
    using metal::fmax;       \
    using metal::fmin;       \
    using metal::fmax3;      \
    using metal::fmin3;      \
    using metal::fmedian3;   \
    using metal::max;        \
    using metal::min;        \
    using metal::clamp;      \
    using metal::saturate;   \
    using metal::mix;        \
    using metal::step;       \
    using metal::smoothstep; \
    using metal::sign;       \
    using metal::fract;      \
    using metal::fdim;       \
    using metal::modf;       \
    using metal::frexp;      \
    using metal::ldexp;      \
    using metal::ilogb;      \
    using metal::copysign;   \
    using metal::divide;     \
    using metal::normalize;  \
    using metal::length;     \
    using metal::distance;
namespace precise {
METALSIM_PRECISION
}
namespace fast {
METALSIM_PRECISION
}
#undef METALSIM_PRECISION

}  // namespace metal
