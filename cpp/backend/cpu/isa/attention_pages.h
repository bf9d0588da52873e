#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/isa/kv_rotation.h"
#include "backend/cpu/isa/vector_kernels.h"
#include "backend/cpu/isa/vector_math.h"
#include "backend/kv_layout.h"
#include "core/blocks.h"

// What both attention paths share: which slots a query sees, how rows of a page become floats, and the running softmax.
// Included after one of vector_lanes_*.h.
//
// The result of one query, in exact order: a score is the dot product over 16 lanes and their tree. History goes by
// segments, a segment by pages, ascending. A page's visible keys give m' = max(m, scores), c = e^(m - m'),
// p = e^(score - m'), l' = l c + (sum of p over 16 lanes and their tree), acc' = acc c, then one fused multiply-add of
// p and value per visible key, ascending. Segments merge in the same way, and sinks join last.
// Where rows are rotated, queries are rotated before and sums after that.
// (Online softmax: Milakov and Gimelshein, 2018; pages and tiles: Dao et al., FlashAttention, 2022.)
namespace metallic::cpu {
namespace {

inline constexpr uint32_t kLanes = 16;

inline uint32_t least(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
inline size_t padded(size_t n) {
    return (n + kLanes - 1) / kLanes * kLanes;
}

// Slots [begin, end) of a page.
struct Slots {
    uint32_t begin;
    uint32_t end;
    bool empty() const { return begin >= end; }
    bool whole() const { return begin == 0 && end == kPageTokens; }
};

inline uint32_t oldest_seen(uint32_t position, uint32_t window) {
    return window != 0 && position >= window ? position - window + 1 : 0;
}
inline Slots seen_slots(uint32_t page_token, uint32_t position, uint32_t window) {
    if (position < page_token) return {0, 0};
    const uint32_t oldest = oldest_seen(position, window);
    const uint32_t begin = oldest <= page_token ? 0 : oldest - page_token;
    return begin >= kPageTokens ? Slots{0, 0} : Slots{begin, least(kPageTokens, position - page_token + 1)};
}
// The slots that some row of [first, last] sees, and those that every one sees.
inline Slots seen_by_any(const AttentionTile& t, uint32_t page_token, uint32_t first, uint32_t last) {
    const uint32_t oldest = oldest_seen(t.position + first, t.window), newest = t.position + last;
    if (newest < page_token || oldest >= page_token + kPageTokens) return {0, 0};
    return {oldest <= page_token ? 0 : oldest - page_token, least(kPageTokens, newest - page_token + 1)};
}
inline Slots seen_by_all(const AttentionTile& t, uint32_t page_token, uint32_t first, uint32_t last) {
    const Slots a = seen_slots(page_token, t.position + first, t.window);
    const Slots b = seen_slots(page_token, t.position + last, t.window);
    return a.empty() || b.empty() ? Slots{0, 0} : Slots{b.begin, a.end};
}

struct Page {
    uint32_t token;  // of slot 0
    const uint8_t* keys;
    const uint8_t* values;
    const uint8_t* next_keys;  // of the page that will be read next, or of this one
    const uint8_t* next_values;
};

// The raw dot product becomes a score.
struct ScoreRule {
    explicit ScoreRule(const AttentionTile& t)
        : factor(set(t.softcap > 0 ? t.scale / t.softcap : t.scale)), cap(set(t.softcap)), capped(t.softcap > 0) {}
    Lanes operator()(Lanes dot) const {
        const Lanes s = dot * factor;
        return capped ? cap * tanh_of(s) : s;
    }
    Lanes factor;
    Lanes cap;
    bool capped;
};

// ---- rows of a page as floats ---------------------------------------------------------------------------------

struct ReadF32 {
    static constexpr uint32_t kBytes = 4;
    static Lanes at(const uint8_t* row, size_t piece) { return load(reinterpret_cast<const float*>(row) + 16 * piece); }
};
struct ReadF16 {
    static constexpr uint32_t kBytes = 2;
    static Lanes at(const uint8_t* row, size_t piece) { return from_f16(row + 32 * piece); }
};
struct ReadBF16 {
    static constexpr uint32_t kBytes = 2;
    static Lanes at(const uint8_t* row, size_t piece) { return from_bf16(row + 32 * piece); }
};
// Blocks are two pieces, which cost less together. Scale times quant is exact: 11 and 7 significant bits, or 11 and 4.
struct Pieces {
    Lanes low;
    Lanes high;
};
struct ReadQ8_0 {
    static constexpr uint32_t kBytes = 0;
    static Pieces both(const uint8_t* row, size_t block) {
        const uint8_t* at = row + block * sizeof(BlockQ8_0);
        const Lanes scale = set_f16(at);
        return {from_i8(at + sizeof(half_t)) * scale, from_i8(at + sizeof(half_t) + 16) * scale};
    }
    static Lanes at(const uint8_t* row, size_t piece) {
        const uint8_t* block = row + piece / 2 * sizeof(BlockQ8_0);
        return from_i8(block + sizeof(half_t) + piece % 2 * 16) * set_f16(block);
    }
};
struct ReadQ4_0 {
    static constexpr uint32_t kBytes = 0;
    static Pieces both(const uint8_t* row, size_t block) {
        const uint8_t* at = row + block * sizeof(BlockQ4_0);
        const Lanes scale = set_f16(at);
        return {from_low_nibbles(at + sizeof(half_t)) * scale, from_high_nibbles(at + sizeof(half_t)) * scale};
    }
    static Lanes at(const uint8_t* row, size_t piece) {
        const uint8_t* block = row + piece / 2 * sizeof(BlockQ4_0);
        const uint8_t* quants = block + sizeof(half_t);
        return (piece % 2 == 0 ? from_low_nibbles(quants) : from_high_nibbles(quants)) * set_f16(block);
    }
};

// Calls f with the reader of this type.
template <class F>
METALLIC_LANES_INLINE void with_reader(DType dtype, F f) {
    switch (dtype) {
        case DType::F32:
            return f(ReadF32{});
        case DType::F16:
            return f(ReadF16{});
        case DType::BF16:
            return f(ReadBF16{});
        case DType::Q4_0:
            return f(ReadQ4_0{});
        default:
            return f(ReadQ8_0{});
    }
}

// Rows to floats, `width` apart, padded with zeros from head_size; those outside `slots` become zeros.
template <class Reader>
void widen_rows(const uint8_t* rows, uint32_t row_bytes, uint32_t head_size, size_t width, Slots slots, float* out) {
    for (uint32_t k = 0; k < kPageTokens; ++k, out += width) {
        if (k < slots.begin || k >= slots.end) {
            __builtin_memset(out, 0, width * sizeof(float));
            continue;
        }
        const uint8_t* row = rows + size_t{k} * row_bytes;
        const size_t pieces = Reader::kBytes == 0 ? width / kLanes : head_size / kLanes;
        size_t c = 0;
        if constexpr (Reader::kBytes == 0) {
            for (; c + 2 <= pieces; c += 2) {
                const Pieces x = Reader::both(row, c / 2);
                store(out + c * kLanes, x.low);
                store(out + (c + 1) * kLanes, x.high);
            }
        }
        for (; c < pieces; ++c) store(out + c * kLanes, Reader::at(row, c));
        const uint32_t left = head_size % kLanes;
        if (Reader::kBytes == 0 || left == 0) continue;
        uint8_t piece[64] = {};
        __builtin_memcpy(piece, row + pieces * kLanes * Reader::kBytes, left * Reader::kBytes);
        store(out + pieces * kLanes, Reader::at(piece, 0));
    }
}

inline void widen(const KvRows& rows, const uint8_t* at, uint32_t head_size, size_t width, Slots slots, float* out) {
    with_reader(rows.dtype,
                [&](auto reader) { widen_rows<decltype(reader)>(at, rows.row_bytes, head_size, width, slots, out); });
}

// ---- state ----------------------------------------------------------------------------------------------------

// The running softmax of a tile's queries (query = row * group_heads + head). Many queries: 16 to a vector, acc is
// [queries / 16][width][16]. A few: acc is [queries][width].
struct State {
    float* acc;
    float* maximum;  // of the scores
    float* sum;      // of e^(score - maximum)
};

// From this many queries on, lanes hold queries; below it, they hold dimensions. The bits are the same.
inline constexpr uint32_t kManyQueries = 13;

struct Shape {
    Shape(uint32_t rows, uint32_t group_heads, uint32_t head_size)
        : queries(rows * group_heads),
          many(queries >= kManyQueries),
          held(many ? padded(queries) : queries),
          width(padded(head_size)) {}
    explicit Shape(const AttentionTile& t) : Shape(t.rows, t.group_heads, t.head_size) {}

    size_t state_floats() const { return held * width + 2 * padded(held); }
    State state(float* at) const {
        float* const numbers = at + held * width;
        return {at, numbers, numbers + padded(held)};
    }
    void clear(const State& s) const {
        for (size_t i = 0; i < held * width; i += kLanes) store(s.acc + i, set(0.0f));
        for (size_t i = 0; i < padded(held); i += kLanes) {
            store(s.maximum + i, set(-kInfinity));
            store(s.sum + i, set(0.0f));
        }
    }

    uint32_t queries;
    bool many;
    size_t held;   // queries that have storage
    size_t width;  // head size in whole vectors
};

// Everything a tile needs while it works, carved from the caller's scratch.
struct Work {
    Work(const AttentionTile& t, void* scratch) : shape(t) {
        float* at = static_cast<float*>(scratch);
        const auto take = [&at](size_t floats) {
            float* const taken = at;
            at += floats;
            return taken;
        };
        queries = take(shape.held * shape.width);
        pages = take(2 * kPageTokens * shape.width);
        scores = take(score_floats(shape));
        correction = take(padded(shape.held));
        total = shape.state(take(shape.state_floats()));
        segment = shape.state(take(shape.state_floats()));
    }
    // More queries never take less.
    static size_t score_floats(const Shape& shape) {
        const size_t few = 4 * kPageTokens * 9, many = shape.held * kPageTokens;
        return shape.many && many > few ? many : few;
    }
    static size_t floats(const Shape& s) {
        return s.held * s.width + 2 * kPageTokens * s.width + score_floats(s) + padded(s.held) + 2 * s.state_floats();
    }

    Shape shape;
    float* queries;     // as State::acc
    float* pages;       // one page's keys as floats (and after them its values, for a few queries)
    float* scores;      // many: [queries / 16][32][16]. A few: [4][32][8] halves of dot products, then [4][32]
    float* correction;  // of the accumulators, in the present page
    State total, segment;
};

}  // namespace
}  // namespace metallic::cpu
