#pragma once

#include "attention_common.h"

// Attention of many queries, by 8 x 8 matrices: a simdgroup has 8 queries of one kv head, a row each. A threadgroup
// goes through its tokens in chunks; it lays a chunk's keys, then its values, into threadgroup memory for all its
// simdgroups. Heads of more than 16 matrices are split over several simdgroups with the same queries; these share their
// parts of the dot products.
constant uint attention_chunk [[function_constant(5)]];  // tokens: 8, 16 or 32
constant uint attention_parts [[function_constant(6)]];  // simdgroups that share 8 queries

constant constexpr uint kMostChunk = 32;

// Lane l holds the elements (y, x) and (y, x + 1) of each matrix: the arrangement that simdgroup_matrix's
// thread_elements() has on Apple's GPUs (BaseMMAFrag in MLX's steel/attn/mma.h, by Apple).
inline ushort2 many_place(ushort lane) {
    const ushort quad = lane / 4;
    return ushort2((quad & 2) * 2 + lane % 2 * 2, (quad & 4) + lane / 2 % 4);
}

inline float2 many_multiply_add(float2 a, float2 b, float2 c) {
    simdgroup_float8x8 left, right, sum;
    left.thread_elements()[0] = a.x, left.thread_elements()[1] = a.y;
    right.thread_elements()[0] = b.x, right.thread_elements()[1] = b.y;
    sum.thread_elements()[0] = c.x, sum.thread_elements()[1] = c.y;
    simdgroup_multiply_accumulate(sum, left, right, sum);
    return float2(sum.thread_elements()[0], sum.thread_elements()[1]);
}

// Over the four lanes that hold one row.
inline float many_row_max(float x) {
    x = max(x, simd_shuffle_xor(x, 1));
    return max(x, simd_shuffle_xor(x, 8));
}
inline float many_row_sum(float x) {
    x += simd_shuffle_xor(x, 1);
    return x + simd_shuffle_xor(x, 8);
}

// ---- a chunk in threadgroup memory: [token][stride] elements, of 16 bits as they are in the cache, else floats -----

// Rows start in different banks; fours of elements stay aligned.
inline uint many_stride(uint type, uint width) {
    return width + (kv_is_narrow(type) ? 8 : 4);
}
inline float many_staged(uint type, threadgroup const float* rows, uint at) {
    return kv_is_narrow(type) ? kv_from_bits(type, ((threadgroup const ushort*)rows)[at]) : rows[at];
}
inline float2 many_staged_two(uint type, threadgroup const float* rows, uint at) {
    if (!kv_is_narrow(type)) return *(threadgroup const float2*)(rows + at);
    return kv_from_bits(type, *(threadgroup const ushort2*)((threadgroup const ushort*)rows + at));
}
// What a chunk takes, in floats: that of the keys or of the values, whichever is more.
inline uint many_staged_floats(uint width) {
    const bool narrow = kv_is_narrow(kv_key_type) && kv_is_narrow(kv_value_type);
    return attention_chunk * (narrow ? (width + 8) / 2 : width + 4);
}

inline bool many_is_infinite(float4 x) {  // or no number; by the bits
    return any((as_type<uint4>(x) & 0x7f800000u) == 0x7f800000u);
}

// Rows [0, chunk) from `rows` on, in columns [0, width); those of tokens outside [begin, end), which may hold anything,
// are 0, as are columns past the head. Returns whether this thread met a value that is not finite.
inline bool many_stage(uint type, device const uchar* rows, uint row_bytes, uint token, uint begin, uint end,
                       uint width, uint thread_index, uint threads, threadgroup float* staged) {
    const uint fours = width / 4, stride = many_stride(type, width);
    bool infinite = false;
    for (uint i = thread_index; i < attention_chunk * fours; i += threads) {
        const uint row = i / fours, d = i % fours * 4;
        const bool there = token + row >= begin && token + row < end && d < kv_head_size;
        device const uchar* from = rows + row * row_bytes;
        if (kv_is_narrow(type)) {
            const ushort4 bits = there ? kv_bits_four(from, d) : ushort4(0);
            infinite = infinite || many_is_infinite(kv_from_bits(type, bits));
            *(threadgroup ushort4*)((threadgroup ushort*)staged + row * stride + d) = bits;
        } else {
            const float4 x = there ? kv_four(type, from, d) : float4(0.0f);
            infinite = infinite || many_is_infinite(x);
            *(threadgroup float4*)(staged + row * stride + d) = x;
        }
    }
    return infinite;
}

