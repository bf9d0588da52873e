#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 calls its own header uninitialised wherever that is inlined (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Sixteen float lanes as one AVX-512 register; see vector_lanes_portable.h for what each function means.
#if defined(__SANITIZE_ADDRESS__)  // where forced inlining takes the compiler minutes
#define METALLIC_LANES_INLINE inline
#else
#define METALLIC_LANES_INLINE [[gnu::always_inline]] inline
#endif

namespace metallic::cpu {
namespace {

struct Lanes {
    __m512 v;
};
struct Mask {
    __mmask16 m;
};

inline constexpr int kFewAccumulators = 16;
inline constexpr int kFewKeys = 2;
inline constexpr int kUnit = 2;
inline constexpr int kManyKeys = 4;
inline constexpr int kManyDims = 8;

inline float fused(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

inline Lanes set(float x) {
    return {_mm512_set1_ps(x)};
}
inline Lanes load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
inline __mmask16 first_lanes(size_t n) {
    return static_cast<__mmask16>((1u << n) - 1);
}
inline Lanes load(const float* p, size_t n) {
    return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
inline void store(float* p, Lanes x) {
    _mm512_storeu_ps(p, x.v);
}
inline void store(float* p, Lanes x, size_t n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), x.v);
}
inline float first(Lanes x) {
    return _mm512_cvtss_f32(x.v);
}

inline Lanes operator+(Lanes x, Lanes y) {
    return {_mm512_add_ps(x.v, y.v)};
}
inline Lanes operator-(Lanes x, Lanes y) {
    return {_mm512_sub_ps(x.v, y.v)};
}
inline Lanes operator*(Lanes x, Lanes y) {
    return {_mm512_mul_ps(x.v, y.v)};
}
inline Lanes operator/(Lanes x, Lanes y) {
    return {_mm512_div_ps(x.v, y.v)};
}
inline Lanes fused(Lanes x, Lanes y, Lanes z) {
    return {_mm512_fmadd_ps(x.v, y.v, z.v)};
}
inline Lanes max(Lanes x, Lanes y) {
    return {_mm512_max_ps(x.v, y.v)};
}
inline Lanes min(Lanes x, Lanes y) {
    return {_mm512_min_ps(x.v, y.v)};
}
inline Lanes absolute(Lanes x) {
    return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), x.v)};
}
inline Lanes with_sign(Lanes magnitude, Lanes x) {
    return {_mm512_or_ps(absolute(magnitude).v, _mm512_and_ps(_mm512_set1_ps(-0.0f), x.v))};
}
inline Lanes scale_exponent(Lanes x, Lanes magic) {
    const __m512i step = _mm512_slli_epi32(_mm512_castps_si512(magic.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), step))};
}

inline Mask less(Lanes x, Lanes y) {
    return {_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ)};
}
inline Mask not_less(Lanes x, Lanes y) {
    return {_mm512_cmp_ps_mask(x.v, y.v, _CMP_NLT_UQ)};
}
inline Mask equal(Lanes x, Lanes y) {
    return {_mm512_cmp_ps_mask(x.v, y.v, _CMP_EQ_OQ)};
}
inline Mask operator&(Mask x, Mask y) {
    return {static_cast<__mmask16>(x.m & y.m)};
}
inline Mask mask_of(uint32_t bits) {
    return {static_cast<__mmask16>(bits)};
}
inline Lanes select(Mask m, Lanes yes, Lanes no) {
    return {_mm512_mask_blend_ps(m.m, no.v, yes.v)};
}

inline __m256 low_half(Lanes x) {
    return _mm512_castps512_ps256(x.v);
}
inline __m256 high_half(Lanes x) {
    return _mm512_extractf32x8_ps(x.v, 1);
}
inline Lanes join(__m256 low, __m256 high) {
    return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)};
}

inline float sum(Lanes x) {
    const __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float maximum(Lanes x) {
    const __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline void store_half_sum(float* p, Lanes x) {
    _mm256_storeu_ps(p, _mm256_add_ps(low_half(x), high_half(x)));
}

// Levels of the tree of sum() for two vectors at once: lanes i + i+4, then +2, then +1 for four pairs.
inline __m256 add_fours(__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_blend_ps(x, y, 0xf0), _mm256_permute2f128_ps(x, y, 0x21));
}
inline __m256 add_twos(__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_blend_ps(x, y, 0xcc), _mm256_shuffle_ps(x, y, 0x4e));
}
inline __m256 add_ones(__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x88), _mm256_shuffle_ps(x, y, 0xdd));
}
inline __m256 sum_eight_halves(const float* p) {
    const auto fours = [p](int i) { return add_fours(_mm256_loadu_ps(p + 8 * i), _mm256_loadu_ps(p + 8 * (i + 4))); };
    const __m256 x01 = add_twos(fours(0), fours(1));
    const __m256 x23 = add_twos(fours(2), fours(3));
    return add_ones(x01, x23);
}
inline Lanes sum_halves(const float* p) {
    return join(sum_eight_halves(p), sum_eight_halves(p + 64));
}

