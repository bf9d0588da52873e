#pragma once

#include "metalsim/types.h"

// metal_type_traits and metal_limits.
namespace metal {

template <typename T, T V>
struct integral_constant {
    static constexpr constant T value = V;
    using value_type = T;
    using type = integral_constant;
    constexpr operator T() const { return V; }
    constexpr T operator()() const { return V; }
};
template <bool B>
using bool_constant = integral_constant<bool, B>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool B, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
    using type = T;
};
template <bool B, typename T = void>
using enable_if_t = typename enable_if<B, T>::type;

template <bool B, typename T, typename F>
struct conditional {
    using type = T;
};
template <typename T, typename F>
struct conditional<false, T, F> {
    using type = F;
};
template <bool B, typename T, typename F>
using conditional_t = typename conditional<B, T, F>::type;

template <typename T>
struct type_identity {
    using type = T;
};

#define METALSIM_TRANSFORM(name, pattern)       \
    template <typename T>                       \
    struct name : type_identity<T> {};          \
    template <typename T>                       \
    struct name<pattern> : type_identity<T> {}; \
    template <typename T>                       \
    using name##_t = typename name<T>::type;
METALSIM_TRANSFORM(remove_const, const T)
METALSIM_TRANSFORM(remove_volatile, volatile T)
METALSIM_TRANSFORM(remove_pointer, T*)
#undef METALSIM_TRANSFORM
template <typename T>
struct remove_reference : type_identity<T> {};
template <typename T>
struct remove_reference<T&> : type_identity<T> {};
template <typename T>
struct remove_reference<T&&> : type_identity<T> {};
template <typename T>
using remove_reference_t = typename remove_reference<T>::type;
template <typename T>
using remove_cv = remove_volatile<remove_const_t<T>>;
template <typename T>
using remove_cv_t = typename remove_cv<T>::type;
template <typename T>
struct remove_addrspace : type_identity<T> {};
template <typename T>
struct remove_addrspace<device T> : type_identity<T> {};
template <typename T>
struct remove_addrspace<constant T> : type_identity<T> {};
template <typename T>
struct remove_addrspace<threadgroup T> : type_identity<T> {};
template <typename T>
using remove_addrspace_t = typename remove_addrspace<T>::type;
template <typename T>
using remove_cvref = remove_cv<remove_reference_t<T>>;
template <typename T>
using remove_cvref_t = typename remove_cvref<T>::type;
template <typename T>
struct add_const : type_identity<const T> {};
template <typename T>
using add_const_t = const T;
template <typename T>
struct decay : type_identity<metalsim::plain_t<T>> {};
template <typename T>
using decay_t = typename decay<T>::type;

#define METALSIM_PREDICATE(name, ...)              \
    template <typename T>                          \
    struct name : bool_constant<(__VA_ARGS__)> {}; \
    template <typename T>                          \
    constexpr constant bool name##_v = (__VA_ARGS__);
METALSIM_PREDICATE(is_void, metalsim::same<remove_cv_t<T>, void>::value)
METALSIM_PREDICATE(is_integral, __is_integral(metalsim::plain_t<T>))
METALSIM_PREDICATE(is_floating_point, __is_floating_point(metalsim::plain_t<T>))
METALSIM_PREDICATE(is_arithmetic, is_integral<T>::value || is_floating_point<T>::value)
METALSIM_PREDICATE(is_scalar, __is_scalar(T))
METALSIM_PREDICATE(is_vector, metalsim::shape<metalsim::plain_t<T>>::vector)
METALSIM_PREDICATE(is_signed,
                   is_arithmetic<T>::value && (is_floating_point<T>::value || __is_signed(metalsim::plain_t<T>)))
METALSIM_PREDICATE(is_unsigned, __is_unsigned(metalsim::plain_t<T>))
METALSIM_PREDICATE(is_const, __is_const(T))
METALSIM_PREDICATE(is_volatile, __is_volatile(T))
METALSIM_PREDICATE(is_pointer, __is_pointer(T))
METALSIM_PREDICATE(is_reference, __is_reference(T))
METALSIM_PREDICATE(is_array, __is_array(T))
METALSIM_PREDICATE(is_enum, __is_enum(T))
METALSIM_PREDICATE(is_union, __is_union(T))
METALSIM_PREDICATE(is_class, __is_class(T))
METALSIM_PREDICATE(is_trivial, __is_trivial(T))
METALSIM_PREDICATE(is_trivially_copyable, __is_trivially_copyable(T))
METALSIM_PREDICATE(is_standard_layout, __is_standard_layout(T))
#undef METALSIM_PREDICATE

