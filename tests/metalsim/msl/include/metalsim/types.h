#pragma once

#include "abi/kernel_abi.h"
#include "metalsim/address_space.h"
#include "metalsim/macros.h"

// Scalars, vectors and packed vectors, and construction of vectors. Scalars and vectors are clang's own types.

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef _Float16 half;
typedef __bf16 bfloat;

namespace metal {
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}

#define METALSIM_VECTORS(T)        \
    typedef metal::vec<T, 2> T##2; \
    typedef metal::vec<T, 3> T##3; \
    typedef metal::vec<T, 4> T##4;
METALSIM_VECTORS(char)
METALSIM_VECTORS(uchar)
METALSIM_VECTORS(short)
METALSIM_VECTORS(ushort)
METALSIM_VECTORS(int)
METALSIM_VECTORS(uint)
METALSIM_VECTORS(long)
METALSIM_VECTORS(ulong)
METALSIM_VECTORS(half)
METALSIM_VECTORS(bfloat)
METALSIM_VECTORS(float)
#undef METALSIM_VECTORS

namespace metalsim {

template <bool B, typename T = void>
struct enable {};
template <typename T>
struct enable<true, T> {
    using type = T;
};
template <bool B, typename T = void>
using enable_t = typename enable<B, T>::type;

template <typename A, typename B>
struct same {
    static constexpr bool value = false;
};
template <typename A>
struct same<A, A> {
    static constexpr bool value = true;
};

// The type without references, const, volatile and address space.
template <typename T>
struct plain {
    using type = T;
};
#define METALSIM_PLAIN(QUALIFIERS)            \
    template <typename T>                     \
    struct plain<QUALIFIERS T> {              \
        using type = typename plain<T>::type; \
    };
METALSIM_PLAIN(const)
METALSIM_PLAIN(volatile)
METALSIM_PLAIN(const volatile)
#define METALSIM_PLAIN_SPACE(SPACE) \
    METALSIM_PLAIN(SPACE)           \
    METALSIM_PLAIN(SPACE const)     \
    METALSIM_PLAIN(SPACE volatile)  \
    METALSIM_PLAIN(SPACE const volatile)
METALSIM_PLAIN_SPACE(device)
METALSIM_PLAIN(constant)
METALSIM_PLAIN(constant volatile)
METALSIM_PLAIN_SPACE(threadgroup)
#undef METALSIM_PLAIN_SPACE
#undef METALSIM_PLAIN
template <typename T>
struct plain<T&> {
    using type = typename plain<T>::type;
};
template <typename T>
struct plain<T&&> {
    using type = typename plain<T>::type;
};
template <typename T>
using plain_t = typename plain<T>::type;

// A pointer to memory of any address space as clang's atomics and our services want it.
template <typename T, typename P>
inline __attribute__((always_inline)) T* host_pointer(P p) {
    return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p));
}

// "text", which MSL has in the constant address space.
inline __attribute__((always_inline)) constant char* literal(const char* text) {
    return host_pointer<constant char>(text);
}

}  // namespace metalsim

