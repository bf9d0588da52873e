#pragma once

#include <metal_stdlib>

// Elementary functions that kernels share. They do not rely on the handling of infinities or NaNs, so they hold under
// every math mode of the compiler; metal::precise is named because the fast variants lose accuracy and, in tanh, give
// NaN for large inputs. A NaN goes in and comes out where the math mode keeps NaNs.

static constant constexpr uint kSimdWidth = 32;

// Of the bits: "x != x" is what a compiler may fold away.
inline bool is_nan_bits(uint bits) {
    return (bits & 0x7fffffffu) > 0x7f800000u;
}

// e^x, not infinite: held to about 1.6e38 above the range.
inline float bounded_exp(float x) {
    return metal::precise::exp(x > 88.0f ? 88.0f : x);
}

// x / (1 + e^-logit)
inline float sigmoid_times(float x, float logit) {
    return x / (1.0f + bounded_exp(-logit));
}

// Within 2 ulp; |x| above 10 is 1. The polynomial is a minimax fit of (tanh(x) - x) / x^3 in x^2 on [0, 0.6], made for
// this project; above, tanh(x) = 1 - 2 / (e^2x + 1).
inline float accurate_tanh(float x) {
    const float magnitude = metal::fabs(x) > 10.0f ? 10.0f : metal::fabs(x);
    const float square = magnitude * magnitude;
    float p = -0x1.82585ap-8f;
    p = metal::fma(p, square, 0x1.54b8a0p-6f);
    p = metal::fma(p, square, -0x1.b898dep-5f);
    p = metal::fma(p, square, 0x1.1109aep-3f);
    p = metal::fma(p, square, -0x1.55553ep-2f);
    const float small = metal::fma(magnitude * square, p, magnitude);
    const float large = 1.0f - 2.0f / (metal::precise::exp(magnitude + magnitude) + 1.0f);
    return metal::copysign(magnitude < 0.6f ? small : large, x);
}

// P(X < x) of the normal distribution, (1 + erf(x / sqrt 2)) / 2: MSL has no erf. Relative error below 1e-6 where the
// result is a normal number. Below 0 it is e^(-x^2/2) T(1 / (1 + |x|/4)), where the polynomial T is a minimax fit of
// erfcx(|x| / sqrt 2) / 2, made for this project; the exponent's rounding is corrected to first order.
inline float normal_cdf(float x) {
    const float magnitude = metal::fabs(x) > 20.0f ? 20.0f : metal::fabs(x);
    const float square = magnitude * magnitude;
    const float rest = metal::fma(magnitude, magnitude, -square);
    const float e = metal::precise::exp(-0.5f * square);
    const float corrected = metal::fma(e, -0.5f * rest, e);
    const float t = 1.0f / metal::fma(magnitude, 0.25f, 1.0f);
    float p = 0x1.16174ep-5f;
    p = metal::fma(p, t, -0x1.91c540p-3f);
    p = metal::fma(p, t, 0x1.947b12p-2f);
    p = metal::fma(p, t, -0x1.5578bap-2f);
    p = metal::fma(p, t, 0x1.37cb38p-2f);
    p = metal::fma(p, t, -0x1.4df766p-6f);
    p = metal::fma(p, t, 0x1.f1f118p-4f);
    p = metal::fma(p, t, 0x1.846244p-4f);
    p = metal::fma(p, t, 0x1.9a89b8p-4f);
    p = metal::fma(p, t, -0x1.6a6310p-16f);
    const float tail = corrected * p;
    return x < 0.0f ? tail : 1.0f - tail;
}

// `kind` is the enum Activation of program.h: silu, gelu, gelu_tanh, relu.
inline float activate(uint kind, float x) {
    if (kind == 0) return sigmoid_times(x, x);
    if (kind == 1) return x * normal_cdf(x);
    // 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
    if (kind == 2) return sigmoid_times(x, x * metal::fma(x * x, 0.07135481627f, 1.5957691216f));
    return x < 0.0f ? 0.0f : x;
}

inline float4 activate(uint kind, float4 x) {
    return float4(activate(kind, x.x), activate(kind, x.y), activate(kind, x.z), activate(kind, x.w));
}
