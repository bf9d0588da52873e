#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "backend/cpu/isa/select.h"
#include "backend/cpu/isa/vector_kernels.h"
#include "backend/kv_rows.h"

// A cache of pages scattered in memory, attention over it, and attention as its definition says, in double precision.
namespace metallic::cpu::testing {

struct Free {
    void operator()(void* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<uint8_t[], Free>;
inline Bytes aligned_bytes(size_t bytes) {
    return Bytes(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
}

inline std::vector<float> random_floats(std::mt19937& random, size_t n, float deviation = 1.0f) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> x(n);
    for (float& v : x) v = normal(random);
    return x;
}

struct Problem {
    KvPair types;
    uint32_t tokens = 1;  // in the cache; the queries are the last of them
    uint32_t rows = 1;
    uint32_t group_heads = 1;
    uint32_t head_size = 64;
    uint32_t window = 0;
    float softcap = 0;
    bool sinks = false;
    uint32_t layers = 1, layer = 0;
    uint32_t kv_heads = 1, kv_head = 0;
    float deviation = 1.0f;  // of keys and queries
};

inline std::string describe(const Problem& p) {
    return std::string(dtype_info(p.types.keys).name) + "/" + std::string(dtype_info(p.types.values).name) +
           " tokens " + std::to_string(p.tokens) + " rows " + std::to_string(p.rows) + " group " +
           std::to_string(p.group_heads) + " head " + std::to_string(p.head_size) + " window " +
           std::to_string(p.window) + " softcap " + std::to_string(p.softcap) + (p.sinks ? " sinks" : "");
}

class Cache {
  public:
    Cache(const Problem& problem, std::mt19937& random) : p(problem) {
        layout = KvLayout::of({p.window, p.kv_heads, p.head_size, p.layers}, p.types);
        const uint32_t position = p.tokens - p.rows;
        const uint32_t oldest = p.window != 0 && position >= p.window ? position - p.window + 1 : 0;
        first_page = oldest / kPageTokens;
        const uint32_t count = (p.tokens + kPageTokens - 1) / kPageTokens - first_page;
        memory = aligned_bytes(count * layout.page_bytes);
        std::memset(memory.get(), 0xff, count * layout.page_bytes);  // NaNs in every type
        std::vector<uint32_t> order(count);
        std::iota(order.begin(), order.end(), 0u);
        std::shuffle(order.begin(), order.end(), random);
        for (const uint32_t place : order) {
            pages.push_back(reinterpret_cast<uintptr_t>(memory.get() + place * layout.page_bytes));
        }
        // Tokens that no query may see stay NaN.
        for (uint32_t token = oldest; token < p.tokens; ++token) {
            for (const KvSide side : {KvSide::keys, KvSide::values}) {
                const auto x = random_floats(random, p.head_size, side == KvSide::keys ? p.deviation : 1);
                write_kv_row(layout, side, x.data(), reinterpret_cast<std::byte*>(row(token, side)));
            }
        }
        q = random_floats(random, size_t{p.rows} * q_stride(), p.deviation);
        sinks = random_floats(random, p.group_heads, 2.0f);
    }

    uint8_t* row(uint32_t token, KvSide side) const {
        uint8_t* page = reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(pages[token / kPageTokens - first_page]));
        return page + layout.at(side, p.layer, p.kv_head) + size_t{token % kPageTokens} * layout.rows(side).row_bytes;
    }
    std::vector<float> elements(uint32_t token, KvSide side) const {
        std::vector<float> x(p.head_size);
        read_kv_row(layout, side, reinterpret_cast<const std::byte*>(row(token, side)), x.data());
        return x;
    }
    size_t q_stride() const { return size_t{p.group_heads} * p.head_size + 3; }
    size_t out_stride() const { return size_t{p.group_heads} * p.head_size + 1; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(p.head_size)); }

    // Rows [first, first + rows) of heads [head, head + heads).
    AttentionTile tile(uint32_t first, uint32_t rows, uint32_t head, uint32_t heads, std::vector<float>& out) const {
        AttentionTile t{};
        t.q = q.data() + first * q_stride() + size_t{head} * p.head_size;
        t.q_stride = q_stride();
        t.out = out.data() + first * out_stride() + size_t{head} * p.head_size;
        t.out_stride = out_stride();
        t.rows = rows;
        t.position = p.tokens - p.rows + first;
        t.group_heads = heads;
        t.head_size = p.head_size;
        t.scale = scale();
        t.softcap = p.softcap;
        t.window = p.window;
        t.sinks = p.sinks ? sinks.data() + head : nullptr;
        t.key_rows = layout.key_rows;
        t.value_rows = layout.value_rows;
        t.pages = pages.data();
        t.first_page = first_page;
        t.keys_offset = layout.keys(p.layer, p.kv_head);
        t.values_offset = layout.values(p.layer, p.kv_head);
        return t;
    }
    std::vector<float> no_output() const { return std::vector<float>(p.rows * out_stride(), -12345.0f); }

