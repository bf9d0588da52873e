#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_float.h"

// F32, F16 and BF16 weights with float activations, for AVX2 (see matmul_float.h): the 16 lanes of the law are two
// registers. A tile of R weight rows times M activation rows keeps 2 R M sums.
namespace metallic::cpu {
namespace {

template <DType T>
inline __m256 load_weights(const uint8_t* p, size_t i) {
    if constexpr (T == DType::F32) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + i);
    } else {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 2 * i));
        if constexpr (T == DType::F16) return _mm256_cvtph_ps(bits);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
}

inline float reduce_lanes(__m256 low, __m256 high) {
    const __m256 t8 = _mm256_add_ps(low, high);
    const __m128 t4 = _mm_add_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    const __m128 t2 = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_add_ss(t2, _mm_movehdup_ps(t2)));
}

template <DType T, int R, int M>
struct FloatTile {
    __m256 acc[2][M][R];

    // From what store() wrote; zeros where that is null.
    [[gnu::always_inline]] void load(const float* carried) {
        each([&](auto h, auto m, auto r, int at) __attribute__((always_inline)) {
            acc[h.value][m.value][r.value] = carried == nullptr ? _mm256_setzero_ps() : _mm256_load_ps(carried + at);
        });
    }

    [[gnu::always_inline]] void store(float* carried) const {
        each([&](auto h, auto m, auto r, int at)
                 __attribute__((always_inline)) { _mm256_store_ps(carried + at, acc[h.value][m.value][r.value]); });
    }

    [[gnu::always_inline]] void reduce(float* out, size_t out_stride) const {
        each([&](auto h, auto m, auto r, int) __attribute__((always_inline)) {
            if constexpr (h.value == 0) {
                out[m.value * out_stride + r.value] = reduce_lanes(acc[0][m.value][r.value], acc[1][m.value][r.value]);
            }
        });
    }

    // Adds 16 elements: i.. of the weight rows, at.. of the activations.
    [[gnu::always_inline]] void add(const uint8_t* const* w, size_t i, const uint8_t* a, size_t a_stride, size_t at) {
        unrolled<2>([&](auto h) __attribute__((always_inline)) {
            __m256 weights[R];
            unrolled<R>([&](auto r) __attribute__((always_inline)) {
                weights[r.value] = load_weights<T>(w[r.value], i + 8 * h.value);
            });
            unrolled<M>([&](auto m) __attribute__((always_inline)) {
                const auto* row = reinterpret_cast<const float*>(a + m.value * a_stride);
                const __m256 x = _mm256_load_ps(row + at + 8 * h.value);
                unrolled<R>([&](auto r) __attribute__((always_inline)) {
                    __m256& sum = acc[h.value][m.value][r.value];
                    sum = _mm256_fmadd_ps(weights[r.value], x, sum);
                });
            });
        });
    }

  private:
    // body(half, activation row, weight row, offset in what store() writes).
    template <class Body>
    [[gnu::always_inline]] static void each(const Body& body) {
        unrolled<2>([&](auto h) __attribute__((always_inline)) {
            unrolled<M>([&](auto m) __attribute__((always_inline)) {
                unrolled<R>([&](auto r) __attribute__((always_inline)) {
                    body(h, m, r, 8 * ((h.value * M + m.value) * R + r.value));
                });
            });
        });
    }
};

template <DType T, int R, int M>
void float_tile(const Operands& o, const FloatRange& range, size_t row, float* carried) {
    constexpr size_t kWidth = T == DType::F32 ? 4 : 2;
    const uint8_t* a = o.a + range.m * o.a_stride;
    FloatTile<T, R, M> tile;
    const uint8_t* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = o.w + (row + static_cast<size_t>(r)) * o.w_stride;
    tile.load(range.k0 == 0 ? nullptr : carried);
    size_t i = range.k0;
    for (; i + 16 <= range.k1; i += 16) tile.add(rows, i, a, o.a_stride, i);
    if (i < range.k1) {
        alignas(32) uint8_t tail[R][16 * kWidth] = {};
        const uint8_t* tails[R];
        for (int r = 0; r < R; ++r) {
            memcpy(tail[r], rows[r] + i * kWidth, (range.k1 - i) * kWidth);
            tails[r] = tail[r];
        }
        tile.add(tails, 0, a, o.a_stride, i);
    }
    if (range.k1 < o.k) {
        tile.store(carried);
    } else {
        tile.reduce(o.out + range.m * o.out_stride + row, o.out_stride);
    }
}

struct FloatAvx2 {
    static constexpr int kRows = 3, kTile = 2, kRowsOfOne = 4;

    template <DType T, int R, int M>
    static void tile(const Operands& o, const FloatRange& range, size_t row, float* carried) {
        float_tile<T, R, M>(o, range, row, carried);
    }
};

}  // namespace
}  // namespace metallic::cpu