inline __m256i load_words(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline void store_words(void* p, __m256i x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), x);
}

inline Lanes from_f16(const void* p) {
    return {_mm512_cvtph_ps(load_words(p))};
}
inline void to_f16(void* p, Lanes x) {
    store_words(p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes from_bf16(const void* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_words(p)), 16))};
}
inline void to_bf16(void* p, Lanes x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i top = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    store_words(p, _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, _mm512_srli_epi32(up, 16), quiet)));
}
inline Lanes from_i8(const void* p) {
    const __m128i q = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q))};
}
inline void to_i8(void* p, Lanes x) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
}
inline Lanes from_small_bytes(__m128i q) {  // 0 to 15, less 8
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_sub_epi8(q, _mm_set1_epi8(8))))};
}
inline Lanes from_low_nibbles(const void* p) {
    const __m128i q = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return from_small_bytes(_mm_and_si128(q, _mm_set1_epi8(15)));
}
inline Lanes from_high_nibbles(const void* p) {
    const __m128i q = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return from_small_bytes(_mm_and_si128(_mm_srli_epi16(q, 4), _mm_set1_epi8(15)));
}
inline void to_nibbles(void* p, Lanes low, Lanes high) {
    const __m512i eight = _mm512_set1_epi32(8);
    const __m512i below = _mm512_add_epi32(_mm512_cvtps_epi32(low.v), eight);
    const __m512i above = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(high.v), eight), 4);
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_or_si512(below, above)));
}
inline Lanes set_f16(const void* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, sizeof h);
    return {_mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(h)))};
}

inline Lanes load_pairs(const float* p) {
    const __m512i index = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return {_mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
}
inline Lanes swap_pairs(Lanes x) {
    return {_mm512_permute_ps(x.v, 0xb1)};
}
inline Lanes negate_even(Lanes x) {
    return {_mm512_xor_ps(x.v, _mm512_castsi512_ps(_mm512_set1_epi64(0x80000000ll)))};
}

template <int kStep>
inline Lanes butterfly(Lanes x) {
    const __m512 swapped = kStep == 8   ? _mm512_shuffle_f32x4(x.v, x.v, 0x4e)
                           : kStep == 4 ? _mm512_shuffle_f32x4(x.v, x.v, 0xb1)
                           : kStep == 2 ? _mm512_permute_ps(x.v, 0x4e)
                                        : _mm512_permute_ps(x.v, 0xb1);
    constexpr __mmask16 kUpper = kStep == 8 ? 0xff00 : kStep == 4 ? 0xf0f0 : kStep == 2 ? 0xcccc : 0xaaaa;
    return {_mm512_mask_sub_ps(_mm512_add_ps(swapped, x.v), kUpper, swapped, x.v)};
}

// Sixteen vectors of four floats, as a matrix of four by four such vectors, each taken as one element.
inline void transpose_quads(__m512 r[4]) {
    const __m512 a = _mm512_shuffle_f32x4(r[0], r[1], 0x88), b = _mm512_shuffle_f32x4(r[0], r[1], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[2], r[3], 0x88), d = _mm512_shuffle_f32x4(r[2], r[3], 0xdd);
    r[0] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[1] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[2] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}
inline void transpose(const float* src, size_t src_stride, float* dst, size_t dst_stride) {
    __m512 columns[4][4];  // columns[i][g]: columns i, 4 + i, 8 + i, 12 + i of rows 4g .. 4g + 3
    for (int g = 0; g < 4; ++g) {
        const float* s = src + 4 * g * src_stride;
        const __m512 r0 = _mm512_loadu_ps(s), r1 = _mm512_loadu_ps(s + src_stride);
        const __m512 r2 = _mm512_loadu_ps(s + 2 * src_stride), r3 = _mm512_loadu_ps(s + 3 * src_stride);
        const __m512 low01 = _mm512_unpacklo_ps(r0, r1), high01 = _mm512_unpackhi_ps(r0, r1);
        const __m512 low23 = _mm512_unpacklo_ps(r2, r3), high23 = _mm512_unpackhi_ps(r2, r3);
        columns[0][g] = _mm512_shuffle_ps(low01, low23, 0x44);
        columns[1][g] = _mm512_shuffle_ps(low01, low23, 0xee);
        columns[2][g] = _mm512_shuffle_ps(high01, high23, 0x44);
        columns[3][g] = _mm512_shuffle_ps(high01, high23, 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        transpose_quads(columns[i]);
        for (int j = 0; j < 4; ++j) _mm512_storeu_ps(dst + (4 * j + i) * dst_stride, columns[i][j]);
    }
}

}  // namespace
}  // namespace metallic::cpu
