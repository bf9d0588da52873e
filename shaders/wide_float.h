#pragma once

#include <metal_stdlib>

// Arithmetic with the 53 bits of a double, which MSL does not have, in integers: every operation rounds to nearest even
// as IEEE 754 says, so that a logit edited here has the bits that it would have on the host. The exponent has no
// bounds: no infinities, NaNs or subnormal doubles; those of 32 bits are rounded to and from.
struct WideFloat {  // (-1)^negative mantissa 2^exponent; the mantissa is 0, or of exactly 53 bits
    bool negative;
    int exponent;
    ulong mantissa;
};

inline WideFloat wide(bool negative, int exponent, ulong mantissa) {
    WideFloat x;
    x.negative = negative;
    x.exponent = exponent;
    x.mantissa = mantissa;
    return x;
}

inline int leading_zeros(ulong x) {
    const uint high = uint(x >> 32);
    return high != 0 ? int(metal::clz(high)) : 32 + int(metal::clz(uint(x)));
}

// Shifts right; bit 0 says that anything was lost.
inline ulong shift_jamming(ulong x, int shift) {
    if (shift == 0) return x;
    if (shift > 63) return x != 0 ? 1ul : 0ul;
    return x >> shift | ((x << (64 - shift)) != 0 ? 1ul : 0ul);
}

// Rounds a mantissa of 64 bits, the lowest of them sticky.
inline WideFloat rounded(bool negative, int exponent, ulong mantissa) {
    if (mantissa == 0) return wide(negative, 0, 0);
    const int zeros = leading_zeros(mantissa);
    mantissa <<= zeros;  // a sticky bit that moves up stays below the 11 bits that are rounded off, or was exact
    exponent += 11 - zeros;
    const ulong rest = mantissa & 0x7fful;
    mantissa >>= 11;
    if (rest > 0x400ul || (rest == 0x400ul && (mantissa & 1ul) != 0)) ++mantissa;
    if (mantissa >> 53 != 0) {
        mantissa >>= 1;
        ++exponent;
    }
    return wide(negative, exponent, mantissa);
}

// The bits of a finite float.
inline WideFloat wide_of_float(uint bits) {
    const uint field = bits >> 23 & 0xffu;
    const ulong mantissa = (bits & 0x7fffffu) | (field != 0 ? 0x800000u : 0u);
    return rounded(bits >> 31 != 0, int(field != 0 ? field : 1u) - 150, mantissa);
}

// The bits of a finite double.
inline WideFloat wide_of_double(ulong bits) {
    const uint field = uint(bits >> 52) & 0x7ffu;
    const ulong mantissa = (bits & 0xffffffffffffful) | (field != 0 ? 0x10000000000000ul : 0ul);
    return rounded(bits >> 63 != 0, int(field != 0 ? field : 1u) - 1075, mantissa);
}

// The bits of the nearest float, held to the range of finite floats.
inline uint float_of_wide(WideFloat x) {
    const uint sign = x.negative ? 0x80000000u : 0u;
    if (x.mantissa == 0) return sign;
    if (x.exponent + 52 > 127) return sign | 0x7f7fffffu;
    const int lowest = metal::max(x.exponent + 29, -149);  // of the float's 24 bits; subnormals have fewer
    const int shift = lowest - x.exponent;
    if (shift > 54) return sign;
    const ulong half_unit = 1ul << (shift - 1);
    const ulong rest = x.mantissa & ((half_unit << 1) - 1);
    ulong mantissa = x.mantissa >> shift;
    if (rest > half_unit || (rest == half_unit && (mantissa & 1ul) != 0)) ++mantissa;
    const uint bits = (uint(lowest + 149) << 23) + uint(mantissa);
    return sign | metal::min(bits, 0x7f7fffffu);
}

inline WideFloat wide_negative(WideFloat a) {
    return wide(!a.negative, a.exponent, a.mantissa);
}

inline WideFloat wide_sum(WideFloat a, WideFloat b) {
    if (b.mantissa == 0) return a.mantissa == 0 ? wide(a.negative && b.negative, 0, 0) : a;
    if (a.mantissa == 0) return b;
    const bool swap = b.exponent > a.exponent || (b.exponent == a.exponent && b.mantissa > a.mantissa);
    const WideFloat large = swap ? b : a, small = swap ? a : b;
    const ulong x = large.mantissa << 10;  // room for the carry above, and for rounding below
    const ulong y = shift_jamming(small.mantissa << 10, large.exponent - small.exponent);
    const ulong sum = large.negative == small.negative ? x + y : x - y;
    return rounded(sum != 0 && large.negative, large.exponent - 10, sum);
}

inline WideFloat wide_product(WideFloat a, WideFloat b) {
    const bool negative = a.negative != b.negative;
    if (a.mantissa == 0 || b.mantissa == 0) return wide(negative, 0, 0);
    const ulong al = a.mantissa & 0xfffffffful, ah = a.mantissa >> 32;
    const ulong bl = b.mantissa & 0xfffffffful, bh = b.mantissa >> 32;
    const ulong low = al * bl;
    const ulong middle = ah * bl + (low >> 32);
    const ulong middle2 = al * bh + (middle & 0xfffffffful);
    const ulong high = ah * bh + (middle >> 32) + (middle2 >> 32);  // of 2^64, less than 2^42
    const ulong rest = middle2 << 32 | (low & 0xfffffffful);
    const ulong mantissa = high << 22 | rest >> 42 | ((rest << 22) != 0 ? 1ul : 0ul);
    return rounded(negative, a.exponent + b.exponent + 42, mantissa);
}

// b is not 0. Long division, bit by bit.
inline WideFloat wide_quotient(WideFloat a, WideFloat b) {
    const bool negative = a.negative != b.negative;
    if (a.mantissa == 0) return wide(negative, 0, 0);
    ulong quotient = 0, rest = a.mantissa;
    for (int i = 0; i < 57; ++i) {
        quotient <<= 1;
        if (rest >= b.mantissa) {
            rest -= b.mantissa;
            quotient |= 1ul;
        }
        rest <<= 1;
    }
    // floor(a 2^56 / b), then the sticky bit.
    return rounded(negative, a.exponent - b.exponent - 57, quotient << 1 | (rest != 0 ? 1ul : 0ul));
}
