#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_avx2_gemm.h"
#include "backend/cpu/isa/matmul_panel.h"

// One activation row times quantised weights for AVX2: eight rows, one block of 32 at a time, or four rows and one
// super-block. Sums of several rows are transposed and added, so that the float chain runs with a row in each lane.
namespace metallic::cpu {
namespace {

// Asks for `bytes` bytes from p on, which lie before `end`, to be brought near.
inline void prefetch(const uint8_t* p, size_t bytes, const uint8_t* end) {
    const uint8_t* stop = static_cast<size_t>(end - p) < bytes ? end : p + bytes;
    for (; p < stop; p += 64) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

inline __m256i two_halves(__m128i low, __m128i high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// 32 codes of a plain block in order; signed values where kSigned.
template <DType T>
inline __m256i plain_codes(const uint8_t* p) {
    using F = Format<T>;
    using Block = typename F::Block;
    const __m128i raw = load128(p + offsetof(Block, qs));
    if constexpr (T == DType::Q8_0) {
        return load256(p + offsetof(Block, qs));
    } else {
        __m256i codes = _mm256_and_si256(two_halves(raw, _mm_srli_epi16(raw, 4)), _mm256_set1_epi8(15));
        if constexpr (F::kTabled) codes = signed_values<F>(codes);
        if constexpr (F::kMaxCode == 31) {
            // Every byte gets the byte of qh that holds its bit, and is compared with that bit.
            const __m256i spread = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
            const __m256i bits = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
            const __m256i qh = _mm256_shuffle_epi8(broadcast32(p + offsetof(Block, qh)), spread);
            const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(qh, bits), bits);
            codes = _mm256_or_si256(codes, _mm256_and_si256(set, _mm256_set1_epi8(16)));
        }
        return codes;
    }
}

template <DType T>
inline __m256i plain_dot(const uint8_t* p, __m256i q) {
    return _mm256_madd_epi16(pair_products<Format<T>>(plain_codes<T>(p), q), _mm256_set1_epi16(1));
}

inline int load_u16(const uint8_t* p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

// The float16 at p[0] + at, p[1] + at, ... of eight rows.
inline __m256 load_halves(const uint8_t* const* p, size_t at) {
    __m128i h = _mm_cvtsi32_si128(load_u16(p[0] + at));
    h = _mm_insert_epi16(h, load_u16(p[1] + at), 1);
    h = _mm_insert_epi16(h, load_u16(p[2] + at), 2);
    h = _mm_insert_epi16(h, load_u16(p[3] + at), 3);
    h = _mm_insert_epi16(h, load_u16(p[4] + at), 4);
    h = _mm_insert_epi16(h, load_u16(p[5] + at), 5);
    h = _mm_insert_epi16(h, load_u16(p[6] + at), 6);
    h = _mm_insert_epi16(h, load_u16(p[7] + at), 7);
    return _mm256_cvtph_ps(h);
}

template <DType T>
inline __m256 load_scales(const uint8_t* const* p, size_t at) {
    if constexpr (T == DType::MXFP4) {
        return _mm256_set_ps(e8m0_half_to_float(p[7][at]), e8m0_half_to_float(p[6][at]), e8m0_half_to_float(p[5][at]),
                             e8m0_half_to_float(p[4][at]), e8m0_half_to_float(p[3][at]), e8m0_half_to_float(p[2][at]),
                             e8m0_half_to_float(p[1][at]), e8m0_half_to_float(p[0][at]));
    } else {
        return load_halves(p, at);
    }
}

template <DType T>
inline __m256 plain_step(const uint8_t* const* p, size_t at, const Q8Group& g, size_t j, __m256 acc) {
    using F = Format<T>;
    const __m256i q = load256(g.q + j * kBlock);
    const __m256i low = add_transposed(plain_dot<T>(p[0] + at, q), plain_dot<T>(p[1] + at, q),
                                       plain_dot<T>(p[2] + at, q), plain_dot<T>(p[3] + at, q));
    const __m256i high = add_transposed(plain_dot<T>(p[4] + at, q), plain_dot<T>(p[5] + at, q),
                                        plain_dot<T>(p[6] + at, q), plain_dot<T>(p[7] + at, q));
    __m256i sum =
        _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
    if constexpr (Avx2::zero<F>() != 0) {
        sum = _mm256_add_epi32(sum, _mm256_set1_epi32(g.bias[j] / 128 * F::kZero));
    }
    const __m256 scale = _mm256_mul_ps(load_scales<T>(p, at), _mm256_set1_ps(g.d[j]));
    acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum), acc);
    if constexpr (F::kMin) acc = _mm256_fmadd_ps(load_halves(p, at + 2), _mm256_set1_ps(g.s[j]), acc);
    return acc;
}

template <DType T>
void gemv_plain(const Operands& o) {
    constexpr size_t kRows = 8, kBlockBytes = sizeof(typename Format<T>::Block);
    const size_t blocks = o.k / kBlock;
    const uint8_t* end = o.w + (o.rows - 1) * o.w_stride + blocks * kBlockBytes;
    for (size_t row = 0; row < o.rows; row += kRows) {
        const size_t valid = o.rows - row < kRows ? o.rows - row : kRows;
        const uint8_t* next = row + kRows < o.rows ? o.w + (row + kRows) * o.w_stride : end;
        const uint8_t* p[kRows];
        for (size_t r = 0; r < kRows; ++r) p[r] = o.w + (row + (r < valid ? r : valid - 1)) * o.w_stride;
        for (size_t m = 0; m < o.m_rows; ++m) {
            const auto* a = reinterpret_cast<const Q8Group*>(o.a + m * o.a_stride);
            __m256 acc = _mm256_setzero_ps();
            for (size_t b = 0; b < blocks; ++b) {
                if (m == 0) prefetch(next + b * kRows * kBlockBytes, kRows * kBlockBytes, end);
                acc = plain_step<T>(p, b * kBlockBytes, a[b / kGroupBlocks], b % kGroupBlocks, acc);
            }
            _mm256_maskstore_ps(o.out + m * o.out_stride + row, row_mask(static_cast<int>(valid)), acc);
        }
    }
}

// ---- Super-blocks.

struct SuperSums {
    __m256i dots;    // 8 partial sums of sc_j sum q_w q_a
    __m128i minima;  // 4 partial sums of mn_j sum q_a
};

// 16 times word j of a lane.
inline __m256i pick_word(__m256i words, int j) {
    return _mm256_shuffle_epi8(words, _mm256_set1_epi16(static_cast<int16_t>(2 * j | (2 * j + 1) << 8)));
}

inline uint32_t load_u32(const uint8_t* p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

// The 8 scales and then the 8 minima of Q4_K and Q5_K as int16.
inline __m256i scale_words_k4(const uint8_t* packed) {
    const uint32_t x = load_u32(packed), y = load_u32(packed + 4), z = load_u32(packed + 8);
    const uint32_t sc = (z & 0x0f0f0f0fu) | (x >> 2 & 0x30303030u),
                   mn = (z >> 4 & 0x0f0f0f0fu) | (y >> 2 & 0x30303030u);
    return _mm256_cvtepu8_epi16(_mm_set_epi32(static_cast<int>(mn), static_cast<int>(y & 0x3f3f3f3fu),
                                              static_cast<int>(sc), static_cast<int>(x & 0x3f3f3f3fu)));
}

template <DType T>
inline SuperSums dots_k4(const uint8_t* p, const Q8KBlock& a) {
    using Block = typename Format<T>::Block;
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i words = scale_words_k4(p + offsetof(Block, scales));
    const __m256i sc = _mm256_permute2x128_si256(words, words, 0x00);
    __m256i qh = _mm256_setzero_si256(), sum = _mm256_setzero_si256();
    if constexpr (T == DType::Q5_K) qh = load256(p + offsetof(Block, qh));
    for (int n = 0; n < 4; ++n) {
        const __m256i raw = load256(p + offsetof(Block, qs) + 32 * n);
        __m256i low = _mm256_and_si256(raw, nibble), high = _mm256_and_si256(_mm256_srli_epi16(raw, 4), nibble);
        if constexpr (T == DType::Q5_K) {
            const __m256i bit = _mm256_set1_epi8(16), h = _mm256_srli_epi16(qh, 2 * n);
            low = _mm256_or_si256(low, _mm256_and_si256(_mm256_slli_epi16(h, 4), bit));
            high = _mm256_or_si256(high, _mm256_and_si256(_mm256_slli_epi16(h, 3), bit));
        }
        const __m256i s = _mm256_maddubs_epi16(low, load256(a.q + 64 * n));
        const __m256i t = _mm256_maddubs_epi16(high, load256(a.q + 64 * n + 32));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(s, pick_word(sc, 2 * n)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(t, pick_word(sc, 2 * n + 1)));
    }
    return {sum, _mm_madd_epi16(_mm256_extracti128_si256(words, 1), load128(a.sums32))};
}

inline SuperSums dots_k6(const uint8_t* p, const Q8KBlock& a) {
    const __m256i nibble = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48);
    const __m256i words = _mm256_cvtepi8_epi16(load128(p + offsetof(BlockQ6_K, scales)));
    const __m256i lane = _mm256_inserti128_si256(_mm256_setzero_si256(), _mm_set1_epi16(0x0202), 1);
    __m256i sum = _mm256_slli_epi32(_mm256_madd_epi16(words, load256(a.sums16)), 5);
    sum = _mm256_sub_epi32(_mm256_setzero_si256(), sum);
    for (int n = 0; n < 2; ++n) {
        const __m256i q0 = load256(p + 64 * n), q1 = load256(p + 64 * n + 32);
        const __m256i h = load256(p + offsetof(BlockQ6_K, qh) + 32 * n);
        const __m256i sc =
            n == 0 ? _mm256_permute2x128_si256(words, words, 0x00) : _mm256_permute2x128_si256(words, words, 0x11);
        const __m256i codes[4] = {
            _mm256_or_si256(_mm256_and_si256(q0, nibble), _mm256_and_si256(_mm256_slli_epi16(h, 4), two)),
            _mm256_or_si256(_mm256_and_si256(q1, nibble), _mm256_and_si256(_mm256_slli_epi16(h, 2), two)),
            _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(q0, 4), nibble), _mm256_and_si256(h, two)),
            _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(q1, 4), nibble),
                            _mm256_and_si256(_mm256_srli_epi16(h, 2), two))};
        for (int i = 0; i < 4; ++i) {
            const __m256i pick =
                _mm256_add_epi8(_mm256_set1_epi16(static_cast<int16_t>(4 * i | (4 * i + 1) << 8)), lane);
            const __m256i s = _mm256_maddubs_epi16(codes[i], load256(a.q + 128 * n + 32 * i));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(s, _mm256_shuffle_epi8(sc, pick)));
        }
    }
    return {sum, _mm_setzero_si128()};
}

