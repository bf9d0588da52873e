#pragma once

#include "backend/cpu/isa/attention_few.h"
#include "backend/cpu/isa/attention_many.h"
#include "backend/cpu/isa/vector_rows.h"

// Attention over a tile, and the table of an instruction set's kernels. Included after one of vector_lanes_*.h.
namespace metallic::cpu {
namespace {

inline Page page_at(const AttentionTile& t, uint32_t index, uint32_t next) {
    const auto address = [&t](uint32_t i, uint64_t offset) {
        return reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(t.pages[i - t.first_page] + offset));
    };
    return {index * kPageTokens, address(index, t.keys_offset), address(index, t.values_offset),
            address(next, t.keys_offset), address(next, t.values_offset)};
}

// The pages of one segment that the tile sees, into `into`.
void segment_state(const AttentionTile& t, uint32_t segment, const State& into, Work& w) {
    static_assert(kAttentionSegment % kPageTokens == 0);
    constexpr uint32_t kPages = kAttentionSegment / kPageTokens;
    const ScoreRule rule(t);
    const uint32_t oldest = oldest_seen(t.position, t.window) / kPageTokens;
    const uint32_t newest = (t.position + t.rows - 1) / kPageTokens;
    const uint32_t first = oldest > segment * kPages ? oldest : segment * kPages;
    const uint32_t end = least(newest, segment * kPages + kPages - 1) + 1;
    w.shape.clear(into);
    w.segment = into;
    for (uint32_t i = first; i < end; ++i) {
        const Page page = page_at(t, i, i < newest ? i + 1 : i);
        if (w.shape.many) {
            many_page(t, rule, page, w);
        } else {
            few_page(t, rule, page, w);
        }
    }
}

inline void begin(const AttentionTile& t, Work& w) {
    w.shape.many ? many_begin(t, w) : few_begin(t, w);
}
inline void merge(const Shape& shape, const State& total, const State& part) {
    shape.many ? many_merge(shape, total, part) : few_merge(shape, total, part);
}
inline void finish(const AttentionTile& t, const Shape& shape, const State& total) {
    shape.many ? many_finish(t, shape, total) : few_finish(t, shape, total);
}

size_t attention_scratch_bytes(uint32_t rows, uint32_t group_heads, uint32_t head_size) {
    return Work::floats(Shape(rows, group_heads, head_size)) * sizeof(float);
}

void attention(const AttentionTile& t, void* scratch) {
    Work w(t, scratch);
    const State part = w.segment;
    const AttentionSegments segments = attention_segments(t.position, t.rows, t.window);
    begin(t, w);
    segment_state(t, segments.first, w.total, w);
    for (uint32_t s = segments.first + 1; s <= segments.last; ++s) {
        segment_state(t, s, part, w);
        merge(w.shape, w.total, part);
    }
    finish(t, w.shape, w.total);
}

size_t attention_partial_floats(uint32_t rows, uint32_t group_heads, uint32_t head_size) {
    return Shape(rows, group_heads, head_size).state_floats();
}

void attention_segment(const AttentionTile& t, uint32_t segment, float* partial, void* scratch) {
    Work w(t, scratch);
    begin(t, w);
    segment_state(t, segment, w.shape.state(partial), w);
}

void attention_merge(const AttentionTile& t, float* partials, uint32_t count) {
    const Shape shape(t);
    const State total = shape.state(partials);
    for (uint32_t i = 1; i < count; ++i) merge(shape, total, shape.state(partials + i * shape.state_floats()));
    finish(t, shape, total);
}

constexpr VectorKernels kernels(const char* name) {
    return {name,
            rms_norm,
            add,
            scale,
            softcap,
            gated_activation,
            weighted_sum,
            rope,
            store_kv,
            softmax,
            attention_scratch_bytes,
            attention,
            attention_partial_floats,
            attention_segment,
            attention_merge};
}

}  // namespace
}  // namespace metallic::cpu