// ---- one simdgroup's work ------------------------------------------------------------------------------------------

// 8 queries by F matrices of the head's dimensions, from `column` on.
template <uint F>
struct ManyWork {
    float2 queries[F];  // times the factor
    float2 values[F];
    float maximum, sum;                  // of this lane's row; the sum is of its own elements
    ushort2 at;                          // many_place
    uint position;                       // of this lane's row
    uint first_position, last_position;  // of all rows
    uint column;
    bool active;  // whether there are queries at all
    bool exists;  // whether this lane's row is one
};

template <uint F>
void many_scores(threadgroup const float* keys, uint width, thread const ManyWork<F>& work, thread float2* scores) {
    const uint stride = many_stride(kv_key_type, width);
    for (uint j = 0; j < attention_chunk / 8; ++j) {
        float2 dots = float2(0.0f);
        const uint at = (j * 8 + work.at.x) * stride + work.column + work.at.y;
        for (uint f = 0; f < F; ++f) {
            const float2 k =
                float2(many_staged(kv_key_type, keys, at + f * 8), many_staged(kv_key_type, keys, at + stride + f * 8));
            dots = many_multiply_add(work.queries[f], k, dots);
        }
        scores[j] = dots;
    }
}

// Raw scores become weights; the running maximum, sum and values move on.
template <uint F>
void many_softmax(constant AttentionParams& params, uint token, thread ManyWork<F>& work, thread float2* scores) {
    float most = kNoScore;
    bool2 seen[kMostChunk / 8];
    for (uint j = 0; j < attention_chunk / 8; ++j) {
        const uint at = token + j * 8 + work.at.x;
        for (uint k = 0; k < 2; ++k) {
            seen[j][k] = attention_sees(at + k, work.position, params.window);
            scores[j][k] = seen[j][k] ? attention_score(scores[j][k], params) : kNoScore;
            most = max(most, scores[j][k]);
        }
    }
    const float now = max(work.maximum, many_row_max(most));
    const float kept = precise::exp(work.maximum - now);
    float sum = 0.0f;
    for (uint j = 0; j < attention_chunk / 8; ++j) {
        for (uint k = 0; k < 2; ++k) {
            scores[j][k] = seen[j][k] ? precise::exp(scores[j][k] - now) : 0.0f;
            sum += scores[j][k];
        }
    }
    work.maximum = now;
    work.sum = work.sum * kept + sum;
    for (uint f = 0; f < F; ++f) work.values[f] *= kept;
}

template <uint F>
void many_values(threadgroup const float* values, uint width, thread const float2* weights, thread ManyWork<F>& work) {
    const uint stride = many_stride(kv_value_type, width);
    for (uint j = 0; j < attention_chunk / 8; ++j) {
        const uint at = (j * 8 + work.at.y) * stride + work.column + work.at.x;
        for (uint f = 0; f < F; ++f) {
            work.values[f] =
                many_multiply_add(weights[j], many_staged_two(kv_value_type, values, at + f * 8), work.values[f]);
        }
    }
}

// The same without products of a weight of 0, which would make a query see that a later token's value is no number.
template <uint F>
void many_values_apart(threadgroup const float* values, uint width, thread const float2* weights, ushort lane,
                       thread ManyWork<F>& work) {
    const uint stride = many_stride(kv_value_type, width);
    for (uint key = 0; key < attention_chunk; ++key) {
        const float2 pair = weights[key / 8];
        const ushort holder = (lane & 0x16) | (key / 4 % 2 * 8) | (key / 2 % 2);
        const float weight = simd_shuffle(key % 2 == 0 ? pair.x : pair.y, holder);
        if (weight == 0.0f) continue;
        const uint at = key * stride + work.column + work.at.x;
        for (uint f = 0; f < F; ++f) work.values[f] += weight * many_staged_two(kv_value_type, values, at + f * 8);
    }
}

// Whether some query of the simdgroup sees some token of a chunk.
template <uint F>
bool many_sees_any(uint token, uint window, thread const ManyWork<F>& work) {
    return work.active && token <= work.last_position &&
           (window == 0 || token + attention_chunk + window > work.first_position + 1);
}