template <DType T>
inline SuperSums super_dots(const uint8_t* p, const Q8KBlock& a) {
    if constexpr (T == DType::Q6_K) {
        return dots_k6(p, a);
    } else {
        return dots_k4<T>(p, a);
    }
}

inline __m128 load_four_halves(const uint8_t* const* p, size_t at) {
    __m128i h = _mm_cvtsi32_si128(load_u16(p[0] + at));
    h = _mm_insert_epi16(h, load_u16(p[1] + at), 1);
    h = _mm_insert_epi16(h, load_u16(p[2] + at), 2);
    h = _mm_insert_epi16(h, load_u16(p[3] + at), 3);
    return _mm_cvtph_ps(h);
}

template <DType T>
inline __m128 super_step(const uint8_t* const* p, size_t at, const Q8KBlock& a, __m128 acc) {
    using Block = typename Format<T>::Block;
    const SuperSums s0 = super_dots<T>(p[0] + at, a), s1 = super_dots<T>(p[1] + at, a);
    const SuperSums s2 = super_dots<T>(p[2] + at, a), s3 = super_dots<T>(p[3] + at, a);
    const __m256i dots = add_transposed(s0.dots, s1.dots, s2.dots, s3.dots);
    const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(dots), _mm256_extracti128_si256(dots, 1));
    const __m128 da = _mm_set1_ps(a.d);
    acc = _mm_fmadd_ps(_mm_mul_ps(load_four_halves(p, at + offsetof(Block, d)), da), _mm_cvtepi32_ps(sum), acc);
    if constexpr (Format<T>::kMin) {
        const __m256i minima = add_transposed(_mm256_castsi128_si256(s0.minima), _mm256_castsi128_si256(s1.minima),
                                              _mm256_castsi128_si256(s2.minima), _mm256_castsi128_si256(s3.minima));
        const __m128 scale = _mm_mul_ps(load_four_halves(p, at + offsetof(Block, dmin)), da);
        acc = _mm_fnmadd_ps(scale, _mm_cvtepi32_ps(_mm256_castsi256_si128(minima)), acc);
    }
    return acc;
}