// Vectors of bool: comparisons of vectors yield vectors of integers, which convert to these.
namespace metalsim {

template <int N>
struct bool_vector;

template <typename T>
struct shape {  // scalars
    using element = T;
    static constexpr int size = 1;
    static constexpr bool vector = false;
};
template <typename T, int N>
struct shape<metal::vec<T, N>> {
    using element = T;
    static constexpr int size = N;
    static constexpr bool vector = true;
};
template <int N>
struct shape<bool_vector<N>> {
    using element = bool;
    static constexpr int size = N;
    static constexpr bool vector = true;
};
template <typename T>
struct is_boolean {
    static constexpr bool value = false;
};
template <int N>
struct is_boolean<bool_vector<N>> {
    static constexpr bool value = true;
};

#define METALSIM_BOOL_OPERATORS(N)                                       \
    bool_vector() = default;                                             \
    METALSIM_COPIES(bool_vector)                                         \
    bool_vector(bool v) {                                                \
        for (int i = 0; i < N; ++i) at(i) = v;                           \
    }                                                                    \
    template <typename T>                                                \
    bool_vector(metal::vec<T, N> v) {                                    \
        for (int i = 0; i < N; ++i) at(i) = v[i] != T(0);                \
    }                                                                    \
    template <typename... B, typename = enable_t<sizeof...(B) + 2 == N>> \
    bool_vector(bool a, bool b, B... rest) {                             \
        const bool all[] = {a, b, bool(rest)...};                        \
        for (int i = 0; i < N; ++i) at(i) = all[i];                      \
    }                                                                    \
    constexpr bool& operator[](int i) {                                  \
        return at(i);                                                    \
    }                                                                    \
    constexpr const bool& operator[](int i) const {                      \
        return (&x)[i];                                                  \
    }                                                                    \
    bool_vector operator!() const {                                      \
        bool_vector r;                                                   \
        for (int i = 0; i < N; ++i) r[i] = !(*this)[i];                  \
        return r;                                                        \
    }
#define METALSIM_BOOL_VECTOR(N, MEMBERS)              \
    template <>                                       \
    struct bool_vector<N> {                           \
        bool MEMBERS;                                 \
        METALSIM_BOOL_OPERATORS(N)                    \
      private:                                        \
        constexpr bool& at(int i) { return (&x)[i]; } \
    };
#define METALSIM_COMMA ,
METALSIM_BOOL_VECTOR(2, x METALSIM_COMMA y)
METALSIM_BOOL_VECTOR(3, x METALSIM_COMMA y METALSIM_COMMA z)
METALSIM_BOOL_VECTOR(4, x METALSIM_COMMA y METALSIM_COMMA z METALSIM_COMMA w)
#undef METALSIM_COMMA
#undef METALSIM_BOOL_VECTOR
#undef METALSIM_BOOL_OPERATORS

#define METALSIM_BOOL_BINARY(OP)                                       \
    template <int N>                                                   \
    bool_vector<N> operator OP(bool_vector<N> a, bool_vector<N> b) {   \
        bool_vector<N> r;                                              \
        for (int i = 0; i < N; ++i) r[i] = a[i] OP b[i];               \
        return r;                                                      \
    }                                                                  \
    template <typename T, int N>                                       \
    bool_vector<N> operator OP(bool_vector<N> a, metal::vec<T, N> b) { \
        return a OP bool_vector<N>(b);                                 \
    }                                                                  \
    template <typename T, int N>                                       \
    bool_vector<N> operator OP(metal::vec<T, N> a, bool_vector<N> b) { \
        return bool_vector<N>(a) OP b;                                 \
    }
METALSIM_BOOL_BINARY(&&)
METALSIM_BOOL_BINARY(||)
METALSIM_BOOL_BINARY(&)
METALSIM_BOOL_BINARY(|)
METALSIM_BOOL_BINARY(^)
METALSIM_BOOL_BINARY(==)
METALSIM_BOOL_BINARY(!=)
#undef METALSIM_BOOL_BINARY

// clang has no conversion between its two 16-bit formats.
template <typename T, typename A>
struct scalar_conversion {
    template <typename B>
    static constexpr T convert(B b) {
        return static_cast<T>(b);
    }
    template <typename B>
    static constexpr T cast(B b) {
        return (T)(b);
    }
};
template <>
struct scalar_conversion<bfloat, half> {
    static constexpr bfloat convert(half v) { return static_cast<bfloat>(static_cast<float>(v)); }
    static constexpr bfloat cast(half v) { return convert(v); }
};
template <>
struct scalar_conversion<half, bfloat> {
    static constexpr half convert(bfloat v) { return static_cast<half>(static_cast<float>(v)); }
    static constexpr half cast(bfloat v) { return convert(v); }
};
template <typename T, typename A>
inline __attribute__((always_inline)) constexpr T to(A a) {
    return scalar_conversion<T, A>::convert(a);
}

// ---- make<V>(arguments): what V(arguments) is in MSL, for any V ----

template <int N, typename T, typename A>
inline enable_t<!shape<A>::vector> append(T* out, int& n, A a) {
    if (n < N) out[n] = to<T>(a);
    ++n;
}
template <int N, typename T, typename A>
inline enable_t<shape<A>::vector> append(T* out, int& n, A a) {
    A v(a);
    for (int i = 0; i < shape<A>::size && n < N; ++i) out[n++] = to<T>(v[i]);
}

template <typename V>
struct builder;
template <typename T>
struct builder<metal::vec<T, 2>> {
    static constexpr metal::vec<T, 2> from(const T* v) { return metal::vec<T, 2>{v[0], v[1]}; }
    static constexpr metal::vec<T, 2> each(T a, T b) { return metal::vec<T, 2>{a, b}; }
};
template <typename T>
struct builder<metal::vec<T, 3>> {
    static constexpr metal::vec<T, 3> from(const T* v) { return metal::vec<T, 3>{v[0], v[1], v[2]}; }
    static constexpr metal::vec<T, 3> each(T a, T b, T c) { return metal::vec<T, 3>{a, b, c}; }
};
template <typename T>
struct builder<metal::vec<T, 4>> {
    static constexpr metal::vec<T, 4> from(const T* v) { return metal::vec<T, 4>{v[0], v[1], v[2], v[3]}; }
    static constexpr metal::vec<T, 4> each(T a, T b, T c, T d) { return metal::vec<T, 4>{a, b, c, d}; }
};
template <int N>
struct builder<bool_vector<N>> {
    static bool_vector<N> from(const bool* v) {
        bool_vector<N> r;
        for (int i = 0; i < N; ++i) r[i] = v[i];
        return r;
    }
};

template <typename... A>
struct count_components {
    static constexpr int value = 0;
    static constexpr bool scalars = true;
};
template <typename A, typename... B>
struct count_components<A, B...> {
    static constexpr int value = shape<A>::size + count_components<B...>::value;
    static constexpr bool scalars = !shape<A>::vector && count_components<B...>::scalars;
};

enum class how { none, copy, splat, convert, scalars, pieces, other };
template <typename V, typename... A>
constexpr how how_to_make() {
    return !shape<V>::vector                                          ? how::other
           : sizeof...(A) == 0                                        ? how::none
           : sizeof...(A) == 1 && count_components<A...>::scalars     ? how::splat
           : count_components<A...>::value != shape<V>::size          ? how::other
           : sizeof...(A) == 1                                        ? how::convert
           : count_components<A...>::scalars && !is_boolean<V>::value ? how::scalars
                                                                      : how::pieces;
}

template <typename V, how H>
struct maker {  // not a vector: C++ knows what it is
    template <typename... A>
    static constexpr V make(A... a) {
        static_assert(!shape<V>::vector, "the components of a vector's constructor do not add up to its size");
        return V(a...);
    }
};
template <typename V>
struct maker<V, how::none> {
    static constexpr V make() { return V{}; }
};
template <typename V>
struct maker<V, how::splat> {
    template <typename A>
    static constexpr V make(A a) {
        return (V)(to<typename shape<V>::element>(a));
    }
};
template <typename V>
struct maker<V, how::scalars> {
    template <typename... A>
    static constexpr V make(A... a) {
        return builder<V>::each(to<typename shape<V>::element>(a)...);
    }
};
template <typename V>
struct maker<V, how::pieces> {
    template <typename... A>
    static V make(A... a) {
        typename shape<V>::element parts[shape<V>::size];
        int n = 0;
        int each[] = {(append<shape<V>::size>(parts, n, a), 0)...};
        (void)each;
        return builder<V>::from(parts);
    }
};
template <typename V, typename A, bool Boolean = is_boolean<V>::value || is_boolean<A>::value>
struct converter {
    static constexpr V convert(A a) { return convert(a, typename shape<V>::element(), typename shape<A>::element()); }

