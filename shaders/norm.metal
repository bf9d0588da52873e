#include <metal_stdlib>

#include "elementary.h"
#include "params.h"

using namespace metal;

// Root-mean-square norm of groups of elements: out = x / sqrt(mean(x^2) + epsilon) [* weight] [+ residual]. T is float,
// or float4 where every address and the group's size allow it. An operand that is not there is bound to `in`.
constant bool norm_has_weight [[function_constant(0)]];
constant bool norm_has_residual [[function_constant(1)]];

inline float sum_of_squares(float x) {
    return x * x;
}
inline float sum_of_squares(float4 x) {
    return dot(x, x);
}

// Every `step`-th element of one group, from `first`. Each thread reads an element before it writes the same one, so
// `out` may be `in` or the residual.
template <typename T>
void scale_group(device const T* in, device const T* weight, device const T* residual, device T* out, float factor,
                 uint count, uint first, uint step) {
    for (uint i = first; i < count; i += step) {
        T x = in[i] * factor;
        if (norm_has_weight) x = x * weight[i];
        if (norm_has_residual) x = x + residual[i];
        out[i] = x;
    }
}

// One simdgroup per group.
template <typename T>
kernel void norm_narrow(device const T* in [[buffer(0)]], device const T* weight [[buffer(1)]],
                        device const T* residual [[buffer(2)]], device T* out [[buffer(3)]],
                        constant NormParams& params [[buffer(4)]], uint place [[threadgroup_position_in_grid]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint group = place * simdgroups + simdgroup;
    if (group >= params.groups) return;
    const uint count = params.count;
    const ulong at = ulong(group) * count;
    float sum = 0.0f;
    for (uint i = lane; i < count; i += kSimdWidth) sum += sum_of_squares(in[at + i]);
    const float factor = precise::rsqrt(simd_sum(sum) / float(params.group) + params.epsilon);
    scale_group<T>(in + at, weight, residual + at, out + at, factor, count, lane, kSimdWidth);
}

// One threadgroup per group.
template <typename T>
kernel void norm_wide(device const T* in [[buffer(0)]], device const T* weight [[buffer(1)]],
                      device const T* residual [[buffer(2)]], device T* out [[buffer(3)]],
                      constant NormParams& params [[buffer(4)]], uint group [[threadgroup_position_in_grid]],
                      uint thread_index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]], uint simdgroups [[simdgroups_per_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
    threadgroup float sums[kSimdWidth];
    const uint count = params.count;
    const ulong at = ulong(group) * count;
    float sum = 0.0f;
    for (uint i = thread_index; i < count; i += threads) sum += sum_of_squares(in[at + i]);
    sum = simd_sum(sum);
    if (lane == 0) sums[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = simd_sum(lane < simdgroups ? sums[lane] : 0.0f);
    const float factor = precise::rsqrt(sum / float(params.group) + params.epsilon);
    scale_group<T>(in + at, weight, residual + at, out + at, factor, count, thread_index, threads);
}

template [[host_name("norm_narrow")]] kernel decltype(norm_narrow<float>) norm_narrow<float>;
template [[host_name("norm_narrow_4")]] kernel decltype(norm_narrow<float4>) norm_narrow<float4>;
template [[host_name("norm_wide")]] kernel decltype(norm_wide<float>) norm_wide<float>;
template [[host_name("norm_wide_4")]] kernel decltype(norm_wide<float4>) norm_wide<float4>;
