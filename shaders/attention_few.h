#pragma once

#include "attention_common.h"

// Attention of up to Q queries that share a kv head: the query heads of one token, or of a few. A threadgroup goes
// through its tokens in blocks of pages. Each simdgroup scores one page of the block, a token per lane at the end; then
// each takes 32 dimensions of the values of all pages of the block. So keys and values are read once for all queries,
// and registers do not grow with the head.
constant bool attention_stages_queries [[function_constant(4)]];

template <uint Q>
struct FewState {
    float maximum[Q];  // the same in all threads
    float sum[Q];      // of this lane's weights
    float4 values[Q];  // of this lane's dimensions and tokens
};

// Elements [d, d + 4) of a query, times the factor.
inline float4 few_query(device const float* q, uint d, float factor) {
    float4 x = float4(0.0f);
    for (uint k = 0; k < 4 && d + k < kv_head_size; ++k) x[k] = q[d + k] * factor;
    return x;
}

inline uint few_width() {
    return (kv_head_size + 3) / 4 * 4;
}

// The part of a page, from `page_token` on, that lies in [begin, end): keys [x, y).
inline uint2 few_span(uint page_token, uint begin, uint end) {
    const uint first = begin > page_token ? begin - page_token : 0;
    const uint last = end > page_token ? min(end - page_token, kPageTokens) : 0;
    return uint2(first, last);
}

// The dot products of all queries with the page's keys in `span`; lane i has those of key i. Eight lanes share a key.
// Queries that are not staged are one, at q; such heads are too large to be rotated.
template <uint Q>
void few_scores(device const uchar* keys, uint row_bytes, uint2 span, device const float* q,
                threadgroup const float* queries, float factor, uint lane, thread float* scores) {
    const uint width = few_width();
    for (uint step = 0; step < 8; ++step) {
        const uint key = lane / 8 * 8 + step;
        float dots[Q];
        for (uint i = 0; i < Q; ++i) dots[i] = 0.0f;
        if (key >= span.x && key < span.y) {
            for (uint d = lane % 8 * 4; d < kv_head_size; d += 32) {
                const float4 k = kv_four(kv_key_type, keys + key * row_bytes, d);
                for (uint i = 0; i < Q; ++i) {
                    const float4 x = attention_stages_queries ? *(threadgroup const float4*)(queries + i * width + d)
                                                              : few_query(q, d, factor);
                    dots[i] += dot(x, k);
                }
            }
        }
        for (uint i = 0; i < Q; ++i) {
            float x = dots[i];
            x += simd_shuffle_xor(x, 1);
            x += simd_shuffle_xor(x, 2);
            x += simd_shuffle_xor(x, 4);
            if (lane % 8 == step) scores[i] = x;
        }
    }
}

// Adds one page's values in `span`, dimensions [d, d + 4), by their weights. A weight of 0 adds nothing, even
// to a value that is no number: its query does not see it.
template <uint Q>
void few_values(device const uchar* values, uint row_bytes, uint2 span, uint d, threadgroup const float* weights,
                uint lane, thread FewState<Q>& state) {
    if (d >= kv_head_size) return;
    for (uint key = lane / 8; key < kPageTokens; key += 4) {
        if (key < span.x || key >= span.y) continue;
        const float4 v = kv_four(kv_value_type, values + key * row_bytes, d);
        for (uint i = 0; i < Q; ++i) {
            const float weight = weights[key * Q + i];
            state.values[i] = weight == 0.0f ? state.values[i] : state.values[i] + weight * v;
        }
    }
}

// What a threadgroup works on. Queries of a tile: those of its first token, head by head, then those of its next. The
// absent ones of a threadgroup are computed like its last one, and not written.
template <uint Q>
struct FewWork {
    device const AttentionTile* tile;
    device const Page* pages;
    threadgroup float* staged;   // [Q][width]: the queries
    threadgroup float* shared;   // [Q][simdgroups]
    threadgroup float* weights;  // [pages of a block][32][Q]
    uint table, begin, end;
    uint queries, first_query, kv_head;
    uint rows[Q];  // of query i: row * heads + head
    uint positions[Q];
    uint simdgroup, simdgroups, lane;
    uint dimension;  // of the values: this lane's first of four
};

