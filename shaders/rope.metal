#include <metal_stdlib>

#include "kv.h"
#include "rotation.h"

using namespace metal;

constant bool kv_norms_queries [[function_constant(4)]];
constant bool kv_norms_keys [[function_constant(5)]];

// How one head of one token changes: its norm, then its rotation. One simdgroup has the head.
struct HeadChange {
    bool norms;
    float factor;                // 1 / root mean square
    device const float* weight;  // of the norm
    device const uint2* steps;   // of the rotation
    uint position;
    float magnitude;
};

// A head is pairs that are turned, then single elements. A lane writes what it has read, so heads may change in place.
inline uint head_slots() {
    return kv_head_size - rope_dims / 2;
}
inline bool head_slot_turns(uint slot) {
    return slot < rope_dims / 2;
}
inline uint2 head_slot(uint slot) {  // of a single element, twice the same
    return head_slot_turns(slot) ? rotation_pair(slot) : uint2(slot + rope_dims / 2);
}

// The elements of a slot, changed.
inline float2 head_changed(device const float* x, uint slot, thread const HeadChange& change) {
    const uint2 at = head_slot(slot);
    float2 two = float2(x[at.x], x[at.y]);
    if (change.norms) two = two * change.factor * float2(change.weight[at.x], change.weight[at.y]);
    if (!head_slot_turns(slot)) return two;
    return rotate(two, rotation_of(change.position, change.steps[slot]) * change.magnitude);
}

inline void head_norm(device const float* x, device const float* weight, float epsilon, uint lane,
                      thread HeadChange& change) {
    float sum = 0.0f;
    for (uint slot = lane; slot < head_slots(); slot += 32) {
        const uint2 at = head_slot(slot);
        sum += x[at.x] * x[at.x];
        if (head_slot_turns(slot)) sum += x[at.y] * x[at.y];
    }
    change.norms = true;
    change.factor = precise::rsqrt(simd_sum(sum) / float(kv_head_size) + epsilon);
    change.weight = weight;
}

inline void head_rotation(device const uint2* steps, bool extended, constant float* magnitudes, uint position,
                          thread HeadChange& change) {
    change.norms = false;
    change.steps = steps + (extended ? rope_dims / 2 : 0);
    change.magnitude = magnitudes[extended ? 1 : 0];
    change.position = position;
}

inline void head_rewrite(device const float* x, device float* out, uint lane, thread const HeadChange& change) {
    for (uint slot = lane; slot < head_slots(); slot += 32) {
        const uint2 at = head_slot(slot);
        const float2 two = head_changed(x, slot, change);
        out[at.x] = two.x;
        if (head_slot_turns(slot)) out[at.y] = two.y;
    }
}

inline void head_store(device const float* x, device uchar* row, uint lane, thread const HeadChange& change) {
    if (!kv_is_block(kv_key_type)) {
        for (uint slot = lane; slot < head_slots(); slot += 32) {
            const uint2 at = head_slot(slot);
            const float2 two = head_changed(x, slot, change);
            kv_store(kv_key_type, row, at.x, two.x);
            if (head_slot_turns(slot)) kv_store(kv_key_type, row, at.y, two.y);
        }
        return;
    }
    // Blocks go by elements, and each lane computes the pair of its own.
    for (uint i = lane; i - lane < kv_head_size; i += kKvBlock) {
        float element = 0.0f;
        if (i < kv_head_size) {
            const uint slot = i >= rope_dims ? i - rope_dims / 2 : rope_neox ? i % (rope_dims / 2) : i / 2;
            const float2 two = head_changed(x, slot, change);
            element = head_slot(slot).x == i ? two.x : two.y;
        }
        kv_store_block(kv_key_type, row, i, element, lane);
    }
}

inline void head_store_plain(device const float* x, device uchar* row, uint lane) {
    if (!kv_is_block(kv_value_type)) {
        for (uint i = lane; i < kv_head_size; i += 32) kv_store(kv_value_type, row, i, x[i]);
        return;
    }
    for (uint i = lane; i - lane < kv_head_size; i += kKvBlock) {
        kv_store_block(kv_value_type, row, i, i < kv_head_size ? x[i] : 0.0f, lane);
    }
}

// One simdgroup per head of each token: its queries, then its keys, then its values.
kernel void kv_write(constant KvWriteParams& params [[buffer(0)]], device const RowParams* rows [[buffer(1)]],
                     device const RunParams* runs [[buffer(2)]], device const TableParams* tables [[buffer(3)]],
                     device const Page* pages [[buffer(4)]], device const uint2* steps [[buffer(5)]],
                     device const float* q_norm [[buffer(6)]], device const float* k_norm [[buffer(7)]],
                     device const float* q [[buffer(8)]], device float* q_out [[buffer(9)]],
                     device const float* k [[buffer(10)]], device const float* v [[buffer(11)]],
                     uint place [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint item = place * simdgroups + simdgroup;
    const uint heads = params.q_heads + 2 * params.kv_heads;
    const uint row = item / heads;
    if (row >= params.rows) return;
    const uint run = rows[row].run, position = rows[row].position;
    HeadChange change;
    head_rotation(steps, runs[run].rope_extended != 0, params.magnitudes, position, change);

    uint head = item % heads;
    if (head < params.q_heads) {
        const ulong at = (ulong(row) * params.q_heads + head) * kv_head_size;
        if (kv_norms_queries) head_norm(q + at, q_norm, params.epsilon, lane, change);
        head_rewrite(q + at, q_out + at, lane, change);
        return;
    }
    head -= params.q_heads;
    const bool is_value = head >= params.kv_heads;
    if (is_value) head -= params.kv_heads;
    const ulong at = (ulong(row) * params.kv_heads + head) * kv_head_size;
    const uint table = kv_table(tables, run * params.kv.groups + params.kv.group);
    if (is_value) {
        head_store_plain(v + at, kv_row(pages, table, position, params.kv.values, head), lane);
    } else {
        if (kv_norms_keys) head_norm(k + at, k_norm, params.epsilon, lane, change);
        head_store(k + at, kv_row(pages, table, position, params.kv.keys, head), lane, change);
    }
}

kernel void rope(constant RopeParams& params [[buffer(0)]], device const RowParams* rows [[buffer(1)]],
                 device const RunParams* runs [[buffer(2)]], device const uint2* steps [[buffer(3)]],
                 device const float* in [[buffer(4)]], device float* out [[buffer(5)]],
                 uint place [[threadgroup_position_in_grid]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                 uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    const uint item = place * simdgroups + simdgroup;
    const uint row = item / params.heads;
    if (row >= params.rows) return;
    HeadChange change;
    head_rotation(steps, runs[rows[row].run].rope_extended != 0, params.magnitudes, rows[row].position, change);
    const ulong at = ulong(item) * kv_head_size;
    head_rewrite(in + at, out + at, lane, change);
}
