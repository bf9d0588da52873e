#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_float.h"

// F32, F16 and BF16 weights with float activations, for AVX-512 (see matmul_float.h): the 16 lanes of the law are one
// register. A tile of R weight rows times M activation rows keeps R M sums; weights are converted as they are read.
namespace metallic::cpu {
namespace {

template <DType T>
inline __m512 load_weights(const uint8_t* p, size_t i) {
    if constexpr (T == DType::F32) return _mm512_loadu_ps(p + 4 * i);
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 2 * i));
    if constexpr (T == DType::F16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The last `count` (1 to 15) elements of a row, and zeros.
template <DType T>
inline __m512 load_weights_tail(const uint8_t* p, size_t i, size_t count) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1u);
    if constexpr (T == DType::F32) return _mm512_maskz_loadu_ps(mask, p + 4 * i);
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, p + 2 * i);
    if constexpr (T == DType::F16) return _mm512_cvtph_ps(bits);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline float reduce_lanes(__m512 acc) {
    const __m256 t8 = _mm256_add_ps(_mm512_castps512_ps256(acc), _mm512_extractf32x8_ps(acc, 1));
    const __m128 t4 = _mm_add_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    const __m128 t2 = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_add_ss(t2, _mm_movehdup_ps(t2)));
}

template <DType T, int R, int M>
void float_tile(const Operands& o, const FloatRange& range, size_t row, float* carried) {
    const uint8_t* w = o.w + row * o.w_stride;
    const uint8_t* a = o.a + range.m * o.a_stride;
    __m512 acc[M][R];
    unrolled<M>([&](auto m) __attribute__((always_inline)) {
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            const float* from = carried + 16 * (m.value * R + r.value);
            acc[m.value][r.value] = range.k0 == 0 ? _mm512_setzero_ps() : _mm512_load_ps(from);
        });
    });
    const auto add = [&](const __m512* weights, size_t i) __attribute__((always_inline)) {
        unrolled<M>([&](auto m) __attribute__((always_inline)) {
            const __m512 x = _mm512_load_ps(a + m.value * o.a_stride + 4 * i);
            unrolled<R>([&](auto r) __attribute__((always_inline)) {
                acc[m.value][r.value] = _mm512_fmadd_ps(weights[r.value], x, acc[m.value][r.value]);
            });
        });
    };
    __m512 weights[R];
    size_t i = range.k0;
    for (; i + 16 <= range.k1; i += 16) {
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            weights[r.value] = load_weights<T>(w + r.value * o.w_stride, i);
        });
        add(weights, i);
    }
    if (i < range.k1) {
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            weights[r.value] = load_weights_tail<T>(w + r.value * o.w_stride, i, range.k1 - i);
        });
        add(weights, i);
    }
    float* out = o.out + range.m * o.out_stride + row;
    unrolled<M>([&](auto m) __attribute__((always_inline)) {
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            if (range.k1 < o.k) {
                _mm512_store_ps(carried + 16 * (m.value * R + r.value), acc[m.value][r.value]);
            } else {
                out[m.value * o.out_stride + r.value] = reduce_lanes(acc[m.value][r.value]);
            }
        });
    });
}

struct FloatAvx512 {
    static constexpr int kRows = 4, kTile = 6, kRowsOfOne = 8;

    template <DType T, int R, int M>
    static void tile(const Operands& o, const FloatRange& range, size_t row, float* carried) {
        float_tile<T, R, M>(o, range, row, carried);
    }
};

}  // namespace
}  // namespace metallic::cpu