template <DType T>
void gemv_super(const Operands& o) {
    constexpr size_t kRows = 4, kBlockBytes = sizeof(typename Format<T>::Block);
    const size_t blocks = o.k / kSuperBlock;
    const uint8_t* end = o.w + (o.rows - 1) * o.w_stride + blocks * kBlockBytes;
    for (size_t row = 0; row < o.rows; row += kRows) {
        const size_t valid = o.rows - row < kRows ? o.rows - row : kRows;
        const uint8_t* next = row + kRows < o.rows ? o.w + (row + kRows) * o.w_stride : end;
        const uint8_t* p[kRows];
        for (size_t r = 0; r < kRows; ++r) p[r] = o.w + (row + (r < valid ? r : valid - 1)) * o.w_stride;
        for (size_t m = 0; m < o.m_rows; ++m) {
            const auto* a = reinterpret_cast<const Q8KBlock*>(o.a + m * o.a_stride);
            __m128 acc = _mm_setzero_ps();
            for (size_t b = 0; b < blocks; ++b) {
                if (m == 0) prefetch(next + b * kRows * kBlockBytes, kRows * kBlockBytes, end);
                acc = super_step<T>(p, b * kBlockBytes, a[b], acc);
            }
            const __m128i mask = _mm256_castsi256_si128(row_mask(static_cast<int>(valid)));
            _mm_maskstore_ps(o.out + m * o.out_stride + row, mask, acc);
        }
    }
}

}  // namespace
}  // namespace metallic::cpu