// The transform of kv.h, of this simdgroup's rows; parts of rotated heads are of whole blocks.
template <uint F>
void many_rotate(thread const ManyWork<F>& work, thread float2* x) {
    uint steps[F];
    for (uint f = 0; f < F; ++f) steps[f] = 0;
    for (uint apart = 2; apart > 0; apart /= 2) {
        for (uint f = 0; f + apart < F; ++f) {
            if ((f & apart) != 0 || !kv_steps(work.column + f * 8, apart * 8)) continue;
            const float2 a = x[f], b = x[f + apart];
            x[f] = a + b;
            x[f + apart] = a - b;
            ++steps[f];
            ++steps[f + apart];
        }
    }
    for (uint f = 0; f < F; ++f) {
        const uint d = work.column + f * 8 + work.at.x;
        for (uint step = 4; step > 1; step /= 2) {
            const float2 other = simd_shuffle_xor(x[f], ushort(step == 4 ? 8 : 1));
            if (!kv_steps(d, step)) continue;
            x[f] = (work.at.x & step) == 0 ? x[f] + other : other - x[f];
            ++steps[f];
        }
        if (kv_steps(d, 1)) {
            x[f] = float2(x[f].x + x[f].y, x[f].x - x[f].y);
            ++steps[f];
        }
        x[f] *= kv_step_factor(steps[f]);
    }
}

template <uint F>
void many_begin(constant AttentionParams& params, device const AttentionTile* tile, device const float* q,
                uint first_query, uint kv_head, uint part, ushort lane, thread ManyWork<F>& work,
                thread uint& query_row) {
    const uint queries = tile->rows * params.group_heads;
    work.at = many_place(lane);
    const uint query = first_query + work.at.y;
    work.active = first_query < queries;
    work.exists = query < queries;
    const uint row = min(query, queries - 1) / params.group_heads;
    work.position = tile->position + row;
    work.first_position = tile->position + min(first_query, queries - 1) / params.group_heads;
    work.last_position = tile->position + min(first_query + 7, queries - 1) / params.group_heads;
    work.column = part * F * 8;
    work.maximum = kNoScore;
    work.sum = 0.0f;
    query_row = (tile->row + row) * params.heads + kv_head * params.group_heads + query % params.group_heads;
    device const float* from = q + ulong(query_row) * kv_head_size;
    for (uint f = 0; f < F; ++f) {
        work.values[f] = float2(0.0f);
        for (uint k = 0; k < 2; ++k) {
            const uint d = work.column + f * 8 + work.at.x + k;
            work.queries[f][k] = work.exists && d < kv_head_size ? from[d] * params.factor : 0.0f;
        }
    }
    if (kv_rotates(kv_key_type)) many_rotate<F>(work, work.queries);
}

template <uint F>
void many_finish(constant AttentionParams& params, device const AttentionTile* tile, device const float* sinks,
                 device float* out, device float* partials, uint query_row, thread ManyWork<F>& work) {
    const float sum = many_row_sum(work.sum);
    if (kv_rotates(kv_value_type)) many_rotate<F>(work, work.values);
    if (!work.exists) return;
    const uint head = query_row % params.heads;
    device float* to = out + ulong(query_row) * kv_head_size;
    float factor = 1.0f;
    if (tile->partial == kWholeTile) {
        factor = attention_factor(work.maximum, sum, attention_has_sinks ? sinks[head] : 0.0f);
    } else {
        to = attention_partial(partials, tile->partial + (work.position - tile->position) * params.heads + head);
        if (work.column == 0 && work.at.x == 0) {
            to[kv_head_size] = work.maximum;
            to[kv_head_size + 1] = sum;
        }
    }
    for (uint f = 0; f < F; ++f) {
        for (uint k = 0; k < 2; ++k) {
            const uint d = work.column + f * 8 + work.at.x + k;
            if (d < kv_head_size) to[d] = work.values[f][k] * factor;
        }
    }
}

// The threadgroup, and its memory.
struct ManyGroup {
    threadgroup float* staged;  // a chunk's keys or values
    threadgroup float2* dots;   // [simdgroups][chunk / 8][32]: parts of dot products, if they are shared
    threadgroup uint* flags;    // [simdgroups]: whether a value is not finite
    uint width;                 // columns
    uint simdgroup, simdgroups, lane;
};