template <uint Q>
void few_stage(constant AttentionParams& params, device const float* q, thread const FewWork<Q>& work) {
    const uint width = few_width();
    for (uint i = 0; i < Q; ++i) {
        device const float* from = q + ulong(work.rows[i]) * kv_head_size;
        for (uint d = work.simdgroup * 32 + work.lane; d - work.lane < width; d += work.simdgroups * 32) {
            float x = d < kv_head_size ? from[d] * params.factor : 0.0f;
            if (kv_rotates(kv_key_type)) x = kv_rotate(x, d, work.lane);
            if (d < width) work.staged[i * width + d] = x;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

// The pages of one block, from `token` on.
template <uint Q>
void few_block(constant AttentionParams& params, device const float* q, uint token, thread const FewWork<Q>& work,
               thread FewState<Q>& state) {
    const uint lane = work.lane;
    const uint own = token + work.simdgroup * kPageTokens;  // this simdgroup's page
    const bool busy = work.simdgroup < params.pages && own < work.end;
    const uint2 span = few_span(own, work.begin, work.end);
    float scores[Q];
    bool seen[Q];
    for (uint i = 0; i < Q; ++i) {
        scores[i] = kNoScore;
        seen[i] =
            busy && lane >= span.x && lane < span.y && attention_sees(own + lane, work.positions[i], params.window);
    }
    if (busy) {
        few_scores<Q>(kv_row(work.pages, work.table, own, params.kv.keys, work.kv_head), params.kv.keys.row_bytes, span,
                      q + ulong(work.rows[0]) * kv_head_size, work.staged, params.factor, lane, scores);
    }
    for (uint i = 0; i < Q; ++i) {
        scores[i] = seen[i] ? attention_score(scores[i], params) : kNoScore;
        const float most = simd_max(scores[i]);
        if (lane == 0) work.shared[i * work.simdgroups + work.simdgroup] = most;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < Q; ++i) {
        const float most = simd_max(lane < work.simdgroups ? work.shared[i * work.simdgroups + lane] : kNoScore);
        const float now = max(state.maximum[i], most);
        const float kept = precise::exp(state.maximum[i] - now);
        const float weight = seen[i] ? precise::exp(scores[i] - now) : 0.0f;
        state.maximum[i] = now;
        state.sum[i] = state.sum[i] * kept + weight;
        state.values[i] *= kept;
        if (busy) work.weights[(work.simdgroup * kPageTokens + lane) * Q + i] = weight;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint page = 0; page < params.pages && token + page * kPageTokens < work.end; ++page) {
        const uint at = token + page * kPageTokens;
        device const uchar* values = kv_row(work.pages, work.table, at, params.kv.values, work.kv_head);
        few_values<Q>(values, params.kv.values.row_bytes, few_span(at, work.begin, work.end), work.dimension,
                      work.weights + page * kPageTokens * Q, lane, state);
    }
}

// Four lanes have sums of the same dimensions, and all lanes and simdgroups those of their own tokens.
template <uint Q>
void few_finish(constant AttentionParams& params, device const float* sinks, device float* out, device float* partials,
                uint slice, thread const FewWork<Q>& work, thread FewState<Q>& state) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = 0; i < Q; ++i) {
        state.values[i] += simd_shuffle_xor(state.values[i], 8);
        state.values[i] += simd_shuffle_xor(state.values[i], 16);
        if (kv_rotates(kv_value_type)) state.values[i] = kv_rotate_four(state.values[i], work.dimension, work.lane);
        const float sum = simd_sum(state.sum[i]);
        if (work.lane == 0) work.shared[i * work.simdgroups + work.simdgroup] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint partial = work.tile->partial;
    for (uint i = 0; i < Q; ++i) {
        const float sum = simd_sum(work.lane < work.simdgroups ? work.shared[i * work.simdgroups + work.lane] : 0.0f);
        const uint query = work.first_query + i;
        if (query >= work.queries) break;
        const uint head = work.rows[i] % params.heads;
        device float* to = out + ulong(work.rows[i]) * kv_head_size;
        float factor = 1.0f;
        if (partial == kWholeTile) {
            factor = attention_factor(state.maximum[i], sum, attention_has_sinks ? sinks[head] : 0.0f);
        } else {
            to = attention_partial(partials, partial + query / params.group_heads * params.heads + head);
            if (slice == 0 && work.simdgroup == 0 && work.lane == 0) {
                to[kv_head_size] = state.maximum[i];
                to[kv_head_size + 1] = sum;
            }
        }
        if (work.lane >= 8) continue;
        for (uint k = 0; k < 4 && work.dimension + k < kv_head_size; ++k) {
            to[work.dimension + k] = state.values[i][k] * factor;
        }
    }
}

template <uint Q>
kernel void attention_few(constant AttentionParams& params [[buffer(0)]],
                          device const AttentionTile* tiles [[buffer(1)]],
                          device const TableParams* tables [[buffer(2)]], device const Page* pages [[buffer(3)]],
                          device const float* q [[buffer(4)]], device const float* sinks [[buffer(5)]],
                          device float* out [[buffer(6)]], device float* partials [[buffer(7)]],
                          threadgroup float* memory [[threadgroup(0)]], uint3 place [[threadgroup_position_in_grid]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    FewWork<Q> work;
    work.tile = tiles + place.x;
    work.pages = pages;
    work.kv_head = place.y / params.blocks;
    work.first_query = place.y % params.blocks * Q;
    work.queries = work.tile->rows * params.group_heads;
    if (work.first_query >= work.queries) return;
    for (uint i = 0; i < Q; ++i) {
        const uint query = min(work.first_query + i, work.queries - 1);
        const uint row = query / params.group_heads;
        work.rows[i] =
            (work.tile->row + row) * params.heads + work.kv_head * params.group_heads + query % params.group_heads;
        work.positions[i] = work.tile->position + row;
    }
    work.staged = memory;
    work.shared = memory + (attention_stages_queries ? Q * few_width() : 0);
    work.weights = work.shared + (Q * simdgroups + 3) / 4 * 4;
    work.table = kv_table(tables, work.tile->run * params.kv.groups + params.kv.group);
    work.begin = work.tile->begin;
    work.end = work.tile->end;
    work.simdgroup = simdgroup;
    work.simdgroups = simdgroups;
    work.lane = lane;
    work.dimension = (place.z * simdgroups + simdgroup) * 32 + lane % 8 * 4;
    if (attention_stages_queries) few_stage<Q>(params, q, work);

    FewState<Q> state;
    for (uint i = 0; i < Q; ++i) {
        state.maximum[i] = kNoScore;
        state.sum[i] = 0.0f;
        state.values[i] = float4(0.0f);
    }
    for (uint token = work.begin / kPageTokens * kPageTokens; token < work.end; token += params.pages * kPageTokens) {
        few_block<Q>(params, q, token, work, state);
    }
    few_finish<Q>(params, sinks, out, partials, place.z, work, state);
}
