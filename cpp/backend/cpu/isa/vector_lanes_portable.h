#pragma once

#include <cstddef>
#include <cstdint>

// Sixteen float lanes in plain C++. The other vector_lanes_*.h define the same names with the same bits. Everything
// that an instruction set's file compiles has internal linkage, so that the linker cannot take one file's code for
// another's. Functions over lanes are inlined into their callers, except here, where that would only make much code.
#define METALLIC_LANES_INLINE inline

namespace metallic::cpu {
namespace {

struct Lanes {
    float v[16];
};
struct Mask {
    bool v[16];
};

inline constexpr int kFewAccumulators = 4;  // register tiles: accumulators of a few queries' values,
inline constexpr int kFewKeys = 1;          // keys dotted together,
inline constexpr int kUnit = 1;             // vectors of queries together,
inline constexpr int kManyKeys = 4;         // keys of their scores,
inline constexpr int kManyDims = 4;         // and dimensions of their values

inline uint32_t bits_of(float x) {
    return __builtin_bit_cast(uint32_t, x);
}
inline float float_of(uint32_t x) {
    return __builtin_bit_cast(float, x);
}

// a * b + c rounded once. Without the instruction: the product is exact in double; the sum is rounded to odd there
// (Boldo and Melquiond, 2008), so that the second rounding, to float, sees which side the exact sum is on.
inline float fused(float a, float b, float c) {
#if defined(__FP_FAST_FMAF)
    return __builtin_fmaf(a, b, c);
#else
    const double product = static_cast<double>(a) * b;
    const double sum = product + c;
    const double back = sum - product;
    const double error = (product - (sum - back)) + (c - back);
    uint64_t bits = __builtin_bit_cast(uint64_t, sum);
    const bool inexact = error < 0 || error > 0;
    const uint64_t even = ~bits & 1;
    const uint64_t step = (error < 0) == (sum < 0) ? even : ~even + 1;
    bits += inexact ? step : 0;
    return static_cast<float>(__builtin_bit_cast(double, bits));
#endif
}

template <class F>
[[gnu::always_inline]] inline Lanes each_lane(F f) {
    Lanes r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
}
template <class F>
[[gnu::always_inline]] inline Mask each_mask(F f) {
    Mask r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(i);
    return r;
}

inline Lanes set(float x) {
    return each_lane([&](int) { return x; });
}
inline Lanes load(const float* p) {
    Lanes r;
    __builtin_memcpy(r.v, p, sizeof r.v);
    return r;
}
inline Lanes load(const float* p, size_t n) {
    Lanes r = {};
    __builtin_memcpy(r.v, p, n * sizeof(float));
    return r;
}
inline void store(float* p, Lanes x) {
    __builtin_memcpy(p, x.v, sizeof x.v);
}
inline void store(float* p, Lanes x, size_t n) {
    __builtin_memcpy(p, x.v, n * sizeof(float));
}
inline float first(Lanes x) {
    return x.v[0];
}

inline Lanes operator+(Lanes a, Lanes b) {
    return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline Lanes operator-(Lanes a, Lanes b) {
    return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline Lanes operator*(Lanes a, Lanes b) {
    return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline Lanes operator/(Lanes a, Lanes b) {
    return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
inline Lanes fused(Lanes a, Lanes b, Lanes c) {
    return each_lane([&](int i) { return fused(a.v[i], b.v[i], c.v[i]); });
}
// Where either is a NaN, the second.
inline Lanes max(Lanes a, Lanes b) {
    return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes min(Lanes a, Lanes b) {
    return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
inline Lanes absolute(Lanes x) {
    return each_lane([&](int i) { return float_of(bits_of(x.v[i]) & 0x7fffffffu); });
}
inline Lanes with_sign(Lanes magnitude, Lanes sign) {
    return each_lane(
        [&](int i) { return float_of((bits_of(magnitude.v[i]) & 0x7fffffffu) | (bits_of(sign.v[i]) & 0x80000000u)); });
}
// x times two to the integer in the low bits of `magic`, where the result is a normal number.
inline Lanes scale_exponent(Lanes x, Lanes magic) {
    return each_lane([&](int i) { return float_of(bits_of(x.v[i]) + (bits_of(magic.v[i]) << 23)); });
}

inline Mask less(Lanes a, Lanes b) {
    return each_mask([&](int i) { return a.v[i] < b.v[i]; });
}
inline Mask not_less(Lanes a, Lanes b) {
    return each_mask([&](int i) { return !(a.v[i] < b.v[i]); });
}
inline Mask equal(Lanes a, Lanes b) {
    return each_mask([&](int i) { return a.v[i] == b.v[i]; });
}
inline Mask operator&(Mask a, Mask b) {
    return each_mask([&](int i) { return a.v[i] && b.v[i]; });
}
inline Mask mask_of(uint32_t bits) {
    return each_mask([&](int i) { return (bits >> i & 1) != 0; });
}
inline Lanes select(Mask m, Lanes yes, Lanes no) {
    return each_lane([&](int i) { return m.v[i] ? yes.v[i] : no.v[i]; });
}

inline float sum(Lanes x) {
    for (int step = 8; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) x.v[i] += x.v[i + step];
    }
    return x.v[0];
}
inline float maximum(Lanes x) {
    for (int step = 8; step > 0; step /= 2) {
        for (int i = 0; i < step; ++i) x.v[i] = x.v[i] > x.v[i + step] ? x.v[i] : x.v[i + step];
    }
    return x.v[0];
}
// sum() in two parts: the first level of the tree of one vector, then the rest of it for sixteen such halves.
inline void store_half_sum(float* p, Lanes x) {
    for (int i = 0; i < 8; ++i) p[i] = x.v[i] + x.v[i + 8];
}
inline Lanes sum_halves(const float* p) {
    return each_lane([&](int i) {
        const float* h = p + 8 * i;
        return ((h[0] + h[4]) + (h[2] + h[6])) + ((h[1] + h[5]) + (h[3] + h[7]));
    });
}

inline Lanes from_f16(const void* p) {
    uint16_t h[16];
    __builtin_memcpy(h, p, sizeof h);
    return each_lane([&](int i) {
        const uint32_t sign = (h[i] & 0x8000u) << 16;
        const uint32_t magnitude = h[i] & 0x7fffu;
        const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
        const uint32_t normal = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
        return float_of(sign | (magnitude >= 0x0400u ? normal : bits_of(subnormal)));
    });
}
inline void to_f16(void* p, Lanes x) {
    uint16_t h[16];
    for (int i = 0; i < 16; ++i) {
        const uint32_t bits = bits_of(x.v[i]);
        const uint32_t magnitude = bits & 0x7fffffffu;
        const uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
        // Adding 0.5 leaves the subnormal half's bits, correctly rounded, at the bottom of the mantissa.
        const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
        uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
        if (magnitude >= 0x477ff000u) half = 0x7c00u;
        if (magnitude > 0x7f800000u) half = 0x7e00u | (magnitude >> 13 & 0x1ffu);
        h[i] = static_cast<uint16_t>((bits >> 16 & 0x8000u) | half);
    }
    __builtin_memcpy(p, h, sizeof h);
}
inline Lanes from_bf16(const void* p) {
    uint16_t h[16];
    __builtin_memcpy(h, p, sizeof h);
    return each_lane([&](int i) { return float_of(static_cast<uint32_t>(h[i]) << 16); });
}
inline void to_bf16(void* p, Lanes x) {
    uint16_t h[16];
    for (int i = 0; i < 16; ++i) {
        const uint32_t bits = bits_of(x.v[i]);
        const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        h[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
    }
    __builtin_memcpy(p, h, sizeof h);
}
inline Lanes from_i8(const void* p) {
    int8_t q[16];
    __builtin_memcpy(q, p, sizeof q);
    return each_lane([&](int i) { return static_cast<float>(q[i]); });
}
// Of integers in [-128, 127].
inline void to_i8(void* p, Lanes x) {
    int8_t q[16];
    for (int i = 0; i < 16; ++i) q[i] = static_cast<int8_t>(x.v[i]);
    __builtin_memcpy(p, q, sizeof q);
}
// Sixteen 4-bit quants less 8: the low halves of sixteen bytes, or the high ones.
inline Lanes from_low_nibbles(const void* p) {
    uint8_t q[16];
    __builtin_memcpy(q, p, sizeof q);
    return each_lane([&](int i) { return static_cast<float>((q[i] & 15) - 8); });
}
inline Lanes from_high_nibbles(const void* p) {
    uint8_t q[16];
    __builtin_memcpy(q, p, sizeof q);
    return each_lane([&](int i) { return static_cast<float>((q[i] >> 4) - 8); });
}
// The reverse, of integers in [-8, 7].
inline void to_nibbles(void* p, Lanes low, Lanes high) {
    uint8_t q[16];
    for (int i = 0; i < 16; ++i) {
        q[i] = static_cast<uint8_t>((static_cast<int>(low.v[i]) + 8) | (static_cast<int>(high.v[i]) + 8) << 4);
    }
    __builtin_memcpy(p, q, sizeof q);
}
// One F16 in every lane.
inline Lanes set_f16(const void* p) {
    uint16_t h[16] = {};
    __builtin_memcpy(h, p, sizeof h[0]);
    return set(from_f16(h).v[0]);
}

// Eight values, each in lanes 2i and 2i+1.
inline Lanes load_pairs(const float* p) {
    return each_lane([&](int i) { return p[i / 2]; });
}
inline Lanes swap_pairs(Lanes x) {
    return each_lane([&](int i) { return x.v[i ^ 1]; });
}
inline Lanes negate_even(Lanes x) {
    return each_lane([&](int i) { return float_of(bits_of(x.v[i]) ^ (i % 2 == 0 ? 0x80000000u : 0u)); });
}

// Lane i: x[i] + x[i + kStep] where the bit kStep of i is 0, else x[i - kStep] - x[i].
template <int kStep>
inline Lanes butterfly(Lanes x) {
    return each_lane([&](int i) { return x.v[i ^ kStep] + ((i & kStep) != 0 ? -x.v[i] : x.v[i]); });
}

// dst[c * dst_stride + r] = src[r * src_stride + c], for 16 rows and columns.
inline void transpose(const float* src, size_t src_stride, float* dst, size_t dst_stride) {
    for (int c = 0; c < 16; ++c) {
        for (int r = 0; r < 16; ++r) dst[c * dst_stride + r] = src[r * src_stride + c];
    }
}

}  // namespace
}  // namespace metallic::cpu