template <typename A, typename B>
struct is_same : false_type {};
template <typename A>
struct is_same<A, A> : true_type {};
template <typename A, typename B>
constexpr constant bool is_same_v = is_same<A, B>::value;
template <typename A, typename B>
struct is_convertible : bool_constant<__is_convertible_to(A, B)> {};
template <typename A, typename B>
constexpr constant bool is_convertible_v = __is_convertible_to(A, B);
template <typename A, typename... B>
struct is_constructible : bool_constant<__is_constructible(A, B...)> {};
template <typename A, typename... B>
constexpr constant bool is_constructible_v = __is_constructible(A, B...);
template <typename A, typename B>
struct is_base_of : bool_constant<__is_base_of(A, B)> {};
template <typename A, typename B>
constexpr constant bool is_base_of_v = __is_base_of(A, B);

template <typename... B>
struct conjunction : true_type {};
template <typename A, typename... B>
struct conjunction<A, B...> : conditional_t<bool(A::value), conjunction<B...>, false_type> {};
template <typename... B>
struct disjunction : false_type {};
template <typename A, typename... B>
struct disjunction<A, B...> : conditional_t<bool(A::value), true_type, disjunction<B...>> {};
template <typename A>
struct negation : bool_constant<!bool(A::value)> {};
// The names under which Apple's headers have them, which sources use with `#pragma METAL internals : enable`.
template <typename... B>
using _conjunction = conjunction<B...>;
template <typename... B>
using _disjunction = disjunction<B...>;
template <typename A>
using _negation = negation<A>;

template <typename T>
T declval();
template <typename T>
using underlying_type_t = __underlying_type(T);

template <typename T>
struct make_unsigned;
template <typename T>
struct make_signed;
#define METALSIM_SIGNS(S, U)                                       \
    template <>                                                    \
    struct make_unsigned<S> : type_identity<U> {};                 \
    template <>                                                    \
    struct make_unsigned<U> : type_identity<U> {};                 \
    template <>                                                    \
    struct make_signed<S> : type_identity<S> {};                   \
    template <>                                                    \
    struct make_signed<U> : type_identity<S> {};                   \
    template <int N>                                               \
    struct make_unsigned<vec<S, N>> : type_identity<vec<U, N>> {}; \
    template <int N>                                               \
    struct make_signed<vec<U, N>> : type_identity<vec<S, N>> {};
METALSIM_SIGNS(char, uchar)
METALSIM_SIGNS(short, ushort)
METALSIM_SIGNS(int, uint)
METALSIM_SIGNS(long, ulong)
#undef METALSIM_SIGNS
template <typename T>
using make_unsigned_t = typename make_unsigned<T>::type;
template <typename T>
using make_signed_t = typename make_signed<T>::type;
template <typename T>
struct make_scalar : type_identity<typename metalsim::shape<T>::element> {};
template <typename T>
using make_scalar_t = typename make_scalar<T>::type;
template <typename T, int N>
struct make_vector : type_identity<vec<T, N>> {};
template <typename T, int N>
using make_vector_t = vec<T, N>;

// ---- numeric_limits ----

template <typename T>
struct numeric_limits {
    static constexpr constant bool is_specialized = false;
};
#define METALSIM_INTEGER_LIMITS(T, DIGITS, MIN, MAX)                                       \
    template <>                                                                            \
    struct numeric_limits<T> {                                                             \
        static constexpr constant bool is_specialized = true;                              \
        static constexpr constant bool is_integer = true;                                  \
        static constexpr constant bool is_exact = true;                                    \
        static constexpr constant bool is_signed = static_cast<T>(-1) < static_cast<T>(0); \
        static constexpr constant bool has_infinity = false;                               \
        static constexpr constant bool has_quiet_NaN = false;                              \
        static constexpr constant int digits = DIGITS;                                     \
        static constexpr constant int digits10 = DIGITS * 3 / 10;                          \
        static constexpr constant int radix = 2;                                           \
        static constexpr T min() { return MIN; }                                           \
        static constexpr T max() { return MAX; }                                           \
        static constexpr T lowest() { return MIN; }                                        \
        static constexpr T epsilon() { return 0; }                                         \
        static constexpr T infinity() { return 0; }                                        \
        static constexpr T quiet_NaN() { return 0; }                                       \
    };