    // In tiles of `rows` rows and `heads` heads.
    std::vector<float> attend(const VectorKernels& kernels, uint32_t rows, uint32_t heads) const {
        std::vector<float> out = no_output();
        for (uint32_t first = 0; first < p.rows; first += rows) {
            for (uint32_t head = 0; head < p.group_heads; head += heads) {
                const AttentionTile t =
                    tile(first, std::min(rows, p.rows - first), head, std::min(heads, p.group_heads - head), out);
                const size_t bytes = kernels.attention_scratch_bytes(t.rows, t.group_heads, t.head_size);
                const Bytes scratch = aligned_bytes(bytes);
                std::memset(scratch.get(), 0xff, bytes);  // what is not written must not be used
                kernels.attention(t, scratch.get());
            }
        }
        return out;
    }
    std::vector<float> attend(const VectorKernels& kernels) const { return attend(kernels, p.rows, p.group_heads); }

    // In segments, computed in descending order.
    std::vector<float> attend_segments(const VectorKernels& kernels) const {
        std::vector<float> out = no_output();
        const AttentionTile t = tile(0, p.rows, 0, p.group_heads, out);
        const AttentionSegments segments = attention_segments(t.position, t.rows, t.window);
        const uint32_t count = segments.last - segments.first + 1;
        const size_t floats = kernels.attention_partial_floats(t.rows, t.group_heads, t.head_size);
        const Bytes partials = aligned_bytes(count * floats * sizeof(float));
        float* const at = reinterpret_cast<float*>(partials.get());
        const Bytes scratch = aligned_bytes(kernels.attention_scratch_bytes(t.rows, t.group_heads, t.head_size));
        for (uint32_t i = count; i-- > 0;) {
            kernels.attention_segment(t, segments.first + i, at + i * floats, scratch.get());
        }
        kernels.attention_merge(t, at, count);
        return out;
    }

    const Problem p;
    KvLayout layout;
    Bytes memory;
    uint32_t first_page = 0;
    std::vector<uint64_t> pages;
    std::vector<float> q, sinks;
};

// One query's output in double precision, and how far from it single precision may be.
struct Reference {
    std::vector<double> out;
    std::vector<double> tolerance;
};

inline double norm(std::span<const float> x) {
    double squares = 0;
    for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
    return std::sqrt(squares);
}

inline Reference reference(const Cache& c, uint32_t row, uint32_t head) {
    const Problem& p = c.p;
    const float* q = c.q.data() + row * c.q_stride() + size_t{head} * p.head_size;
    const uint32_t position = p.tokens - p.rows + row;
    const uint32_t oldest = p.window != 0 && position >= p.window ? position - p.window + 1 : 0;
    constexpr double kUnit = 0x1p-24;  // of a single rounding
    std::vector<double> scores;
    double score_error = 0;
    for (uint32_t token = oldest; token <= position; ++token) {
        const std::vector<float> key = c.elements(token, KvSide::keys);
        double dot = 0, magnitude = 0;
        for (uint32_t d = 0; d < p.head_size; ++d) {
            const double product = static_cast<double>(q[d]) * static_cast<double>(key[d]);
            dot += product;
            magnitude += std::abs(product);
        }
        // A rotation rounds each element five times, and once by its factor, in parts of its block.
        if (c.layout.key_rows.rotated) magnitude = 4 * norm({q, p.head_size}) * norm(key);
        double s = dot * c.scale();
        // A chain of head_size / 16 roundings and four of the tree; then scaling, and tanh (2 ulp) and its factors.
        score_error = std::max(score_error, (p.head_size / 16 + 6) * kUnit * magnitude * c.scale());
        if (p.softcap > 0) {
            s = p.softcap * std::tanh(s / p.softcap);
            score_error =
                std::max(score_error, (p.head_size / 16 + 8) * kUnit * magnitude * c.scale() + 8 * kUnit * p.softcap);
        }
        scores.push_back(s);
    }
    double largest = *std::max_element(scores.begin(), scores.end());
    if (p.sinks) largest = std::max<double>(largest, c.sinks[head]);
    double sum = p.sinks ? std::exp(c.sinks[head] - largest) : 0;
    double spread = 0;
    std::vector<double> out(p.head_size), absolute(p.head_size);
    for (size_t i = 0; i < scores.size(); ++i) {
        const double weight = std::exp(scores[i] - largest);
        spread = std::max(spread, std::min(88.0, largest - scores[i]));
        sum += weight;
        const std::vector<float> value = c.elements(oldest + static_cast<uint32_t>(i), KvSide::values);
        const double whole = c.layout.value_rows.rotated ? 2 * norm(value) : 0;
        for (uint32_t d = 0; d < p.head_size; ++d) {
            const double product = weight * static_cast<double>(value[d]);
            out[d] += product;
            absolute[d] += std::abs(product) + weight * whole;
        }
    }
    // Relative error of a weight: that of its score and the maximum, of their difference, and of the exponential. Sums
    // are chains of at most a segment's keys, rescaled once a page.
    const double chain =
        std::min<double>(static_cast<double>(scores.size()), kAttentionSegment) * (1 + 3.0 / kPageTokens) +
        4.0 * static_cast<double>(scores.size()) / kAttentionSegment + 16;
    const double relative = 2 * (2 * score_error + (spread + 4) * kUnit + chain * kUnit);
    Reference r{out, absolute};
    for (double& x : r.out) x /= sum;
    for (double& x : r.tolerance) x = x / sum * relative + 1e-37;
    return r;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace metallic::cpu::testing
