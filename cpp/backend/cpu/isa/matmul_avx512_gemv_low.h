#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_avx512_gemv_super.h"

// The steps of Q2_K, Q3_K and IQ4_XS, and the products of one activation row with any super-block format, for AVX-512.
namespace metallic::cpu {
namespace {

// ---- Q2_K and Q3_K: 64 bytes of four 2-bit codes. Codes s of all bytes are elements 32 s.. and 128 + 32 s.. of the
// block.

struct ActivationsK2 {
    __m512i q[4];
    __m256i sums;  // of 16
};

inline ActivationsK2 load_activations_k2(const Q8KBlock& a) {
    ActivationsK2 x;
    for (int i = 0; i < 2; ++i) {
        const __m512i u = _mm512_load_si512(a.q + 64 * i), v = _mm512_load_si512(a.q + 64 * i + 128);
        x.q[2 * i] = _mm512_shuffle_i64x2(u, v, 0x44);
        x.q[2 * i + 1] = _mm512_shuffle_i64x2(u, v, 0xee);
    }
    x.sums = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.sums16));
    return x;
}

// Scales 2 s, 2 s + 1, 8 + 2 s and 9 + 2 s, one for each 128-bit lane.
inline __m512i spread_scales_k2(__m256i words, int s) {
    const __m512i lanes = _mm512_set_epi64(0x0009000900090009, 0x0009000900090009, 0x0008000800080008,
                                           0x0008000800080008, 0x0001000100010001, 0x0001000100010001, 0, 0);
    const __m512i pick = _mm512_add_epi16(lanes, _mm512_set1_epi16(static_cast<int16_t>(2 * s)));
    return _mm512_permutexvar_epi16(pick, _mm512_castsi256_si512(words));
}

inline __m512i dots_k2(const uint8_t* qs, const ActivationsK2& x, __m256i scales) {
    const __m512i mask = _mm512_set1_epi8(3), raw = load512(qs);
    const __m512i c0 = _mm512_and_si512(raw, mask), c1 = _mm512_and_si512(_mm512_srli_epi16(raw, 2), mask);
    const __m512i c2 = _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask),
                  c3 = _mm512_and_si512(_mm512_srli_epi16(raw, 6), mask);
    __m512i sum = add_scaled(_mm512_setzero_si512(), c0, x.q[0], spread_scales_k2(scales, 0));
    sum = add_scaled(sum, c1, x.q[1], spread_scales_k2(scales, 1));
    __m512i more = add_scaled(_mm512_setzero_si512(), c2, x.q[2], spread_scales_k2(scales, 2));
    more = add_scaled(more, c3, x.q[3], spread_scales_k2(scales, 3));
    return _mm512_add_epi32(sum, more);
}

inline __m128i add_rows(__m256i s0, __m256i s1, __m256i s2, __m256i s3) {
    return fold_rows(add_transposed(_mm512_zextsi256_si512(s0), _mm512_zextsi256_si512(s1), _mm512_zextsi256_si512(s2),
                                    _mm512_zextsi256_si512(s3)));
}

inline SuperSums step_q2(const uint8_t* const* p, size_t at, const Q8KBlock& a) {
    const ActivationsK2 x = load_activations_k2(a);
    const __m128i nibble = _mm_set1_epi8(15);
    __m512i dots[4];
    __m256i minima[4];
    __m128i headers = _mm_setzero_si128();
    for (int r = 0; r < 4; ++r) {
        const uint8_t* block = p[r] + at;
        const __m128i packed = load128(block + offsetof(BlockQ2_K, scales));
        dots[r] = dots_k2(block + offsetof(BlockQ2_K, qs), x, _mm256_cvtepu8_epi16(_mm_and_si128(packed, nibble)));
        const __m256i mn = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), nibble));
        minima[r] = _mm256_madd_epi16(mn, x.sums);
        const __m128i header = _mm_cvtsi32_si128(static_cast<int>(load_u32(block + offsetof(BlockQ2_K, d))));
        headers = _mm_or_si128(_mm_srli_si128(headers, 4), _mm_slli_si128(header, 12));
    }
    const __m128i apart = _mm_shuffle_epi8(headers, _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0));
    return {fold_rows(add_transposed(dots[0], dots[1], dots[2], dots[3])),
            add_rows(minima[0], minima[1], minima[2], minima[3]), _mm256_cvtph_ps(apart)};
}

