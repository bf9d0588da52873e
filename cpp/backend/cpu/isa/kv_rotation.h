#pragma once

#include <cstddef>

#include "core/blocks.h"

// The transform of rotated rows, rotate_kv_row of kv_rows.h, bit for bit. Included after one of vector_lanes_*.h.
namespace metallic::cpu {
namespace {

inline constexpr float kRunFactors[] = {1.0f, 0x1.6a09e6p-1f, 0.5f, 0x1.6a09e6p-2f, 0.25f, 0x1.6a09e6p-3f};  // 2^(-i/2)

// Sixteen rows side by side, an element of each in the lanes of a vector, or one row, an element after the other.
struct SixteenRows {
    using Element = Lanes;
    static constexpr size_t kFloats = 16;
    static Lanes get(const float* p) { return load(p); }
    static void put(float* p, Lanes x) { store(p, x); }
    static Lanes times(Lanes x, float factor) { return x * set(factor); }
};
struct OneRow {
    using Element = float;
    static constexpr size_t kFloats = 1;
    static float get(const float* p) { return *p; }
    static void put(float* p, float x) { *p = x; }
    static float times(float x, float factor) { return x * factor; }
};

template <class Rows>
void rotate_run(float* x, size_t length) {
    uint32_t levels = 0;
    for (size_t step = length / 2; step > 0; step /= 2, ++levels) {
        for (size_t i = 0; i < length; i += 2 * step) {
            for (size_t j = i; j < i + step; ++j) {
                float* const first = x + j * Rows::kFloats;
                float* const second = first + step * Rows::kFloats;
                const typename Rows::Element a = Rows::get(first), b = Rows::get(second);
                Rows::put(first, a + b);
                Rows::put(second, a - b);
            }
        }
    }
    for (size_t i = 0; i < length; ++i) {
        float* const at = x + i * Rows::kFloats;
        Rows::put(at, Rows::times(Rows::get(at), kRunFactors[levels]));
    }
}

// A run of 32.
METALLIC_LANES_INLINE void rotate_block(Lanes& low, Lanes& high) {
    const Lanes a = low + high, b = low - high;
    const Lanes factor = set(kRunFactors[5]);
    low = butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(a)))) * factor;
    high = butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(b)))) * factor;
}

// What is left of a head after its blocks of 32: runs of falling lengths.
template <class Rows>
void rotate_rest(float* x, size_t left) {
    for (size_t length = 16; length > 1; length /= 2) {
        if ((left & length) == 0) continue;
        rotate_run<Rows>(x, length);
        x += length * Rows::kFloats;
    }
}

inline void rotate_row(float* x, size_t n) {
    size_t i = 0;
    for (; i + kBlock <= n; i += kBlock) {
        Lanes low = load(x + i), high = load(x + i + 16);
        rotate_block(low, high);
        store(x + i, low);
        store(x + i + 16, high);
    }
    rotate_rest<OneRow>(x + i, n - i);
}

// [n][16]
inline void rotate_sixteen(float* x, size_t n) {
    size_t i = 0;
    for (; i + kBlock <= n; i += kBlock) rotate_run<SixteenRows>(x + i * SixteenRows::kFloats, kBlock);
    rotate_rest<SixteenRows>(x + i * SixteenRows::kFloats, n - i);
}

}  // namespace
}  // namespace metallic::cpu
