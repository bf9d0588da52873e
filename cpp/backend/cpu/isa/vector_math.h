#pragma once

#include <cstddef>
#include <cstdint>

// Elementary functions on sixteen lanes, the same operations on every instruction set. Included after one of
// vector_lanes_*.h. The polynomials are minimax fits made for this file.
namespace metallic::cpu {
namespace {

inline constexpr float kInfinity = __builtin_inff();

// The polynomial with the given coefficients, constant first, by Horner's rule.
template <size_t N>
METALLIC_LANES_INLINE Lanes polynomial(const float (&coefficients)[N], Lanes x) {
    Lanes y = set(coefficients[N - 1]);
    for (size_t i = N - 1; i-- > 0;) y = fused(y, x, set(coefficients[i]));
    return y;
}

// e^x within 1 ulp for x at most 0 (or a little above); 0 where the result would be subnormal.
METALLIC_LANES_INLINE Lanes exp_of_negative(Lanes x) {
    constexpr float kQ[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239e2p-7f, 0x1.6a2434p-10f};
    const Lanes magic = set(0x1.8p23f);  // leaves the rounded integer in the low bits
    const Lanes shifted = fused(x, set(0x1.715476p+0f), magic);
    const Lanes n = shifted - magic;
    Lanes r = fused(n, set(-0x1.62e430p-1f), x);  // ln 2 in two parts
    r = fused(n, set(0x1.05c610p-29f), r);
    const Lanes y = fused(r * r, polynomial(kQ, r), r) + set(1.0f);
    return select(less(x, set(-87.33654f)), set(0.0f), scale_exponent(y, shifted));
}

// e^x within 1 ulp for any x: infinity above the range, 0 where the result would be subnormal.
METALLIC_LANES_INLINE Lanes exp_of(Lanes x) {
    return select(less(set(88.72283f), x), set(kInfinity), exp_of_negative(x));
}
inline float exp_of_negative(float x) {
    return first(exp_of_negative(set(x)));
}

// Within 2 ulp.
METALLIC_LANES_INLINE Lanes tanh_of(Lanes x) {
    constexpr float kP[] = {-0x1.55553ep-2f, 0x1.1109aep-3f, -0x1.b898dep-5f, 0x1.54b8a0p-6f, -0x1.82585ap-8f};
    const Lanes magnitude = min(set(10.0f), absolute(x));
    const Lanes square = magnitude * magnitude;
    const Lanes small = fused(magnitude * square, polynomial(kP, square), magnitude);
    const Lanes e = exp_of_negative(magnitude + magnitude);
    const Lanes large = set(1.0f) - set(2.0f) / (e + set(1.0f));
    return with_sign(select(less(magnitude, set(0.6f)), small, large), x);
}

// The normal distribution's P(X < x), relative error below 1e-6 wherever it is a normal number: below 0 it is
// e^(-x^2/2) T(1 / (1 + |x|/4)), where T fits erfcx(|x| / sqrt 2) / 2.
METALLIC_LANES_INLINE Lanes normal_cdf(Lanes x) {
    constexpr float kT[] = {-0x1.6a6310p-16f, 0x1.9a89b8p-4f,  0x1.846244p-4f, 0x1.f1f118p-4f,  -0x1.4df766p-6f,
                            0x1.37cb38p-2f,   -0x1.5578bap-2f, 0x1.947b12p-2f, -0x1.91c540p-3f, 0x1.16174ep-5f};
    const Lanes magnitude = min(set(20.0f), absolute(x));
    const Lanes square = magnitude * magnitude;
    const Lanes rest = fused(magnitude, magnitude, set(0.0f) - square);
    const Lanes e = exp_of_negative(set(-0.5f) * square);
    const Lanes corrected = fused(e, set(-0.5f) * rest, e);
    const Lanes t = set(1.0f) / fused(magnitude, set(0.25f), set(1.0f));
    const Lanes tail = corrected * polynomial(kT, t);
    return select(less(x, set(0.0f)), tail, set(1.0f) - tail);
}

METALLIC_LANES_INLINE Lanes sigmoid_times(Lanes x, Lanes logit) {
    return x / (set(1.0f) + exp_of(set(0.0f) - logit));
}

// The activations of program.h, in its enum's order.
struct Silu {
    static Lanes of(Lanes x) { return sigmoid_times(x, x); }
};
struct Gelu {
    static Lanes of(Lanes x) { return x * normal_cdf(x); }
};
struct GeluTanh {  // 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
    static Lanes of(Lanes x) {
        const Lanes slope = fused(x * x, set(0.07135481627f), set(1.5957691216f));
        return sigmoid_times(x, x * slope);
    }
};
struct Relu {
    static Lanes of(Lanes x) { return max(set(0.0f), x); }
};

}  // namespace
}  // namespace metallic::cpu