// From the last 16 bytes of a Q3_K block in each 128-bit lane (2 of codes, 12 of packed scales, d) to 16 scales,
// less 32.
inline __m512i unpack_scales_q3(__m512i tails) {
    const __m512i take_low = _mm512_broadcast_i32x4(_mm_set_epi8(9, 8, 7, 6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2));
    const __m512i take_high =
        _mm512_broadcast_i32x4(_mm_set_epi8(13, 12, 11, 10, 13, 12, 11, 10, 13, 12, 11, 10, 13, 12, 11, 10));
    const __m512i shift_low = _mm512_broadcast_i32x4(_mm_set_epi64x(4, 0));
    const __m512i shift_high = _mm512_broadcast_i32x4(_mm_set_epi32(6, 4, 2, 0));
    const __m512i low =
        _mm512_and_si512(_mm512_srlv_epi64(_mm512_shuffle_epi8(tails, take_low), shift_low), _mm512_set1_epi8(15));
    const __m512i high =
        _mm512_and_si512(_mm512_srlv_epi32(_mm512_shuffle_epi8(tails, take_high), shift_high), _mm512_set1_epi8(3));
    return _mm512_sub_epi8(_mm512_or_si512(low, _mm512_slli_epi16(high, 4)), _mm512_set1_epi8(32));
}

inline __m512i dots_q3(const uint8_t* p, const ActivationsK2& x, __m256i scales) {
    const __m512i mask = _mm512_set1_epi8(3), top = _mm512_set1_epi8(4);
    const __m512i raw = load512(p + offsetof(BlockQ3_K, qs));
    // Bit s of a byte is now the top bit of the code s of the same byte of qs.
    const __m512i hmask = _mm512_srlv_epi64(_mm512_broadcast_i64x4(load256(p + offsetof(BlockQ3_K, hmask))),
                                            _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0));
    const __m512i low[4] = {_mm512_and_si512(raw, mask), _mm512_and_si512(_mm512_srli_epi16(raw, 2), mask),
                            _mm512_and_si512(_mm512_srli_epi16(raw, 4), mask),
                            _mm512_and_si512(_mm512_srli_epi16(raw, 6), mask)};
    const __m512i high[4] = {_mm512_slli_epi16(hmask, 2), _mm512_slli_epi16(hmask, 1), hmask,
                             _mm512_srli_epi16(hmask, 1)};
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int s = 0; s < 4; ++s) {
        const __m512i codes = _mm512_ternarylogic_epi64(low[s], high[s], top, 0xf8);  // low | high & 4
        sum[s % 2] = add_scaled(sum[s % 2], codes, x.q[s], spread_scales_k2(scales, s));
    }
    const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(scales, x.sums), 2);
    return _mm512_sub_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_zextsi256_si512(zero));
}

inline SuperSums step_q3(const uint8_t* const* p, size_t at, const Q8KBlock& a) {
    const ActivationsK2 x = load_activations_k2(a);
    constexpr size_t kTail = sizeof(BlockQ3_K) - 16;
    __m512i tails = _mm512_castsi128_si512(load128(p[0] + at + kTail));
    tails = _mm512_inserti32x4(tails, load128(p[1] + at + kTail), 1);
    tails = _mm512_inserti32x4(tails, load128(p[2] + at + kTail), 2);
    tails = _mm512_inserti32x4(tails, load128(p[3] + at + kTail), 3);
    const __m512i scales = unpack_scales_q3(tails);
    const __m512i s0 = dots_q3(p[0] + at, x, _mm256_cvtepi8_epi16(_mm512_castsi512_si128(scales)));
    const __m512i s1 = dots_q3(p[1] + at, x, _mm256_cvtepi8_epi16(_mm512_extracti32x4_epi32(scales, 1)));
    const __m512i s2 = dots_q3(p[2] + at, x, _mm256_cvtepi8_epi16(_mm512_extracti32x4_epi32(scales, 2)));
    const __m512i s3 = dots_q3(p[3] + at, x, _mm256_cvtepi8_epi16(_mm512_extracti32x4_epi32(scales, 3)));
    const __m128i d = first_dwords(_mm512_bsrli_epi128(tails, 14));
    const __m128i halves = _mm_shuffle_epi8(d, _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 13, 12, 9, 8, 5, 4, 1, 0));
    return {fold_rows(add_transposed(s0, s1, s2, s3)), _mm_setzero_si128(), _mm256_cvtph_ps(halves)};
}

// ---- IQ4_XS: 8 sub-blocks of 16 bytes of nibbles, which a table maps to values of 8 bits.

struct ActivationsIQ4 {
    __m512i low[2], high[2];  // first and second halves of sub-blocks 0..3 and 4..7
    __m128i sums;             // of 32
};

inline ActivationsIQ4 load_activations_iq4(const Q8KBlock& a) {
    ActivationsIQ4 x;
    for (int i = 0; i < 2; ++i) {
        const __m512i u = _mm512_load_si512(a.q + 128 * i), v = _mm512_load_si512(a.q + 128 * i + 64);
        x.low[i] = _mm512_shuffle_i64x2(u, v, 0x88);
        x.high[i] = _mm512_shuffle_i64x2(u, v, 0xdd);
    }
    x.sums = load128(a.sums32);
    return x;
}