METALSIM_INTEGER_LIMITS(bool, 1, false, true)
METALSIM_INTEGER_LIMITS(char, 7, CHAR_MIN, CHAR_MAX)
METALSIM_INTEGER_LIMITS(signed char, 7, CHAR_MIN, CHAR_MAX)
METALSIM_INTEGER_LIMITS(uchar, 8, 0, UCHAR_MAX)
METALSIM_INTEGER_LIMITS(short, 15, SHRT_MIN, SHRT_MAX)
METALSIM_INTEGER_LIMITS(ushort, 16, 0, USHRT_MAX)
METALSIM_INTEGER_LIMITS(int, 31, INT_MIN, INT_MAX)
METALSIM_INTEGER_LIMITS(uint, 32, 0, UINT_MAX)
METALSIM_INTEGER_LIMITS(long, 63, LONG_MIN, LONG_MAX)
METALSIM_INTEGER_LIMITS(ulong, 64, 0, ULONG_MAX)
#undef METALSIM_INTEGER_LIMITS

#define METALSIM_FLOAT_LIMITS(T, BITS, DIGITS, DIGITS10, MIN_EXP, MAX_EXP, MIN, MAX, EPSILON, INF, NANS, DENORM) \
    template <>                                                                                                  \
    struct numeric_limits<T> {                                                                                   \
        static constexpr constant bool is_specialized = true;                                                    \
        static constexpr constant bool is_integer = false;                                                       \
        static constexpr constant bool is_exact = false;                                                         \
        static constexpr constant bool is_signed = true;                                                         \
        static constexpr constant bool is_iec559 = true;                                                         \
        static constexpr constant bool has_infinity = true;                                                      \
        static constexpr constant bool has_quiet_NaN = true;                                                     \
        static constexpr constant int digits = DIGITS;                                                           \
        static constexpr constant int digits10 = DIGITS10;                                                       \
        static constexpr constant int radix = 2;                                                                 \
        static constexpr constant int min_exponent = MIN_EXP;                                                    \
        static constexpr constant int max_exponent = MAX_EXP;                                                    \
        static constexpr T min() { return bits(MIN); }                                                           \
        static constexpr T max() { return bits(MAX); }                                                           \
        static constexpr T lowest() { return -bits(MAX); }                                                       \
        static constexpr T epsilon() { return bits(EPSILON); }                                                   \
        static constexpr T round_error() { return T(0.5f); }                                                     \
        static constexpr T infinity() { return bits(INF); }                                                      \
        static constexpr T quiet_NaN() { return bits(NANS); }                                                    \
        static constexpr T signaling_NaN() { return bits(NANS); }                                                \
        static constexpr T denorm_min() { return bits(DENORM); }                                                 \
                                                                                                                 \
      private:                                                                                                   \
        static constexpr T bits(BITS b) { return __builtin_bit_cast(T, b); }                                     \
    };
METALSIM_FLOAT_LIMITS(half, ushort, 11, 3, -13, 16, 0x0400, 0x7bff, 0x1400, 0x7c00, 0x7e00, 0x0001)
METALSIM_FLOAT_LIMITS(bfloat, ushort, 8, 2, -125, 128, 0x0080, 0x7f7f, 0x3c00, 0x7f80, 0x7fc0, 0x0001)
METALSIM_FLOAT_LIMITS(float, uint, 24, 6, -125, 128, 0x00800000, 0x7f7fffff, 0x34000000, 0x7f800000, 0x7fc00000, 1)
#undef METALSIM_FLOAT_LIMITS

constexpr constant half half_infinity = numeric_limits<half>::infinity();

// metal_array.
template <typename T, size_t N>
struct array {
    T elements[N];
    constexpr size_t size() const { return N; }
    constexpr T& operator[](size_t i) { return elements[i]; }
    constexpr const T& operator[](size_t i) const { return elements[i]; }
};

}  // namespace metal
