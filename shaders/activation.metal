#include <metal_stdlib>

#include "elementary.h"
#include "params.h"

using namespace metal;

// Element-wise steps over `count` elements, four to a thread, all at once where that can be. Outputs may be inputs.
constant uint activation_kind [[function_constant(0)]];  // the enum Activation
constant bool element_vectors [[function_constant(1)]];  // all places are aligned to 16 bytes

struct Addition {
    template <typename T>
    static T of(T a, T b, float) {
        return a + b;
    }
};
struct Scaling {
    template <typename T>
    static T of(T a, T, float factor) {
        return a * factor;
    }
};
struct SoftCap {
    static float of(float a, float, float factor) { return factor * accurate_tanh(a / factor); }
    static float4 of(float4 a, float4, float factor) {
        return float4(of(a.x, 0.0f, factor), of(a.y, 0.0f, factor), of(a.z, 0.0f, factor), of(a.w, 0.0f, factor));
    }
};
struct Gating {
    template <typename T>
    static T of(T gate, T up, float) {
        return activate(activation_kind, gate) * up;
    }
};

// A step with one input binds it twice.
template <typename Op>
kernel void element_wise(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                         device float* out [[buffer(2)]], constant ElementParams& params [[buffer(3)]],
                         uint thread_index [[thread_position_in_grid]]) {
    const uint first = thread_index * 4;
    const float factor = params.factor;
    if (element_vectors && first + 4 <= params.count) {
        device const float4* a4 = (device const float4*)a;
        device const float4* b4 = (device const float4*)b;
        ((device float4*)out)[thread_index] = Op::of(a4[thread_index], b4[thread_index], factor);
        return;
    }
    for (uint i = first; i < min(first + 4, params.count); ++i) out[i] = Op::of(a[i], b[i], factor);
}

template [[host_name("add")]] kernel decltype(element_wise<Addition>) element_wise<Addition>;
template [[host_name("scale")]] kernel decltype(element_wise<Scaling>) element_wise<Scaling>;
template [[host_name("softcap")]] kernel decltype(element_wise<SoftCap>) element_wise<SoftCap>;
template [[host_name("gated_activation")]] kernel decltype(element_wise<Gating>) element_wise<Gating>;
