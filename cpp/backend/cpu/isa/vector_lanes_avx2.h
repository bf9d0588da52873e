#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

// Sixteen float lanes as two AVX2 registers; see vector_lanes_portable.h for what each function means.
#if defined(__SANITIZE_ADDRESS__)  // where forced inlining takes the compiler minutes
#define METALLIC_LANES_INLINE inline
#else
#define METALLIC_LANES_INLINE [[gnu::always_inline]] inline
#endif

namespace metallic::cpu {
namespace {

struct Lanes {
    __m256 a, b;
};
struct Mask {
    __m256 a, b;
};

inline constexpr int kFewAccumulators = 4;
inline constexpr int kFewKeys = 1;
inline constexpr int kUnit = 1;
inline constexpr int kManyKeys = 4;
inline constexpr int kManyDims = 4;

inline float fused(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

inline Lanes set(float x) {
    return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Lanes load(const float* p) {
    return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Lanes load(const float* p, size_t n) {
    const int count = static_cast<int>(n);
    const __m256 low = _mm256_maskload_ps(p, first_lanes(count));
    return {low, count > 8 ? _mm256_maskload_ps(p + 8, first_lanes(count - 8)) : _mm256_setzero_ps()};
}
inline void store(float* p, Lanes x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
inline void store(float* p, Lanes x, size_t n) {
    const int count = static_cast<int>(n);
    _mm256_maskstore_ps(p, first_lanes(count), x.a);
    if (count > 8) _mm256_maskstore_ps(p + 8, first_lanes(count - 8), x.b);
}
inline float first(Lanes x) {
    return _mm256_cvtss_f32(x.a);
}

inline Lanes operator+(Lanes x, Lanes y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
inline Lanes operator-(Lanes x, Lanes y) {
    return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
inline Lanes operator*(Lanes x, Lanes y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
inline Lanes operator/(Lanes x, Lanes y) {
    return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
inline Lanes fused(Lanes x, Lanes y, Lanes z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes max(Lanes x, Lanes y) {
    return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
inline Lanes min(Lanes x, Lanes y) {
    return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
inline Lanes absolute(Lanes x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Lanes with_sign(Lanes magnitude, Lanes x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const Lanes m = absolute(magnitude);
    return {_mm256_or_ps(m.a, _mm256_and_ps(sign, x.a)), _mm256_or_ps(m.b, _mm256_and_ps(sign, x.b))};
}
inline __m256 scale_exponent(__m256 x, __m256 magic) {
    const __m256i step = _mm256_slli_epi32(_mm256_castps_si256(magic), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), step));
}
inline Lanes scale_exponent(Lanes x, Lanes magic) {
    return {scale_exponent(x.a, magic.a), scale_exponent(x.b, magic.b)};
}

inline Mask less(Lanes x, Lanes y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
inline Mask not_less(Lanes x, Lanes y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_NLT_UQ), _mm256_cmp_ps(x.b, y.b, _CMP_NLT_UQ)};
}
inline Mask equal(Lanes x, Lanes y) {
    return {_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)};
}
inline Mask operator&(Mask x, Mask y) {
    return {_mm256_and_ps(x.a, y.a), _mm256_and_ps(x.b, y.b)};
}
inline __m256 mask_byte(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane));
}
inline Mask mask_of(uint32_t bits) {
    return {mask_byte(bits), mask_byte(bits >> 8)};
}
inline Lanes select(Mask m, Lanes yes, Lanes no) {
    return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)};
}

inline float sum(Lanes x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float maximum(Lanes x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline void store_half_sum(float* p, Lanes x) {
    _mm256_storeu_ps(p, _mm256_add_ps(x.a, x.b));
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
    return {sum_eight_halves(p), sum_eight_halves(p + 64)};
}

inline Lanes from_f16(const void* p) {
    const __m128i* h = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
inline void to_f16(void* p, Lanes x) {
    __m128i* h = static_cast<__m128i*>(p);
    _mm_storeu_si128(h, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(h + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes from_bf16(const void* p) {
    const __m128i* h = static_cast<const __m128i*>(p);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(h));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(h + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline __m256i bf16_bits(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i top = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
}
inline void to_bf16(void* p, Lanes x) {
    const __m256i packed = _mm256_packus_epi32(bf16_bits(x.a), bf16_bits(x.b));
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline Lanes from_i8(const void* p) {
    const __m128i q = _mm_loadu_si128(static_cast<const __m128i*>(p));
    const __m256i low = _mm256_cvtepi8_epi32(q);
    const __m256i high = _mm256_cvtepi8_epi32(_mm_srli_si128(q, 8));
    return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
}
inline void to_i8(void* p, Lanes x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(static_cast<__m128i*>(p), bytes);
}
inline Lanes from_small_bytes(__m128i q) {  // 0 to 15, less 8
    const __m128i signed_q = _mm_sub_epi8(q, _mm_set1_epi8(8));
    const __m256i low = _mm256_cvtepi8_epi32(signed_q);
    const __m256i high = _mm256_cvtepi8_epi32(_mm_srli_si128(signed_q, 8));
    return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
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
    __m128i quants[2];
    to_i8(&quants[0], low);
    to_i8(&quants[1], high);
    const __m128i eight = _mm_set1_epi8(8);
    const __m128i above = _mm_slli_epi16(_mm_add_epi8(quants[1], eight), 4);  // of 0 to 15: nothing crosses bytes
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm_or_si128(_mm_add_epi8(quants[0], eight), above));
}
inline Lanes set_f16(const void* p) {
    uint16_t h;
    __builtin_memcpy(&h, p, sizeof h);
    const __m256 x = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(h)));
    return {x, x};
}

inline Lanes load_pairs(const float* p) {
    const __m256 x = _mm256_loadu_ps(p);
    return {_mm256_permutevar8x32_ps(x, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
            _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}
inline Lanes swap_pairs(Lanes x) {
    return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}
inline Lanes negate_even(Lanes x) {
    const __m256 sign = _mm256_setr_ps(-0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f, -0.0f, 0.0f);
    return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}

template <int kStep>
inline __m256 butterfly(__m256 x) {
    const __m256 swapped = kStep == 4   ? _mm256_permute2f128_ps(x, x, 0x01)
                           : kStep == 2 ? _mm256_permute_ps(x, 0x4e)
                                        : _mm256_permute_ps(x, 0xb1);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i upper = _mm256_and_si256(lane, _mm256_set1_epi32(kStep));
    const __m256i sign = _mm256_slli_epi32(upper, kStep == 4 ? 29 : kStep == 2 ? 30 : 31);
    return _mm256_add_ps(swapped, _mm256_xor_ps(x, _mm256_castsi256_ps(sign)));
}
template <int kStep>
inline Lanes butterfly(Lanes x) {
    if constexpr (kStep == 8) {
        return {_mm256_add_ps(x.b, x.a), _mm256_sub_ps(x.a, x.b)};
    } else {
        return {butterfly<kStep>(x.a), butterfly<kStep>(x.b)};
    }
}

inline void transpose_eight(const float* src, size_t src_stride, float* dst, size_t dst_stride) {
    __m256 fours[8];  // rows i and i + 4: their left halves, then their right halves
    for (int i = 0; i < 4; ++i) {
        const __m256 up = _mm256_loadu_ps(src + i * src_stride);
        const __m256 down = _mm256_loadu_ps(src + (i + 4) * src_stride);
        fours[i] = _mm256_permute2f128_ps(up, down, 0x20);
        fours[i + 4] = _mm256_permute2f128_ps(up, down, 0x31);
    }
    for (int half = 0; half < 2; ++half) {
        const __m256* f = fours + 4 * half;
        const __m256 low01 = _mm256_unpacklo_ps(f[0], f[1]), high01 = _mm256_unpackhi_ps(f[0], f[1]);
        const __m256 low23 = _mm256_unpacklo_ps(f[2], f[3]), high23 = _mm256_unpackhi_ps(f[2], f[3]);
        float* out = dst + 4 * half * dst_stride;
        _mm256_storeu_ps(out, _mm256_shuffle_ps(low01, low23, 0x44));
        _mm256_storeu_ps(out + dst_stride, _mm256_shuffle_ps(low01, low23, 0xee));
        _mm256_storeu_ps(out + 2 * dst_stride, _mm256_shuffle_ps(high01, high23, 0x44));
        _mm256_storeu_ps(out + 3 * dst_stride, _mm256_shuffle_ps(high01, high23, 0xee));
    }
}
inline void transpose(const float* src, size_t src_stride, float* dst, size_t dst_stride) {
    transpose_eight(src, src_stride, dst, dst_stride);
    transpose_eight(src + 8, src_stride, dst + 8 * dst_stride, dst_stride);
    transpose_eight(src + 8 * src_stride, src_stride, dst + 8, dst_stride);
    transpose_eight(src + 8 * src_stride + 8, src_stride, dst + 8 * dst_stride + 8, dst_stride);
}

}  // namespace
}  // namespace metallic::cpu
