#include <metal_stdlib>

#include "elementary.h"
#include "params.h"

using namespace metal;

// ---- routing: one simdgroup, which is a whole threadgroup, per row ----

enum RouterGate : uint { kGateSoftmax = 0, kGateSoftmaxOfChosen = 1, kGateSigmoid = 2 };  // as in program.h

constant uint route_gate [[function_constant(0)]];
constant bool route_normalise [[function_constant(1)]];

// The bounds keep all differences finite; a NaN is the worst score.
static constant constexpr float kScoreBound = 1e30f;
static constant constexpr float kTaken = -3e38f;

inline float bounded_score(float logit) {
    if (is_nan_bits(as_type<uint>(logit))) return -kScoreBound;
    return clamp(logit, -kScoreBound, kScoreBound);
}

// e^x for x at most 0.
inline float exp_of_difference(float x) {
    return precise::exp(max(x, -100.0f));
}

// 0 where the exponential of -x would overflow.
inline float sigmoid(float x) {
    return x < -88.0f ? 0.0f : sigmoid_times(1.0f, x);
}

// The best of this lane's scores, every 32nd from `lane`; of equals the first.
inline uint best_of_lane(threadgroup const float* scores, uint experts, uint lane, thread float& best) {
    uint id = ~0u;
    best = kTaken;
    for (uint e = lane; e < experts; e += kSimdWidth) {
        if (scores[e] > best) {
            best = scores[e];
            id = e;
        }
    }
    return id;
}

// Turns the chosen scores into weights. A lane handles slots lane, lane + 32, ...
inline void weigh(threadgroup float* chosen, device float* weights, uint top_k, uint lane, float best, float sum_of_all,
                  float scale) {
    float sum = 0.0f;
    for (uint slot = lane; slot < top_k; slot += kSimdWidth) {
        const float score = chosen[slot];
        const float weight = route_gate == kGateSigmoid ? sigmoid(score) : exp_of_difference(score - best);
        chosen[slot] = weight;
        sum += weight;
    }
    sum = simd_sum(sum);
    float factor = scale;
    if (route_gate == kGateSoftmax) factor /= sum_of_all;
    if (route_gate == kGateSoftmaxOfChosen) factor /= sum;
    if (route_normalise) {
        // The weights' sum before the scale: 1 for a softmax of the chosen.
        if (route_gate == kGateSoftmax) factor = scale / sum;
        if (route_gate == kGateSigmoid && sum > 0.0f) factor = scale / sum;
    }
    for (uint slot = lane; slot < top_k; slot += kSimdWidth) weights[slot] = chosen[slot] * factor;
}

// Threadgroup memory: floats [experts + top_k].
kernel void route(device const float* logits [[buffer(0)]], device int* ids [[buffer(1)]],
                  device float* weights [[buffer(2)]], constant RouteParams& params [[buffer(3)]],
                  threadgroup float* scores [[threadgroup(0)]], uint row [[threadgroup_position_in_grid]],
                  uint lane [[thread_index_in_simdgroup]]) {
    const uint experts = params.experts, top_k = params.top_k;
    threadgroup float* chosen = scores + experts;
    device const float* from = logits + ulong(row) * experts;
    float most = kTaken;
    for (uint e = lane; e < experts; e += kSimdWidth) {
        scores[e] = bounded_score(from[e]);
        most = max(most, scores[e]);
    }
    most = simd_max(most);
    float sum = 0.0f;
    if (route_gate == kGateSoftmax) {
        for (uint e = lane; e < experts; e += kSimdWidth) sum += exp_of_difference(scores[e] - most);
        sum = simd_sum(sum);
    }
    device int* row_ids = ids + ulong(row) * top_k;
    float best = kTaken;
    uint mine = best_of_lane(scores, experts, lane, best);
    for (uint slot = 0; slot < top_k; ++slot) {
        const float winner = simd_max(best);
        const uint id = simd_min(best == winner ? mine : ~0u);
        if (id == mine) {  // only the winner's lane looks for its next best
            row_ids[slot] = int(id);
            chosen[slot] = winner;
            scores[id] = kTaken;
            mine = best_of_lane(scores, experts, lane, best);
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    weigh(chosen, weights + ulong(row) * top_k, top_k, lane, most, sum, params.scale);
}

// ---- the weighted sum of the slots ----

constant bool combine_has_residual [[function_constant(2)]];

// T is float or float4; the grid is [width in T, rows].
template <typename T>
kernel void combine(device const T* in [[buffer(0)]], device const float* weights [[buffer(1)]],
                    device const T* residual [[buffer(2)]], device T* out [[buffer(3)]],
                    constant CombineParams& params [[buffer(4)]], uint2 place [[thread_position_in_grid]]) {
    const uint width = params.width;
    if (place.x >= width || place.y >= params.rows) return;
    const ulong at = ulong(place.y) * width + place.x;
    T sum = T(0.0f);
    if (combine_has_residual) sum = residual[at];
    device const T* slots = in + ulong(place.y) * params.top_k * width + place.x;
    device const float* row_weights = weights + ulong(place.y) * params.top_k;
    for (uint slot = 0; slot < params.top_k; ++slot) {
        sum = fma(T(row_weights[slot]), slots[ulong(slot) * width], sum);
    }
    out[at] = sum;
}

template [[host_name("combine")]] kernel decltype(combine<float>) combine<float>;
template [[host_name("combine_4")]] kernel decltype(combine<float4>) combine<float4>;