// The parts of this simdgroup's queries, in the same order in each.
inline void many_share(thread const ManyGroup& group, thread float2* scores) {
    const uint count = attention_chunk / 8;
    const uint first = group.simdgroup / attention_parts * attention_parts;
    for (uint j = 0; j < count; ++j) {
        float2 sum = float2(0.0f);
        for (uint i = 0; i < attention_parts; ++i) sum += group.dots[((first + i) * count + j) * 32 + group.lane];
        scores[j] = sum;
    }
}

template <uint F>
void many_chunk(constant AttentionParams& params, device const AttentionTile* tile, device const Page* pages,
                uint table, uint kv_head, uint token, thread const ManyGroup& group, thread ManyWork<F>& work) {
    const uint begin = tile->begin, end = tile->end;
    const uint thread_index = group.simdgroup * 32 + group.lane, threads = group.simdgroups * 32;
    const bool sees = many_sees_any<F>(token, params.window, work);
    float2 scores[kMostChunk / 8];
    many_stage(kv_key_type, kv_row(pages, table, token, params.kv.keys, kv_head), params.kv.keys.row_bytes, token,
               begin, end, group.width, thread_index, threads, group.staged);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sees) many_scores<F>(group.staged, group.width, work, scores);
    if (sees && attention_parts > 1) {
        for (uint j = 0; j < attention_chunk / 8; ++j) {
            group.dots[(group.simdgroup * (attention_chunk / 8) + j) * 32 + group.lane] = scores[j];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const bool infinite =
        many_stage(kv_value_type, kv_row(pages, table, token, params.kv.values, kv_head), params.kv.values.row_bytes,
                   token, begin, end, group.width, thread_index, threads, group.staged);
    const bool some_infinite = simd_any(infinite);
    if (group.lane == 0) group.flags[group.simdgroup] = some_infinite ? 1 : 0;
    if (sees && attention_parts > 1) many_share(group, scores);
    if (sees) many_softmax<F>(params, token, work, scores);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const bool apart = simd_any(group.lane < group.simdgroups && group.flags[group.lane] != 0);
    if (sees && apart) many_values_apart<F>(group.staged, group.width, scores, group.lane, work);
    if (sees && !apart) many_values<F>(group.staged, group.width, scores, work);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}

template <uint F>
kernel void attention_many(constant AttentionParams& params [[buffer(0)]],
                           device const AttentionTile* tiles [[buffer(1)]],
                           device const TableParams* tables [[buffer(2)]], device const Page* pages [[buffer(3)]],
                           device const float* q [[buffer(4)]], device const float* sinks [[buffer(5)]],
                           device float* out [[buffer(6)]], device float* partials [[buffer(7)]],
                           threadgroup float* memory [[threadgroup(0)]], uint3 place [[threadgroup_position_in_grid]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
    device const AttentionTile* tile = tiles + place.x;
    const uint kv_head = place.y / params.blocks;
    const uint first_query =
        (place.y % params.blocks * (simdgroups / attention_parts) + simdgroup / attention_parts) * 8;
    // The threadgroup's first query: all its threads leave, or none.
    if (place.y % params.blocks * (simdgroups / attention_parts) * 8 >= tile->rows * params.group_heads) return;

    ManyGroup group;
    group.width = F * 8 * attention_parts;
    group.simdgroup = simdgroup;
    group.simdgroups = simdgroups;
    group.lane = lane;
    group.staged = memory;
    group.dots = (threadgroup float2*)(memory + many_staged_floats(group.width));
    const uint shared = attention_parts > 1 ? simdgroups * attention_chunk / 8 * 32 : 0;
    group.flags = (threadgroup uint*)(group.dots + shared);

    ManyWork<F> work;
    uint query_row;
    many_begin<F>(params, tile, q, first_query, kv_head, simdgroup % attention_parts, ushort(lane), work, query_row);
    const uint table = kv_table(tables, tile->run * params.kv.groups + params.kv.group);
    const uint end = tile->end;
    for (uint token = tile->begin / attention_chunk * attention_chunk; token < end; token += attention_chunk) {
        many_chunk<F>(params, tile, pages, table, kv_head, token, group, work);
    }
    many_finish<F>(params, tile, sinks, out, partials, query_row, work);
}
