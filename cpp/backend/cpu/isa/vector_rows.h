#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cpu/isa/kv_rotation.h"
#include "backend/cpu/isa/vector_kernels.h"
#include "backend/cpu/isa/vector_math.h"
#include "core/blocks.h"

// Kernels on rows of floats. Included after one of vector_lanes_*.h.
namespace metallic::cpu {
namespace {

// Calls f(offset, io) for each sixteen elements; io loads and stores all of them, or what the last piece has.
struct Whole {
    static Lanes get(const float* p) { return load(p); }
    static void put(float* p, Lanes x) { store(p, x); }
};
struct Part {
    size_t n;
    Lanes get(const float* p) const { return load(p, n); }
    void put(float* p, Lanes x) const { store(p, x, n); }
};
template <class F>
METALLIC_LANES_INLINE void for_pieces(size_t n, F f) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) f(i, Whole{});
    if (i < n) f(i, Part{n - i});
}

void rms_norm(const float* x, const float* weight, const float* residual, float epsilon, size_t n, float* out) {
    Lanes squares = set(0.0f);
    for_pieces(n, [&](size_t i, auto io) {
        const Lanes v = io.get(x + i);
        squares = fused(v, v, squares);
    });
    const Lanes factor = set(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + epsilon));
    for_pieces(n, [&](size_t i, auto io) {
        const Lanes v = io.get(x + i) * factor;
        if (weight != nullptr && residual != nullptr) {
            io.put(out + i, fused(v, io.get(weight + i), io.get(residual + i)));
        } else if (weight != nullptr) {
            io.put(out + i, v * io.get(weight + i));
        } else {
            io.put(out + i, residual != nullptr ? v + io.get(residual + i) : v);
        }
    });
}

void add(const float* a, const float* b, size_t n, float* out) {
    for_pieces(n, [&](size_t i, auto io) { io.put(out + i, io.get(a + i) + io.get(b + i)); });
}

void scale(const float* x, float factor, size_t n, float* out) {
    for_pieces(n, [&](size_t i, auto io) { io.put(out + i, io.get(x + i) * set(factor)); });
}

void softcap(const float* x, float cap, size_t n, float* out) {
    const Lanes limit = set(cap);
    for_pieces(n, [&](size_t i, auto io) { io.put(out + i, limit * tanh_of(io.get(x + i) / limit)); });
}

template <class Function>
void gated(const float* gate, const float* up, size_t n, float* out) {
    for_pieces(n, [&](size_t i, auto io) { io.put(out + i, Function::of(io.get(gate + i)) * io.get(up + i)); });
}

void gated_activation(uint8_t activation, const float* gate, const float* up, size_t n, float* out) {
    switch (activation) {
        case 0:
            return gated<Silu>(gate, up, n, out);
        case 1:
            return gated<Gelu>(gate, up, n, out);
        case 2:
            return gated<GeluTanh>(gate, up, n, out);
        default:
            return gated<Relu>(gate, up, n, out);
    }
}

void weighted_sum(const float* rows, size_t stride, const float* weights, size_t count, const float* residual, size_t n,
                  float* out) {
    for_pieces(n, [&](size_t i, auto io) {
        Lanes total = residual != nullptr ? io.get(residual + i) : set(0.0f);
        for (size_t r = 0; r < count; ++r) total = fused(set(weights[r]), io.get(rows + r * stride + i), total);
        io.put(out + i, total);
    });
}

// (a, b) turned by an angle: (a cos - b sin, b cos + a sin).
inline void rotate_halves(float* x, size_t half, const float* cos, const float* sin) {
    for_pieces(half, [&](size_t i, auto io) {
        const Lanes a = io.get(x + i), b = io.get(x + half + i);
        const Lanes c = io.get(cos + i), s = io.get(sin + i);
        io.put(x + i, fused(a, c, set(0.0f) - b * s));
        io.put(x + half + i, fused(b, c, a * s));
    });
}
inline void rotate_pairs(float* x, size_t half, const float* cos, const float* sin) {
    const auto turned = [](Lanes v, Lanes c, Lanes s) { return fused(v, c, negate_even(swap_pairs(v) * s)); };
    size_t i = 0;
    for (; i + 8 <= half; i += 8) store(x + 2 * i, turned(load(x + 2 * i), load_pairs(cos + i), load_pairs(sin + i)));
    if (i == half) return;
    float c[8] = {}, s[8] = {};
    const size_t left = half - i;
    __builtin_memcpy(c, cos + i, left * sizeof(float));
    __builtin_memcpy(s, sin + i, left * sizeof(float));
    store(x + 2 * i, turned(load(x + 2 * i, 2 * left), load_pairs(c), load_pairs(s)), 2 * left);
}

void rope(float* x, size_t heads, size_t head_size, size_t dims, bool neox, const float* cos, const float* sin) {
    for (size_t h = 0; h < heads; ++h) {
        (neox ? rotate_halves : rotate_pairs)(x + h * head_size, dims / 2, cos, sin);
    }
}

