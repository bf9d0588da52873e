#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/kv_layout.h"

// Float kernels of the CPU backend, one table per instruction set. Every result is defined per row and is bitwise the
// same for every split of the work and for every table: sums run over 16 fixed lanes (lane = index mod 16), then the
// fixed tree lane i + lane i+8, +4, +2, +1; multiply-adds are fused. (The bits of a NaN are not defined.)
namespace metallic::cpu {

// One query tile of one kv head of one run, attending to history in pages of kPageTokens.
struct AttentionTile {
    const float* q;   // [rows][group heads] : row r, head h of the group at q + r * q_stride + h * head_size
    size_t q_stride;  // floats
    float* out;       // laid out as q, with out_stride; no overlap with q
    size_t out_stride;
    uint32_t rows;         // query tokens of the tile, consecutive positions; >= 1
    uint32_t position;     // position of row 0
    uint32_t group_heads;  // query heads that share this kv head; >= 1
    uint32_t head_size;    // >= 1
    float scale;
    float softcap;       // 0: none; otherwise a score is softcap * tanh(scale * q.k / softcap)
    uint32_t window;     // 0: none; otherwise a query at position p sees (p - window, p]
    const float* sinks;  // [group_heads] or null
    KvRows key_rows;     // of this cache group
    KvRows value_rows;
    const uint64_t* pages;  // page addresses; pages[i] holds tokens [(first_page + i) * kPageTokens, ...)
    uint32_t first_page;
    uint64_t keys_offset;  // of this layer and head within a page; rows of tokens follow each other
    uint64_t values_offset;
};

// History is summed in segments of this many tokens, aligned to absolute positions; each has a maximum, a sum and an
// accumulator of its own, merged in ascending order. So segments may be computed apart, on several threads.
inline constexpr uint32_t kAttentionSegment = 1024;

// The segments that a tile's rows see: [first, last].
struct AttentionSegments {
    uint32_t first;
    uint32_t last;
};
[[gnu::always_inline]] inline AttentionSegments attention_segments(uint32_t position, uint32_t rows,
                                                                   uint32_t window) noexcept {
    const uint32_t oldest = window != 0 && position >= window ? position - window + 1 : 0;
    return {oldest / kAttentionSegment, (position + rows - 1) / kAttentionSegment};
}

struct VectorKernels {
    const char* name;

    // out = x * (1 / sqrt(mean(x^2) + epsilon)) * weight (null: 1) + residual (null: 0); in and out may alias.
    void (*rms_norm)(const float* x, const float* weight, const float* residual, float epsilon, size_t n, float* out);
    void (*add)(const float* a, const float* b, size_t n, float* out);
    void (*scale)(const float* x, float factor, size_t n, float* out);
    void (*softcap)(const float* x, float cap, size_t n, float* out);  // cap * tanh(x / cap)
    // out = activation(gate) * up; the activation is program.h's enum. May alias.
    void (*gated_activation)(uint8_t activation, const float* gate, const float* up, size_t n, float* out);
    // out = residual (null: 0) + sum_i weights[i] * rows[i * stride ...], i ascending. `out` may alias the residual.
    void (*weighted_sum)(const float* rows, size_t stride, const float* weights, size_t count, const float* residual,
                         size_t n, float* out);
    // In place, `heads` consecutive heads; cos/sin hold dims / 2 values each; neox pairs (i, i + dims/2), else (2i,
    // 2i+1).
    void (*rope)(float* x, size_t heads, size_t head_size, size_t dims, bool neox, const float* cos, const float* sin);
    // Writes one row of n floats of a page: write_kv_row of kv_rows.h, bit for bit.
    void (*store_kv)(const KvRows& rows, const float* x, size_t n, void* out);
    // Softmax in place (router); numerically safe for any finite input.
    void (*softmax)(float* x, size_t n);

    // Tiles of 64 to 128 queries (rows * group_heads) are the fastest; any size gives the same bits. More rows, heads
    // or dimensions never need less scratch.
    size_t (*attention_scratch_bytes)(uint32_t rows, uint32_t group_heads, uint32_t head_size);
    // `scratch` is 64-byte aligned. Slots that no query of the tile sees are never used, whatever their bits.
    void (*attention)(const AttentionTile& tile, void* scratch);

    // The same in parts: attention_segment for each of attention_segments(), in any order and on any threads, with
    // equal tiles (tile.out is unused) and a scratch each; then attention_merge of `count` partials, ascending and
    // contiguous. Bitwise equal to `attention`. A partial is 64-byte aligned and opaque; the merge overwrites the
    // first.
    size_t (*attention_partial_floats)(uint32_t rows, uint32_t group_heads, uint32_t head_size);
    void (*attention_segment)(const AttentionTile& tile, uint32_t segment, float* partial, void* scratch);
    void (*attention_merge)(const AttentionTile& tile, float* partials, uint32_t count);
};

const VectorKernels& vector_portable();
const VectorKernels& vector_avx2();    // x86-64 with AVX2, FMA and F16C
const VectorKernels& vector_avx512();  // x86-64 with AVX-512 F, BW, VL and DQ

}  // namespace metallic::cpu
