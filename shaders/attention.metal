#include <metal_stdlib>

#include "attention_few.h"
#include "attention_many.h"

using namespace metal;

#define METALLIC_FEW(count) \
    template [[host_name("attention_few_" #count)]] kernel decltype(attention_few<count>) attention_few<count>
METALLIC_FEW(1);
METALLIC_FEW(2);
METALLIC_FEW(4);
METALLIC_FEW(8);

// By the 8 x 8 matrices in a head, or in a simdgroup's part of it.
#define METALLIC_MANY(size) \
    template [[host_name("attention_many_" #size)]] kernel decltype(attention_many<size>) attention_many<size>
METALLIC_MANY(4);
METALLIC_MANY(8);
METALLIC_MANY(10);
METALLIC_MANY(12);
METALLIC_MANY(16);

// One simdgroup joins the segments of one query.
kernel void attention_merge(constant AttentionParams& params [[buffer(0)]],
                            device const AttentionMerge* merges [[buffer(1)]],
                            device const float* partials [[buffer(2)]], device const float* sinks [[buffer(3)]],
                            device float* out [[buffer(4)]], uint2 place [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]]) {
    device const AttentionMerge* merge = merges + place.x;
    const uint queries = merge->rows * params.heads;
    if (place.y >= queries) return;
    const uint segments = merge->segments;
    const ulong stride = ulong(queries) * (kv_head_size + 2);
    device const float* from = partials + (ulong(merge->partial) + place.y) * (kv_head_size + 2);
    float maximum = kNoScore;
    for (uint s = lane; s < segments; s += 32) maximum = max(maximum, from[s * stride + kv_head_size]);
    maximum = simd_max(maximum);
    float sum = 0.0f;
    for (uint s = lane; s < segments; s += 32) {
        sum += from[s * stride + kv_head_size + 1] * precise::exp(from[s * stride + kv_head_size] - maximum);
    }
    sum = simd_sum(sum);
    const uint head = place.y % params.heads;
    const float factor = attention_factor(maximum, sum, attention_has_sinks ? sinks[head] : 0.0f);
    device float* to = out + (ulong(merge->row) * params.heads + place.y) * kv_head_size;
    for (uint d = lane; d < kv_head_size; d += 32) {
        float x = 0.0f;
        for (uint s = 0; s < segments; ++s) {
            x += from[s * stride + d] * precise::exp(from[s * stride + kv_head_size] - maximum);
        }
        to[d] = x * factor;
    }
}