inline __m512i dots_iq4(const uint8_t* p, const ActivationsIQ4& x) {
    const __m512i nibble = _mm512_set1_epi8(15), table = table_of(kIQ4Values);
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const uint64_t low_bits = _pdep_u64(load_u32(p + offsetof(BlockIQ4_XS, scales_l)), 0x0f0f0f0f0f0f0f0f);
    const uint64_t high_bits = _pdep_u64(load_u16(p + offsetof(BlockIQ4_XS, scales_h)), 0x3030303030303030);
    const __m128i bytes =
        _mm_sub_epi8(_mm_cvtsi64_si128(static_cast<int64_t>(low_bits | high_bits)), _mm_set1_epi8(32));
    const __m512i scales = _mm512_castsi256_si512(_mm256_cvtepi8_epi32(bytes));
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < 2; ++i) {
        const __m512i raw = load512(p + offsetof(BlockIQ4_XS, qs) + 64 * i);
        const __m512i low = _mm512_shuffle_epi8(table, _mm512_and_si512(raw, nibble));
        const __m512i high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble));
        const __m512i dot =
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), low, x.low[i]), high, x.high[i]);
        const __m512i pick = _mm512_add_epi32(spread, _mm512_set1_epi32(4 * i));
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(dot, _mm512_permutexvar_epi32(pick, scales)));
    }
    const __m128i zero = _mm_slli_epi32(_mm_madd_epi16(_mm_cvtepi8_epi16(bytes), x.sums), 7);
    return _mm512_sub_epi32(sum, _mm512_zextsi128_si512(zero));
}

inline SuperSums step_iq4(const uint8_t* const* p, size_t at, const Q8KBlock& a) {
    const ActivationsIQ4 x = load_activations_iq4(a);
    const __m512i s =
        add_transposed(dots_iq4(p[0] + at, x), dots_iq4(p[1] + at, x), dots_iq4(p[2] + at, x), dots_iq4(p[3] + at, x));
    return {fold_rows(s), _mm_setzero_si128(), _mm256_cvtph_ps(four_halves(p, at + offsetof(BlockIQ4_XS, d)))};
}

// ---- All formats.

template <DType T>
inline SuperSums super_step(const uint8_t* const* p, size_t at, const Q8KBlock& a) {
    if constexpr (T == DType::Q2_K) return step_q2(p, at, a);
    if constexpr (T == DType::Q3_K) return step_q3(p, at, a);
    if constexpr (T == DType::Q4_K || T == DType::Q5_K) return step_k4<T>(p, at, a);
    if constexpr (T == DType::Q6_K) return step_k6(p, at, a);
    if constexpr (T == DType::IQ4_XS) return step_iq4(p, at, a);
}

template <DType T>
void gemv_super(const Operands& o) {
    constexpr size_t kBlockBytes = sizeof(typename Format<T>::Block);
    const size_t blocks = o.k / kSuperBlock;
    const uint8_t* end = o.w + (o.rows - 1) * o.w_stride + blocks * kBlockBytes;
    for (size_t row = 0; row < o.rows; row += kSuperRows) {
        const size_t valid = o.rows - row < kSuperRows ? o.rows - row : kSuperRows;
        const uint8_t* next = row + 2 * kSuperRows < o.rows ? o.w + (row + 2 * kSuperRows) * o.w_stride : end;
        const uint8_t* p[kSuperRows];
        for (size_t r = 0; r < kSuperRows; ++r) p[r] = o.w + (row + (r < valid ? r : valid - 1)) * o.w_stride;
        for (size_t m = 0; m < o.m_rows; ++m) {
            const auto* a = reinterpret_cast<const Q8KBlock*>(o.a + m * o.a_stride);
            __m128 acc = _mm_setzero_ps();
            for (size_t b = 0; b < blocks; ++b) {
                if (m == 0) prefetch(next + b * kSuperRows * kBlockBytes, kSuperRows * kBlockBytes, end);
                const SuperSums s = super_step<T>(p, b * kBlockBytes, a[b]);
                const __m256 scales = _mm256_mul_ps(s.scales, _mm256_set1_ps(a[b].d));
                acc = _mm_fmadd_ps(_mm256_castps256_ps128(scales), _mm_cvtepi32_ps(s.dots), acc);
                if (Format<T>::kMin)
                    acc = _mm_fnmadd_ps(_mm256_extractf128_ps(scales, 1), _mm_cvtepi32_ps(s.minima), acc);
            }
            _mm_mask_storeu_ps(o.out + m * o.out_stride + row, static_cast<__mmask8>((1u << valid) - 1u), acc);
        }
    }
}

}  // namespace
}  // namespace metallic::cpu