void softmax(float* x, size_t n) {
    Lanes largest = set(-kInfinity);
    for_pieces(n, [&](size_t i, auto io) {
        // Absent lanes read as 0: replaced by the piece's first element, so that they cannot win.
        const Lanes present = io.get(x + i);
        if constexpr (sizeof(io) == sizeof(Part)) {
            largest = max(largest, select(mask_of((1u << io.n) - 1), present, set(x[i])));
        } else {
            largest = max(largest, present);
        }
    });
    const Lanes top = set(maximum(largest));
    Lanes total = set(0.0f);
    for_pieces(n, [&](size_t i, auto io) {
        const Lanes e = exp_of_negative(io.get(x + i) - top);
        io.put(x + i, e);
        total = total + io.get(x + i);
    });
    const Lanes denominator = set(sum(total));
    for_pieces(n, [&](size_t i, auto io) { io.put(x + i, io.get(x + i) / denominator); });
}

// ---- rows of the cache ----------------------------------------------------------------------------------------

inline Lanes saturate(Lanes x, float limit) {  // NaNs stay: max and min give their second where either is one
    return min(set(limit), max(set(-limit), x));
}
struct StoreF32 {
    static constexpr size_t kBytes = 4;
    static void put(void* p, Lanes x) { store(static_cast<float*>(p), x); }
};
struct StoreF16 {
    static constexpr size_t kBytes = 2;
    static void put(void* p, Lanes x) { to_f16(p, saturate(x, 65504.0f)); }
};
struct StoreBF16 {
    static constexpr size_t kBytes = 2;
    static void put(void* p, Lanes x) { to_bf16(p, saturate(x, 0x1.fep127f)); }
};

template <class Store>
void store_row(const float* x, size_t n, uint8_t* out) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) Store::put(out + i * Store::kBytes, load(x + i));
    if (i == n) return;
    uint8_t piece[16 * Store::kBytes];
    Store::put(piece, load(x + i, n - i));
    __builtin_memcpy(out + i * Store::kBytes, piece, (n - i) * Store::kBytes);
}

// The quants of a block, its elements over `scale` in [lowest, highest], and the scale as F16; those of a block with a
// NaN are 0, and its scale is a NaN.
struct Quants {
    Quants(Lanes x, Lanes y, Lanes scale, float lowest, float highest, uint8_t* stored_scale) {
        // Below the smallest F16 the stored scale is 0, whatever the quants; so a reciprocal that overflows is not
        // needed.
        const Lanes inverse = select(less(absolute(scale), set(0x1p-30f)), set(0.0f), set(1.0f) / scale);
        const Lanes magic = set(0x1.8p23f);
        const Mask sound = equal(x, x) & equal(y, y);
        const float nans = sum(select(sound, set(0.0f), set(1.0f)));
        const Mask all_sound = equal(set(nans), set(0.0f));
        const auto quants = [&](Lanes v) {
            const Lanes inside = min(set(highest), max(set(lowest), v * inverse));
            return select(all_sound, (inside + magic) - magic, set(0.0f));
        };
        low = quants(x);
        high = quants(y);
        uint8_t halves[32];
        to_f16(halves, select(all_sound, scale, set(__builtin_nanf(""))));
        __builtin_memcpy(stored_scale, halves, sizeof(half_t));
    }
    Lanes low, high;
};

struct StoreQ8_0 {
    static constexpr size_t kBytes = sizeof(BlockQ8_0);
    static void put(uint8_t* out, Lanes low, Lanes high) {
        const Lanes scale = min(set(65504.0f), set(maximum(max(absolute(low), absolute(high))) / 127.0f));
        const Quants quants(low, high, scale, -127.0f, 127.0f, out);
        to_i8(out + 2, quants.low);
        to_i8(out + 18, quants.high);
    }
};
struct StoreQ4_0 {
    static constexpr size_t kBytes = sizeof(BlockQ4_0);
    static void put(uint8_t* out, Lanes low, Lanes high) {
        const Lanes zero = set(0.0f);
        const float most = maximum(max(max(low, high), zero));
        const float least = -maximum(max(max(zero - low, zero - high), zero));
        const Lanes scale = saturate(set((most > -least ? most : least) * -0.125f), 65504.0f);
        const Quants quants(low, high, scale, -8.0f, 7.0f, out);
        to_nibbles(out + 2, quants.low, quants.high);
    }
};

template <class Store>
void store_blocks(bool rotated, const float* x, size_t n, uint8_t* out) {
    for (size_t i = 0; i < n; i += kBlock, out += Store::kBytes) {
        const size_t left = n - i;
        if (left < kBlock) {
            alignas(64) float rest[kBlock] = {};
            __builtin_memcpy(rest, x + i, left * sizeof(float));
            if (rotated) rotate_rest<OneRow>(rest, left);
            return Store::put(out, load(rest), load(rest + 16));
        }
        Lanes low = load(x + i), high = load(x + i + 16);
        if (rotated) rotate_block(low, high);
        Store::put(out, low, high);
    }
}

void store_kv(const KvRows& rows, const float* x, size_t n, void* out) {
    uint8_t* bytes = static_cast<uint8_t*>(out);
    switch (rows.dtype) {
        case DType::F32:
            return store_row<StoreF32>(x, n, bytes);
        case DType::F16:
            return store_row<StoreF16>(x, n, bytes);
        case DType::BF16:
            return store_row<StoreBF16>(x, n, bytes);
        case DType::Q4_0:
            return store_blocks<StoreQ4_0>(rows.rotated, x, n, bytes);
        default:
            return store_blocks<StoreQ8_0>(rows.rotated, x, n, bytes);
    }
}

}  // namespace
}  // namespace metallic::cpu
