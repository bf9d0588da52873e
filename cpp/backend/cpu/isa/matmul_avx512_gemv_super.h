#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_avx512_gemv_plain.h"
#include "backend/cpu/isa/matmul_panel.h"

// One activation row times weights of 256-element super-blocks, for AVX-512: Q4_K, Q5_K and Q6_K, and what the other
// formats share with them. A step takes one super-block of four rows:
// each row's products are summed in pairs to int16, times the sub-block's scale, in 16 lanes of int32; the four rows
// are then transposed and added.
namespace metallic::cpu {
namespace {

constexpr size_t kSuperRows = 4;

// The sums of one super-block of four rows.
struct SuperSums {
    __m128i dots;    // sum_j sc_j sum q_w q_a
    __m128i minima;  // sum_j mn_j sum q_a
    __m256 scales;   // d of the four rows, then dmin
};

inline __m128i fold_rows(__m512i s) {
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Dword 0 of every 128-bit lane.
inline __m128i first_dwords(__m512i v) {
    const __m512i pick = _mm512_castsi128_si512(_mm_set_epi32(12, 8, 4, 0));
    return _mm512_castsi512_si128(_mm512_permutexvar_epi32(pick, v));
}

// The float16 at byte `at` of four rows.
inline __m128i four_halves(const uint8_t* const* p, size_t at) {
    const uint64_t bits =
        load_u16(p[0] + at) | load_u16(p[1] + at) << 16 | load_u16(p[2] + at) << 32 | load_u16(p[3] + at) << 48;
    return _mm_cvtsi64_si128(static_cast<int64_t>(bits));
}

// Pairs of products, exact in int16 for codes up to 63, times int16 scales, added to 16 sums.
inline __m512i add_scaled(__m512i sum, __m512i codes, __m512i q, __m512i scales) {
    return _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(codes, q), scales);
}

// ---- Q4_K and Q5_K: four 64-byte registers of codes, each with two sub-blocks of 32.

struct ActivationsK4 {
    __m512i q[4];  // sub-blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7
    __m512i sums;  // of 32, in every 128-bit lane
};

inline ActivationsK4 load_activations_k4(const Q8KBlock& a) {
    ActivationsK4 x;
    for (int i = 0; i < 2; ++i) {
        const __m512i u = _mm512_load_si512(a.q + 128 * i), v = _mm512_load_si512(a.q + 128 * i + 64);
        x.q[2 * i] = _mm512_shuffle_i64x2(u, v, 0x44);
        x.q[2 * i + 1] = _mm512_shuffle_i64x2(u, v, 0xee);
    }
    x.sums = _mm512_broadcast_i32x4(load128(a.sums32));
    return x;
}

// From d, dmin and the 12 packed bytes in each 128-bit lane to 8 scales and 8 minima, a byte each.
inline __m512i unpack_headers_k4(__m512i headers) {
    const __m512i x = _mm512_shuffle_epi32(headers, static_cast<_MM_PERM_ENUM>(0xa5));  // dwords 1 1 2 2
    const __m512i y = _mm512_shuffle_epi32(headers, static_cast<_MM_PERM_ENUM>(0xff));  // dword 3
    const __m512i shift_x = _mm512_broadcast_i32x4(_mm_set_epi32(2, 0, 2, 0));
    const __m512i mask_x = _mm512_broadcast_i32x4(_mm_set_epi32(0x30303030, 0x3f3f3f3f, 0x30303030, 0x3f3f3f3f));
    const __m512i shift_y = _mm512_broadcast_i32x4(_mm_set_epi32(4, 0, 0, 0));
    const __m512i mask_y = _mm512_broadcast_i32x4(_mm_set_epi32(0x0f0f0f0f, 0, 0x0f0f0f0f, 0));
    const __m512i high = _mm512_and_si512(_mm512_srlv_epi32(x, shift_x), mask_x);
    return _mm512_or_si512(high, _mm512_and_si512(_mm512_srlv_epi32(y, shift_y), mask_y));
}

// Bytes i (low half) and j (high half) of a lane's words, repeated.
inline __m512i pick_words(int i, int j) {
    const __m256i low = _mm256_set1_epi16(static_cast<int16_t>(2 * i | (2 * i + 1) << 8));
    const __m256i high = _mm256_set1_epi16(static_cast<int16_t>(2 * j | (2 * j + 1) << 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

template <int kBit>
inline __m512i add_bit_k5(__m512i codes, __m512i qh) {
    const __m512i bits = _mm512_inserti64x4(_mm512_set1_epi8(static_cast<char>(1 << kBit)),
                                            _mm256_set1_epi8(static_cast<char>(4 << kBit)), 1);
    return _mm512_mask_add_epi8(codes, _mm512_test_epi8_mask(qh, bits), codes, _mm512_set1_epi8(16));
}

template <DType T>
inline __m512i dots_k4(const uint8_t* p, const ActivationsK4& x, __m512i scale_words) {
    using Block = typename Format<T>::Block;
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i raw0 = load512(p + offsetof(Block, qs)), raw1 = load512(p + offsetof(Block, qs) + 64);
    __m512i c0 = _mm512_and_si512(raw0, nibble), c1 = _mm512_and_si512(_mm512_srli_epi16(raw0, 4), nibble);
    __m512i c2 = _mm512_and_si512(raw1, nibble), c3 = _mm512_and_si512(_mm512_srli_epi16(raw1, 4), nibble);
    if constexpr (T == DType::Q5_K) {
        const __m512i qh = _mm512_broadcast_i64x4(load256(p + offsetof(Block, qh)));
        c0 = add_bit_k5<0>(c0, qh);
        c1 = add_bit_k5<1>(c1, qh);
        c2 = add_bit_k5<4>(c2, qh);
        c3 = add_bit_k5<5>(c3, qh);
    }
    __m512i sum = add_scaled(_mm512_setzero_si512(), c0, x.q[0], _mm512_shuffle_epi8(scale_words, pick_words(0, 2)));
    sum = add_scaled(sum, c1, x.q[1], _mm512_shuffle_epi8(scale_words, pick_words(1, 3)));
    __m512i more = add_scaled(_mm512_setzero_si512(), c2, x.q[2], _mm512_shuffle_epi8(scale_words, pick_words(4, 6)));
    more = add_scaled(more, c3, x.q[3], _mm512_shuffle_epi8(scale_words, pick_words(5, 7)));
    return _mm512_add_epi32(sum, more);
}

template <DType T>
inline SuperSums step_k4(const uint8_t* const* p, size_t at, const Q8KBlock& a) {
    const ActivationsK4 x = load_activations_k4(a);
    __m512i headers = _mm512_castsi128_si512(load128(p[0] + at));
    headers = _mm512_inserti32x4(headers, load128(p[1] + at), 1);
    headers = _mm512_inserti32x4(headers, load128(p[2] + at), 2);
    headers = _mm512_inserti32x4(headers, load128(p[3] + at), 3);
    const __m512i bytes = unpack_headers_k4(headers);
    const __m512i scales = _mm512_unpacklo_epi8(bytes, _mm512_setzero_si512());
    const __m512i minima = _mm512_madd_epi16(_mm512_unpackhi_epi8(bytes, _mm512_setzero_si512()), x.sums);
    const __m512i s0 = dots_k4<T>(p[0] + at, x, _mm512_shuffle_i64x2(scales, scales, 0x00));
    const __m512i s1 = dots_k4<T>(p[1] + at, x, _mm512_shuffle_i64x2(scales, scales, 0x55));
    const __m512i s2 = dots_k4<T>(p[2] + at, x, _mm512_shuffle_i64x2(scales, scales, 0xaa));
    const __m512i s3 = dots_k4<T>(p[3] + at, x, _mm512_shuffle_i64x2(scales, scales, 0xff));
    const __m512i pairs = _mm512_add_epi32(minima, _mm512_shuffle_epi32(minima, _MM_PERM_CDAB));
    const __m512i all = _mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC));
    const __m128i both = first_dwords(headers);
    const __m128i apart = _mm_shuffle_epi8(both, _mm_set_epi8(15, 14, 11, 10, 7, 6, 3, 2, 13, 12, 9, 8, 5, 4, 1, 0));
    return {fold_rows(add_transposed(s0, s1, s2, s3)), first_dwords(all), _mm256_cvtph_ps(apart)};
}

// ---- Q6_K: four registers of 64 codes in order, each with four sub-blocks of 16.

struct ActivationsK6 {
    __m512i q[4];
    __m256i sums;  // of 16
};

inline ActivationsK6 load_activations_k6(const Q8KBlock& a) {
    ActivationsK6 x;
    for (int i = 0; i < 4; ++i) x.q[i] = _mm512_load_si512(a.q + 64 * i);
    x.sums = _mm256_load_si256(reinterpret_cast<const __m256i*>(a.sums16));
    return x;
}

// Scales 4 i to 4 i + 3, one for each 128-bit lane.
inline __m512i spread_scales(__m256i words, int i) {
    const __m512i lanes = _mm512_set_epi64(0x0003000300030003, 0x0003000300030003, 0x0002000200020002,
                                           0x0002000200020002, 0x0001000100010001, 0x0001000100010001, 0, 0);
    const __m512i pick = _mm512_add_epi16(lanes, _mm512_set1_epi16(static_cast<int16_t>(4 * i)));
    return _mm512_permutexvar_epi16(pick, _mm512_castsi256_si512(words));
}

inline __m512i dots_k6(const uint8_t* p, const ActivationsK6& x) {
    const __m512i nibble = _mm512_set1_epi8(15), high = _mm512_set1_epi8(48);
    const __m512i left = _mm512_set_epi64(2, 2, 2, 2, 4, 4, 4, 4), right = _mm512_set_epi64(2, 2, 2, 2, 0, 0, 0, 0);
    const __m256i words = _mm256_cvtepi8_epi16(load128(p + offsetof(BlockQ6_K, scales)));
    __m512i sum[2];
    for (int n = 0; n < 2; ++n) {
        const __m512i raw = load512(p + 64 * n);
        const __m512i qh = _mm512_broadcast_i64x4(load256(p + offsetof(BlockQ6_K, qh) + 32 * n));
        const __m512i low = _mm512_and_si512(raw, nibble), top = _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble);
        // a | b & c
        const __m512i c0 = _mm512_ternarylogic_epi64(low, _mm512_sllv_epi64(qh, left), high, 0xf8);
        const __m512i c1 = _mm512_ternarylogic_epi64(top, _mm512_srlv_epi64(qh, right), high, 0xf8);
        sum[n] = add_scaled(_mm512_setzero_si512(), c0, x.q[2 * n], spread_scales(words, 2 * n));
        sum[n] = add_scaled(sum[n], c1, x.q[2 * n + 1], spread_scales(words, 2 * n + 1));
    }
    const __m256i zero = _mm256_slli_epi32(_mm256_madd_epi16(words, x.sums), 5);
    return _mm512_sub_epi32(_mm512_add_epi32(sum[0], sum[1]), _mm512_zextsi256_si512(zero));
}

inline SuperSums step_k6(const uint8_t* const* p, size_t at, const Q8KBlock& a) {
    const ActivationsK6 x = load_activations_k6(a);
    const __m512i s =
        add_transposed(dots_k6(p[0] + at, x), dots_k6(p[1] + at, x), dots_k6(p[2] + at, x), dots_k6(p[3] + at, x));
    return {fold_rows(s), _mm_setzero_si128(), _mm256_cvtph_ps(four_halves(p, at + offsetof(BlockQ6_K, d)))};
}

}  // namespace
}  // namespace metallic::cpu