  private:
    template <typename T, typename U>
    static constexpr V convert(A a, T, U) {
        return __builtin_convertvector(a, V);
    }
    using Floats = metal::vec<float, shape<A>::size>;
    static constexpr V convert(A a, bfloat, half) {
        return __builtin_convertvector(__builtin_convertvector(a, Floats), V);
    }
    static constexpr V convert(A a, half, bfloat) {
        return __builtin_convertvector(__builtin_convertvector(a, Floats), V);
    }
};
template <typename V>
struct converter<V, V, false> {
    static constexpr V convert(V a) { return a; }
};
template <typename V, typename A>
struct converter<V, A, true> {
    static V convert(A a) { return maker<V, how::pieces>::make(a); }
};
template <typename V>
struct maker<V, how::convert> {
    template <typename A>
    static constexpr V make(A a) {
        return converter<V, A>::convert(a);
    }
};

template <typename V, typename... A>
inline __attribute__((always_inline)) constexpr enable_t<shape<V>::vector, V> make(A... a) {
    return maker<V, how_to_make<V, A...>()>::make(a...);
}
template <typename V, typename... A>
inline __attribute__((always_inline)) constexpr enable_t<!shape<V>::vector && sizeof...(A) != 1, V> make(A... a) {
    return V(a...);
}
template <typename V, typename A>
inline __attribute__((always_inline)) constexpr enable_t<!shape<V>::vector, V> make(A a) {
    return scalar_conversion<V, A>::cast(a);
}

// {a, b, c} as an argument: whatever can be made of that. C++ does not make vectors of it.
template <typename T>
T value_of();
template <typename A, typename B, typename C, typename D>
struct braces4 {
    A a;
    B b;
    C c;
    D d;
    template <typename V, typename = decltype(V{value_of<A>(), value_of<B>(), value_of<C>(), value_of<D>()})>
    constexpr operator V() const {
        return V{a, b, c, d};
    }
};
template <typename A, typename B, typename C>
struct braces3 {
    A a;
    B b;
    C c;
    template <typename V, typename = decltype(V{value_of<A>(), value_of<B>(), value_of<C>()})>
    constexpr operator V() const {
        return V{a, b, c};
    }
};
template <typename A, typename B>
struct braces2 {
    A a;
    B b;
    template <typename V, typename = decltype(V{value_of<A>(), value_of<B>()})>
    constexpr operator V() const {
        return V{a, b};
    }
};
template <typename A, typename B>
METAL_FUNC constexpr braces2<A, B> braces(A a, B b) {
    return {a, b};
}
template <typename A, typename B, typename C>
METAL_FUNC constexpr braces3<A, B, C> braces(A a, B b, C c) {
    return {a, b, c};
}
template <typename A, typename B, typename C, typename D>
METAL_FUNC constexpr braces4<A, B, C, D> braces(A a, B b, C c, D d) {
    return {a, b, c, d};
}

}  // namespace metalsim

