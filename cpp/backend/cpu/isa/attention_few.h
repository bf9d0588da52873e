#pragma once

#include "backend/cpu/isa/attention_pages.h"

// Attention of a few queries (decoding): lanes hold dimensions of a head, so keys and values are used as they lie.
namespace metallic::cpu {
namespace {

inline void few_begin(const AttentionTile& t, Work& w) {
    const size_t width = w.shape.width;
    for (uint32_t query = 0; query < w.shape.queries; ++query) {
        const float* from = t.q + query / t.group_heads * t.q_stride + query % t.group_heads * size_t{t.head_size};
        float* to = w.queries + query * width;
        uint32_t i = 0;
        for (; i + kLanes <= t.head_size; i += kLanes) store(to + i, load(from + i));
        if (i < t.head_size) store(to + i, load(from + i, t.head_size - i));
        if (t.key_rows.rotated) rotate_row(to, t.head_size);
    }
    for (size_t i = 0; i < Work::score_floats(w.shape); i += kLanes) store(w.scores + i, set(0.0f));
}

// What one block of Q queries reads of the keys, or of the values.
struct FewRows {
    const uint8_t* rows;
    const uint8_t* next;
    DType dtype;
    size_t row_bytes;
    size_t next_row_bytes;  // to be prefetched; 0: nothing
};

// Into the second-level cache, spread evenly over the work on the present page: pages lie anywhere, so the hardware's
// prefetchers do not find them, and a burst would fill the queue of misses.
METALLIC_LANES_INLINE void prefetch_bytes(const uint8_t* row, size_t begin, size_t end) {
    for (size_t i = (begin + 63) / 64 * 64; i < end; i += 64) __builtin_prefetch(row + i, 0, 2);
}

// Half sums of the dot products of Q queries with K keys from `slot` on.
template <class Reader, int Q, int K>
METALLIC_LANES_INLINE void few_dots(const float* q, size_t width, const FewRows& rows, uint32_t slot, float* halves) {
    Lanes dot[Q][K];
    for (int i = 0; i < Q; ++i) {
        for (int k = 0; k < K; ++k) dot[i][k] = set(0.0f);
    }
    const uint8_t* key = rows.rows + slot * rows.row_bytes;
    const auto add = [&](size_t c, const Lanes* x) {
        for (int i = 0; i < Q; ++i) {
            const Lanes y = load(q + i * width + c * kLanes);
            for (int k = 0; k < K; ++k) dot[i][k] = fused(y, x[k], dot[i][k]);
        }
    };
    size_t c = 0;
    if constexpr (Reader::kBytes == 0) {
        for (; c + 2 <= width / kLanes; c += 2) {
            Lanes low[K], high[K];
            for (int k = 0; k < K; ++k) {
                const Pieces x = Reader::both(key + k * rows.row_bytes, c / 2);
                low[k] = x.low;
                high[k] = x.high;
            }
            add(c, low);
            add(c + 1, high);
        }
    }
#pragma GCC unroll 4
    for (; c < width / kLanes; ++c) {
        Lanes x[K];
        for (int k = 0; k < K; ++k) x[k] = Reader::at(key + k * rows.row_bytes, c);
        add(c, x);
    }
    for (int i = 0; i < Q; ++i) {
        for (int k = 0; k < K; ++k) store_half_sum(halves + (i * kPageTokens + slot + k) * 8, dot[i][k]);
    }
}

template <class Reader, int Q>
void few_scores(const float* q, size_t width, const FewRows& rows, Slots slots, float* halves) {
    uint32_t slot = slots.begin;
    for (; slot + kFewKeys <= slots.end; slot += kFewKeys) {
        prefetch_bytes(rows.next + slot * rows.next_row_bytes, 0, kFewKeys * rows.next_row_bytes);
        few_dots<Reader, Q, kFewKeys>(q, width, rows, slot, halves);
    }
    for (; slot < slots.end; ++slot) few_dots<Reader, Q, 1>(q, width, rows, slot, halves);
}

// Scores of Q queries become weights; their running maximum and sum move on. Step by step for all of them, because each
// step is short and waits for the one before.
template <int Q>
METALLIC_LANES_INLINE void few_softmax(const ScoreRule& rule, const float* halves, Slots slots, size_t query, Work& w,
                                       float* weights) {
    const uint32_t seen = (slots.end == 32 ? ~0u : (1u << slots.end) - 1) & ~((1u << slots.begin) - 1);
    const Mask seen_a = mask_of(seen & 0xffffu), seen_b = mask_of(seen >> 16);
    const Lanes none = set(-kInfinity), zero = set(0.0f);
    Lanes a[Q], b[Q];
    float now[Q], correction[Q], sums[Q];
    for (int i = 0; i < Q; ++i) {
        a[i] = select(seen_a, rule(sum_halves(halves + i * kPageTokens * 8)), none);
        b[i] = select(seen_b, rule(sum_halves(halves + i * kPageTokens * 8 + kLanes * 8)), none);
    }
    for (int i = 0; i < Q; ++i) {
        const float before = w.segment.maximum[query + i];
        const float here = maximum(max(a[i], b[i]));
        now[i] = before > here ? before : here;
        correction[i] = before < now[i] ? exp_of_negative(before - now[i]) : 1.0f;
    }
    for (int i = 0; i < Q; ++i) {
        a[i] = select(seen_a, exp_of_negative(a[i] - set(now[i])), zero);
        b[i] = select(seen_b, exp_of_negative(b[i] - set(now[i])), zero);
        store(weights + i * kPageTokens, a[i]);
        store(weights + i * kPageTokens + kLanes, b[i]);
    }
    for (int i = 0; i < Q; ++i) sums[i] = sum(a[i] + b[i]);
    for (int i = 0; i < Q; ++i) {
        w.segment.maximum[query + i] = now[i];
        w.segment.sum[query + i] = fused(w.segment.sum[query + i], correction[i], sums[i]);
        w.correction[query + i] = correction[i];
    }
}

// acc = acc * correction + weights . values, for D vectors of dimensions from piece c on.
template <class Reader, int Q, int D>
METALLIC_LANES_INLINE void few_sums(const float* weights, const FewRows& rows, Slots slots, size_t c,
                                    const float* correction, size_t width, float* acc) {
    Lanes sums[Q][D];
    for (int i = 0; i < Q; ++i) {
        for (int d = 0; d < D; ++d) sums[i][d] = load(acc + i * width + (c + d) * kLanes) * set(correction[i]);
    }
    const size_t share = rows.next_row_bytes / (width / kLanes);
    for (uint32_t slot = slots.begin; slot < slots.end; ++slot) {
        prefetch_bytes(rows.next + slot * rows.next_row_bytes, c * share, (c + D) * share);
        const uint8_t* value = rows.rows + slot * rows.row_bytes;
        Lanes x[D];
        if constexpr (Reader::kBytes == 0 && D % 2 == 0) {  // c is a multiple of D
            for (int d = 0; d < D; d += 2) {
                const Pieces two = Reader::both(value, (c + d) / 2);
                x[d] = two.low;
                x[d + 1] = two.high;
            }
        } else {
            for (int d = 0; d < D; ++d) x[d] = Reader::at(value, c + d);
        }
        for (int i = 0; i < Q; ++i) {
            const Lanes p = set(weights[i * kPageTokens + slot]);
            for (int d = 0; d < D; ++d) sums[i][d] = fused(p, x[d], sums[i][d]);
        }
    }
    for (int i = 0; i < Q; ++i) {
        for (int d = 0; d < D; ++d) store(acc + i * width + (c + d) * kLanes, sums[i][d]);
    }
}

template <class Reader, int Q>
void few_values(const float* weights, const FewRows& rows, Slots slots, const float* correction, size_t width,
                float* acc) {
    constexpr int D = kFewAccumulators / Q;
    size_t c = 0;
    for (; c + D <= width / kLanes; c += D) few_sums<Reader, Q, D>(weights, rows, slots, c, correction, width, acc);
    for (; c < width / kLanes; ++c) few_sums<Reader, Q, 1>(weights, rows, slots, c, correction, width, acc);
}

// A page's keys and values, each as they lie or as floats.
struct FewPage {
    FewRows keys;
    FewRows values;
};

// Queries [query, query + Q), which see the same slots.
template <int Q>
void few_block(const ScoreRule& rule, const FewPage& page, Slots slots, size_t query, Work& w) {
    const size_t width = w.shape.width;
    float* const halves = w.scores;
    float* const weights = w.scores + 4 * kPageTokens * 8;
    with_reader(page.keys.dtype, [&](auto reader) {
        few_scores<decltype(reader), Q>(w.queries + query * width, width, page.keys, slots, halves);
    });
    few_softmax<Q>(rule, halves, slots, query, w, weights);
    with_reader(page.values.dtype, [&](auto reader) {
        few_values<decltype(reader), Q>(weights, page.values, slots, w.correction + query, width,
                                        w.segment.acc + query * width);
    });
}

inline void few_blocks(const ScoreRule& rule, FewPage& page, Slots slots, size_t query, size_t end, Work& w) {
    while (query < end) {
        const size_t count = end - query < 4 ? end - query : 4;
        if (count == 4) few_block<4>(rule, page, slots, query, w);
        if (count == 3) few_block<3>(rule, page, slots, query, w);
        if (count == 2) few_block<2>(rule, page, slots, query, w);
        if (count == 1) few_block<1>(rule, page, slots, query, w);
        page.keys.next_row_bytes = page.values.next_row_bytes = 0;
        query += count;
    }
}

// Rows in pieces of 16 are read as they lie; blocks, whose pieces cost more, only when they are read once.
inline FewRows few_rows(const AttentionTile& t, const KvRows& rows, const uint8_t* at, const uint8_t* next, Slots slots,
                        const Work& w, float* floats) {
    const bool blocks = rows.dtype == DType::Q8_0 || rows.dtype == DType::Q4_0;
    if (blocks ? w.shape.queries <= 4 : t.head_size % kLanes == 0) {
        return {at, next, rows.dtype, rows.row_bytes, rows.row_bytes};
    }
    widen(rows, at, t.head_size, w.shape.width, slots, floats);
    return {reinterpret_cast<const uint8_t*>(floats), next, DType::F32, w.shape.width * sizeof(float), rows.row_bytes};
}

inline void few_page(const AttentionTile& t, const ScoreRule& rule, const Page& page, Work& w) {
    const Slots any = seen_by_any(t, page.token, 0, t.rows - 1);
    FewPage rows = {
        few_rows(t, t.key_rows, page.keys, page.next_keys, any, w, w.pages),
        few_rows(t, t.value_rows, page.values, page.next_values, any, w, w.pages + kPageTokens * w.shape.width)};
    if (seen_by_all(t, page.token, 0, t.rows - 1).whole()) {
        return few_blocks(rule, rows, {0, kPageTokens}, 0, w.shape.queries, w);
    }
    for (uint32_t row = 0; row < t.rows; ++row) {
        const Slots slots = seen_slots(page.token, t.position + row, t.window);
        const size_t query = size_t{row} * t.group_heads;
        if (!slots.empty()) few_blocks(rule, rows, slots, query, query + t.group_heads, w);
    }
}

inline void few_merge(const Shape& shape, const State& total, const State& part) {
    for (uint32_t query = 0; query < shape.queries; ++query) {
        const float a = total.maximum[query], b = part.maximum[query];
        if (b == -kInfinity) continue;
        const float now = a > b ? a : b;
        const float ca = a < now ? exp_of_negative(a - now) : 1.0f;
        const float cb = b < now ? exp_of_negative(b - now) : 1.0f;
        const bool fresh = a == -kInfinity;
        total.maximum[query] = fresh ? b : now;
        total.sum[query] = fresh ? part.sum[query] : fused(total.sum[query], ca, part.sum[query] * cb);
        const size_t start = query * shape.width;
        for (size_t i = start; i < start + shape.width; i += kLanes) {
            const Lanes x = load(part.acc + i);
            store(total.acc + i, fresh ? x : fused(load(total.acc + i), set(ca), x * set(cb)));
        }
    }
}

inline void few_finish(const AttentionTile& t, const Shape& shape, const State& total) {
    for (uint32_t query = 0; query < shape.queries; ++query) {
        const uint32_t row = query / t.group_heads, head = query % t.group_heads;
        float factor = 1.0f / total.sum[query];
        if (t.sinks != nullptr) {
            const float sink = t.sinks[head], m = total.maximum[query];
            const float now = m > sink ? m : sink;
            const float c = exp_of_negative(m - now);
            factor = c / fused(total.sum[query], c, exp_of_negative(sink - now));
        }
        float* const out = t.out + row * t.out_stride + head * size_t{t.head_size};
        float* const acc = total.acc + query * shape.width;
        if (t.value_rows.rotated) rotate_row(acc, t.head_size);
        uint32_t i = 0;
        for (; i + kLanes <= t.head_size; i += kLanes) store(out + i, load(acc + i) * set(factor));
        if (i < t.head_size) store(out + i, load(acc + i) * set(factor), t.head_size - i);
    }
}

}  // namespace
}  // namespace metallic::cpu
