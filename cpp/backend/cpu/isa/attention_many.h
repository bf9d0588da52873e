#pragma once

#include "backend/cpu/isa/attention_pages.h"

// Attention of many queries (prompts): lanes hold queries. The queries are transposed once, the accumulators stay
// transposed, and a page's keys and values, as floats in cache, serve all queries of the tile by broadcast.
namespace metallic::cpu {
namespace {

inline const float* query_at(const AttentionTile& t, size_t query) {
    return t.q + query / t.group_heads * t.q_stride + query % t.group_heads * size_t{t.head_size};
}

inline void many_begin(const AttentionTile& t, Work& w) {
    const size_t width = w.shape.width;
    alignas(64) float square[16 * kLanes];
    for (size_t first = 0; first < w.shape.held; first += kLanes) {
        for (uint32_t c = 0; c < width; c += kLanes) {
            for (size_t lane = 0; lane < kLanes; ++lane) {
                const bool exists = first + lane < w.shape.queries;
                const float* from = exists ? query_at(t, first + lane) + c : nullptr;
                store(square + lane * kLanes, exists ? load(from, least(kLanes, t.head_size - c)) : set(0.0f));
            }
            transpose(square, kLanes, w.queries + first * width + c * kLanes, kLanes);
        }
        if (t.key_rows.rotated) rotate_sixteen(w.queries + first * width, t.head_size);
    }
}

// V vectors of queries by K keys: what one register tile holds.
template <int V, int K>
struct ScoreTile {
    Lanes at[V][K];
};

// Sums of the tile's products over dimensions lane, lane + 16, ...: one lane of the definition's dot product.
template <int V, int K>
METALLIC_LANES_INLINE ScoreTile<V, K> lane_dots(const float* q, const float* keys, size_t width, size_t lane) {
    ScoreTile<V, K> dots;
    for (int v = 0; v < V; ++v) {
        for (int k = 0; k < K; ++k) dots.at[v][k] = set(0.0f);
    }
    for (size_t d = lane; d < width; d += kLanes) {
        Lanes x[V];
        for (int v = 0; v < V; ++v) x[v] = load(q + v * kLanes * width + d * kLanes);
        for (int k = 0; k < K; ++k) {
            const Lanes y = set(keys[k * width + d]);
            for (int v = 0; v < V; ++v) dots.at[v][k] = fused(x[v], y, dots.at[v][k]);
        }
    }
    return dots;
}
// The tree over those lanes: lanes `lane` and `lane + Step` and what hangs under them.
template <int V, int K, int Step>
METALLIC_LANES_INLINE ScoreTile<V, K> tree_dots(const float* q, const float* keys, size_t width, size_t lane) {
    if constexpr (Step == 16) {
        return lane_dots<V, K>(q, keys, width, lane);
    } else {
        ScoreTile<V, K> left = tree_dots<V, K, Step * 2>(q, keys, width, lane);
        const ScoreTile<V, K> right = tree_dots<V, K, Step * 2>(q, keys, width, lane + Step);
        for (int v = 0; v < V; ++v) {
            for (int k = 0; k < K; ++k) left.at[v][k] = left.at[v][k] + right.at[v][k];
        }
        return left;
    }
}

template <int V>
void many_scores(const float* q, const float* keys, size_t width, float* scores) {
    for (uint32_t slot = 0; slot < kPageTokens; slot += kManyKeys) {
        const ScoreTile<V, kManyKeys> dots = tree_dots<V, kManyKeys, 1>(q, keys + slot * width, width, 0);
        for (int v = 0; v < V; ++v) {
            for (int k = 0; k < kManyKeys; ++k) {
                store(scores + (v * kPageTokens + slot + k) * kLanes, dots.at[v][k]);
            }
        }
    }
}

// The slots that each of 16 queries sees, as floats.
struct LaneSlots {
    Lanes begin;
    Lanes end;
    Mask sees(uint32_t slot) const {
        const Lanes s = set(static_cast<float>(static_cast<int32_t>(slot)));
        return not_less(s, begin) & less(s, end);
    }
};

inline LaneSlots lane_slots(const AttentionTile& t, uint32_t page_token, size_t first_query) {
    alignas(64) float begin[kLanes], end[kLanes];
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const uint32_t row = least(t.rows - 1, static_cast<uint32_t>(first_query + lane) / t.group_heads);
        const Slots slots = seen_slots(page_token, t.position + row, t.window);
        begin[lane] = static_cast<float>(static_cast<int32_t>(slots.begin));
        end[lane] = static_cast<float>(static_cast<int32_t>(slots.end));
    }
    return {load(begin), load(end)};
}

inline constexpr float kUnseen = -1.0f;  // in place of a weight, where the query does not see the key

// Weights of slots `lane` and `lane + 16` take their scores' place; then the tree of their sum.
template <bool kPartial, int Step>
METALLIC_LANES_INLINE Lanes tree_weights(float* scores, Lanes maximum, const LaneSlots& slots, uint32_t lane) {
    if constexpr (Step == 16) {
        Lanes sums[2];
        for (uint32_t half = 0; half < 2; ++half) {
            float* const s = scores + (lane + half * kLanes) * kLanes;
            const Lanes weight = exp_of_negative(load(s) - maximum);
            if constexpr (kPartial) {
                const Mask seen = slots.sees(lane + half * kLanes);
                store(s, select(seen, weight, set(kUnseen)));
                sums[half] = select(seen, weight, set(0.0f));
            } else {
                store(s, weight);
                sums[half] = weight;
            }
        }
        return sums[0] + sums[1];
    } else {
        const Lanes left = tree_weights<kPartial, Step * 2>(scores, maximum, slots, lane);
        return left + tree_weights<kPartial, Step * 2>(scores, maximum, slots, lane + Step);
    }
}

// Sixteen queries' scores become weights; their running maximum and sum move on.
template <bool kPartial>
void many_softmax(const ScoreRule& rule, const LaneSlots& slots, float* scores, float* maximum, float* sum,
                  float* correction) {
    const Lanes before = load(maximum);
    Lanes here = set(-kInfinity);
    for (uint32_t slot = 0; slot < kPageTokens; ++slot) {
        Lanes s = rule(load(scores + slot * kLanes));
        if constexpr (kPartial) s = select(slots.sees(slot), s, set(-kInfinity));
        store(scores + slot * kLanes, s);
        here = max(here, s);
    }
    const Lanes now = max(before, here);
    const Lanes moved = select(less(before, now), exp_of_negative(before - now), set(1.0f));
    store(maximum, now);
    store(correction, moved);
    store(sum, fused(load(sum), moved, tree_weights<kPartial, 1>(scores, now, slots, 0)));
}

// acc = acc * correction + weights . values, for V vectors of queries and D dimensions.
template <int V, int D, bool kPartial>
METALLIC_LANES_INLINE void many_sums(const float* weights, const float* values, size_t width, const float* correction,
                                     float* acc) {
    Lanes sums[V][D];
    for (int v = 0; v < V; ++v) {
        const Lanes c = load(correction + v * kLanes);
        for (int d = 0; d < D; ++d) sums[v][d] = load(acc + (v * width + d) * kLanes) * c;
    }
    for (uint32_t slot = 0; slot < kPageTokens; ++slot) {
        Lanes p[V];
        for (int v = 0; v < V; ++v) p[v] = load(weights + (v * kPageTokens + slot) * kLanes);
        for (int d = 0; d < D; ++d) {
            const Lanes x = set(values[slot * width + d]);
            for (int v = 0; v < V; ++v) {
                const Lanes next = fused(p[v], x, sums[v][d]);
                sums[v][d] = kPartial ? select(not_less(p[v], set(0.0f)), next, sums[v][d]) : next;
            }
        }
    }
    for (int v = 0; v < V; ++v) {
        for (int d = 0; d < D; ++d) store(acc + (v * width + d) * kLanes, sums[v][d]);
    }
}

template <int V, bool kPartial>
void many_values(const float* weights, const float* values, size_t width, const float* correction, float* acc) {
    static_assert(kLanes % kManyDims == 0);
    for (size_t d = 0; d < width; d += kManyDims) {
        many_sums<V, kManyDims, kPartial>(weights, values + d, width, correction, acc + d * kLanes);
    }
}

// How a unit of up to kUnit vectors of queries sees a page.
enum class Sight : uint8_t { none, partly, wholly };

inline Sight unit_sight(const AttentionTile& t, const Work& w, uint32_t page_token, size_t first, size_t vectors) {
    const uint32_t row = static_cast<uint32_t>(first) / t.group_heads;
    const size_t last = first + vectors * kLanes - 1;
    const uint32_t last_row =
        static_cast<uint32_t>(last < w.shape.queries ? last : w.shape.queries - 1) / t.group_heads;
    if (seen_by_any(t, page_token, row, last_row).empty()) return Sight::none;
    return seen_by_all(t, page_token, row, last_row).whole() ? Sight::wholly : Sight::partly;
}

template <int V>
void many_unit_scores(const AttentionTile& t, const ScoreRule& rule, const Page& page, size_t first, Work& w) {
    const Sight sight = unit_sight(t, w, page.token, first, V);
    if (sight == Sight::none) return;
    float* const scores = w.scores + first * kPageTokens;
    many_scores<V>(w.queries + first * w.shape.width, w.pages, w.shape.width, scores);
    for (int v = 0; v < V; ++v) {
        const size_t at = first + v * kLanes;
        float* const s = scores + v * kLanes * kPageTokens;
        float* const maximum = w.segment.maximum + at;
        float* const sum = w.segment.sum + at;
        if (sight == Sight::wholly) {
            many_softmax<false>(rule, {set(0.0f), set(0.0f)}, s, maximum, sum, w.correction + at);
        } else {
            many_softmax<true>(rule, lane_slots(t, page.token, at), s, maximum, sum, w.correction + at);
        }
    }
}

template <int V>
void many_unit_values(const AttentionTile& t, const Page& page, size_t first, Work& w) {
    const Sight sight = unit_sight(t, w, page.token, first, V);
    if (sight == Sight::none) return;
    const float* const weights = w.scores + first * kPageTokens;
    float* const acc = w.segment.acc + first * w.shape.width;
    (sight == Sight::wholly ? many_values<V, false> : many_values<V, true>)(weights, w.pages, w.shape.width,
                                                                            w.correction + first, acc);
}

inline void many_page(const AttentionTile& t, const ScoreRule& rule, const Page& page, Work& w) {
    constexpr size_t kStep = kUnit * kLanes;
    const Slots slots = seen_by_any(t, page.token, 0, t.rows - 1);
    size_t first = 0;
    widen(t.key_rows, page.keys, t.head_size, w.shape.width, slots, w.pages);
    for (; first + kStep <= w.shape.held; first += kStep) many_unit_scores<kUnit>(t, rule, page, first, w);
    for (; first < w.shape.held; first += kLanes) many_unit_scores<1>(t, rule, page, first, w);
    widen(t.value_rows, page.values, t.head_size, w.shape.width, slots, w.pages);
    for (first = 0; first + kStep <= w.shape.held; first += kStep) many_unit_values<kUnit>(t, page, first, w);
    for (; first < w.shape.held; first += kLanes) many_unit_values<1>(t, page, first, w);
}

inline void many_merge(const Shape& shape, const State& total, const State& part) {
    const Lanes nothing = set(-kInfinity), one = set(1.0f);
    for (size_t first = 0; first < shape.held; first += kLanes) {
        const Lanes a = load(total.maximum + first), b = load(part.maximum + first);
        const Mask absent = equal(b, nothing), fresh = equal(a, nothing);
        const auto merged = [&](Lanes before, Lanes here, Lanes after) {
            return select(absent, before, select(fresh, here, after));
        };
        const Lanes now = max(a, b);
        const Lanes ca = select(less(a, now), exp_of_negative(a - now), one);
        const Lanes cb = select(less(b, now), exp_of_negative(b - now), one);
        const Lanes sum = load(total.sum + first), more = load(part.sum + first);
        store(total.maximum + first, merged(a, b, now));
        store(total.sum + first, merged(sum, more, fused(sum, ca, more * cb)));
        const size_t start = first * shape.width;
        for (size_t i = start; i < start + shape.width * kLanes; i += kLanes) {
            const Lanes x = load(total.acc + i), y = load(part.acc + i);
            store(total.acc + i, merged(x, y, fused(x, ca, y * cb)));
        }
    }
}

inline Lanes many_factors(const AttentionTile& t, const Shape& shape, const State& total, size_t first) {
    const Lanes sum = load(total.sum + first);
    if (t.sinks == nullptr) return set(1.0f) / sum;
    alignas(64) float sinks[kLanes] = {};
    for (size_t lane = 0; lane < kLanes && first + lane < shape.queries; ++lane) {
        sinks[lane] = t.sinks[(first + lane) % t.group_heads];
    }
    const Lanes sink = load(sinks), m = load(total.maximum + first);
    const Lanes now = max(m, sink);
    const Lanes c = exp_of_negative(m - now);
    return c / fused(sum, c, exp_of_negative(sink - now));
}

inline void many_finish(const AttentionTile& t, const Shape& shape, const State& total) {
    alignas(64) float square[16 * kLanes];
    for (size_t first = 0; first < shape.held; first += kLanes) {
        alignas(64) float factors[kLanes];
        store(factors, many_factors(t, shape, total, first));
        if (t.value_rows.rotated) rotate_sixteen(total.acc + first * shape.width, t.head_size);
        for (uint32_t c = 0; c < t.head_size; c += kLanes) {
            transpose(total.acc + first * shape.width + c * kLanes, kLanes, square, kLanes);
            for (size_t lane = 0; lane < kLanes && first + lane < shape.queries; ++lane) {
                const size_t query = first + lane;
                float* const out =
                    t.out + query / t.group_heads * t.out_stride + query % t.group_heads * size_t{t.head_size} + c;
                store(out, load(square + lane * kLanes) * set(factors[lane]), least(kLanes, t.head_size - c));
            }
        }
    }
}

}  // namespace
}  // namespace metallic::cpu