typedef metalsim::bool_vector<2> bool2;
typedef metalsim::bool_vector<3> bool3;
typedef metalsim::bool_vector<4> bool4;

// ---- packed vectors: the alignment of their elements ----

#define METALSIM_PACKED(T)                                          \
    typedef T##2 packed_##T##2 __attribute__((aligned(sizeof(T)))); \
    typedef T##4 packed_##T##4 __attribute__((aligned(sizeof(T)))); \
    typedef metalsim::packed3<T> packed_##T##3;

namespace metalsim {

template <typename T>
struct packed3 {
    T x, y, z;
    packed3() = default;
    METALSIM_COPIES(packed3)
    constexpr packed3(T a, T b, T c) : x(a), y(b), z(c) {}
    packed3(metal::vec<T, 3> v) : x(v.x), y(v.y), z(v.z) {}
    explicit constexpr packed3(T v) : x(v), y(v), z(v) {}
    operator metal::vec<T, 3>() const { return metal::vec<T, 3>{x, y, z}; }
    T& operator[](int i) { return (&x)[i]; }
    const T& operator[](int i) const { return (&x)[i]; }
};
template <typename T>
struct shape<packed3<T>> {
    using element = T;
    static constexpr int size = 3;
    static constexpr bool vector = true;
};
template <typename T>
struct builder<packed3<T>> {
    static packed3<T> from(const T* v) { return packed3<T>(v[0], v[1], v[2]); }
    static constexpr packed3<T> each(T a, T b, T c) { return packed3<T>(a, b, c); }
};
template <typename V, typename T>
struct converter<V, packed3<T>, false> {
    static V convert(packed3<T> a) { return maker<V, how::pieces>::make(a); }
};
template <typename T, typename A>
struct converter<packed3<T>, A, false> {
    static packed3<T> convert(A a) { return maker<packed3<T>, how::pieces>::make(a); }
};
template <typename T>
struct converter<packed3<T>, packed3<T>, false> {
    static packed3<T> convert(packed3<T> a) { return a; }
};

}  // namespace metalsim

METALSIM_PACKED(char)
METALSIM_PACKED(uchar)
METALSIM_PACKED(short)
METALSIM_PACKED(ushort)
METALSIM_PACKED(int)
METALSIM_PACKED(uint)
METALSIM_PACKED(long)
METALSIM_PACKED(ulong)
METALSIM_PACKED(half)
METALSIM_PACKED(bfloat)
METALSIM_PACKED(float)
#undef METALSIM_PACKED

// The fixed-width names are in the global namespace (from stdint.h) and in metal's.
namespace metal {
using ::int16_t;
using ::int32_t;
using ::int64_t;
using ::int8_t;
using ::ptrdiff_t;
using ::size_t;
using ::uint16_t;
using ::uint32_t;
using ::uint64_t;
using ::uint8_t;

// The bits of a value as another type of the same size.
template <typename T, typename U>
METAL_FUNC constexpr T as_type(U u) {
    static_assert(sizeof(T) == sizeof(U), "as_type needs types of the same size");
    return __builtin_bit_cast(T, u);
}
}  // namespace metal
using metal::as_type;
