#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_avx512_gemm.h"
#include "backend/cpu/isa/matmul_panel.h"

// One activation row times weights of 32-element blocks, for AVX-512: bound by memory, so weights are read once, in
// their own layout, and the work per byte is kept small.
//
// A step takes 4 blocks of 16 rows. In a `dots` vector, 128-bit lane j holds four partial sums of block j of one row;
// four rows are transposed and added to one vector whose lane j holds block j of these four rows, and four of those are
// transposed to one vector per block with a row in each lane, on which the float chain of the law runs.
namespace metallic::cpu {
namespace {

constexpr int kGemvRows = 16;

// Asks for `bytes` bytes from p on, which lie before `end`, to be brought into the second-level cache. Rows are too
// short for the processor to find their streams, and too many are read at once.
inline void prefetch(const uint8_t* p, size_t bytes, const uint8_t* end) {
    const uint8_t* stop = static_cast<size_t>(end - p) < bytes ? end : p + bytes;
    for (; p < stop; p += 64) _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1);
}

inline __m128i load128(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
inline __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// Loads 64 bytes that are used more than once: the compiler would else load them anew for every use, and such a load
// nearly always touches two cache lines.
inline __m512i load512(const void* p) {
    __m512i v = _mm512_loadu_si512(p);
    asm("" : "+v"(v));
    return v;
}

template <size_t kStride>
inline __m512i load_lanes(const uint8_t* p) {
    const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(p)), load128(p + kStride), 1);
    const __m256i high =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load128(p + 2 * kStride)), load128(p + 3 * kStride), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

inline uint64_t load_u16(const void* p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

inline uint32_t load_u32(const void* p) {
    uint32_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

// The float16 at p, p + stride, ... of four blocks.
template <size_t kStride>
inline __m128i load_halves(const uint8_t* p) {
    const uint64_t bits =
        load_u16(p) | load_u16(p + kStride) << 16 | load_u16(p + 2 * kStride) << 32 | load_u16(p + 3 * kStride) << 48;
    return _mm_cvtsi64_si128(static_cast<int64_t>(bits));
}

// Four rows of four float16 to 64-bit lanes of one block each, a row per element.
inline __m256i transpose_halves(__m128i r0, __m128i r1, __m128i r2, __m128i r3) {
    const __m128i a = _mm_unpacklo_epi16(r0, r1), b = _mm_unpacklo_epi16(r2, r3);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi32(a, b)), _mm_unpackhi_epi32(a, b), 1);
}

// 64-bit element j of h[0..3] to 64-bit elements 0..3 of h[j].
inline void transpose_quads(__m256i* h) {
    const __m256i a = _mm256_unpacklo_epi64(h[0], h[1]), b = _mm256_unpackhi_epi64(h[0], h[1]);
    const __m256i c = _mm256_unpacklo_epi64(h[2], h[3]), d = _mm256_unpackhi_epi64(h[2], h[3]);
    h[0] = _mm256_permute2x128_si256(a, c, 0x20);
    h[1] = _mm256_permute2x128_si256(b, d, 0x20);
    h[2] = _mm256_permute2x128_si256(a, c, 0x31);
    h[3] = _mm256_permute2x128_si256(b, d, 0x31);
}

// 128-bit lane j of v[0..3] to lanes 0..3 of v[j].
inline void transpose_lanes(__m512i* v) {
    const __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[2], v[3], 0x44);
    const __m512i c = _mm512_shuffle_i32x4(v[0], v[1], 0xee), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    v[0] = _mm512_shuffle_i32x4(a, b, 0x88);
    v[1] = _mm512_shuffle_i32x4(a, b, 0xdd);
    v[2] = _mm512_shuffle_i32x4(c, d, 0x88);
    v[3] = _mm512_shuffle_i32x4(c, d, 0xdd);
}

// The sum of the four dwords in lane j of s_r becomes dword r of lane j.
inline __m512i add_transposed(__m512i s0, __m512i s1, __m512i s2, __m512i s3) {
    const __m512i t0 = _mm512_add_epi32(_mm512_unpacklo_epi32(s0, s1), _mm512_unpackhi_epi32(s0, s1));
    const __m512i t1 = _mm512_add_epi32(_mm512_unpacklo_epi32(s2, s3), _mm512_unpackhi_epi32(s2, s3));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(t0, t1), _mm512_unpackhi_epi64(t0, t1));
}

// Four bytes of one chunk's activations, as a type's dots() wants them, and the correction of its zero.
struct PlainActivations {
    __m512i first, second, bias;
};

template <DType T>
inline PlainActivations load_activations(const Q8Group& g) {
    using F = Format<T>;
    const __m512i x = _mm512_load_si512(g.q), y = _mm512_load_si512(g.q + 64);
    const __m512i spread = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512i bias = _mm512_setzero_si512();
    if (!F::kMin) {
        bias = _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(load128(g.bias)));
        bias = _mm512_srai_epi32(bias, F::kZero == 8 ? 4 : F::kZero == 16 ? 3 : 0);
    }
    if constexpr (T == DType::Q8_0) return {x, y, bias};
    return {_mm512_shuffle_i64x2(x, y, 0x88), _mm512_shuffle_i64x2(x, y, 0xdd), bias};
}

// Bits 4 of 64 codes, from half of the qh words of four blocks.
template <size_t kStride, int kShift>
inline __m512i add_fifth_bits(__m512i codes, const uint8_t* qh) {
    const uint64_t bits = (load_u32(qh) >> kShift & 0xffffu) |
                          uint64_t{load_u32(qh + kStride) >> kShift & 0xffffu} << 16 |
                          uint64_t{load_u32(qh + 2 * kStride) >> kShift & 0xffffu} << 32 |
                          uint64_t{load_u32(qh + 3 * kStride) >> kShift & 0xffffu} << 48;
    return _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(16));
}

template <DType T>
inline __m512i dots(const uint8_t* p, const PlainActivations& x) {
    using Block = typename Format<T>::Block;
    constexpr size_t kStride = sizeof(Block);
    const __m512i zero = _mm512_setzero_si512();
    if constexpr (T == DType::Q8_0) {
        const __m512i flip = _mm512_set1_epi8(-128);
        const __m512i u = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p + 2)), load256(p + 36), 1);
        const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(load256(p + 70)), load256(p + 104), 1);
        const __m512i s = _mm512_dpbusd_epi32(zero, _mm512_xor_si512(u, flip), x.first);
        const __m512i t = _mm512_dpbusd_epi32(zero, _mm512_xor_si512(v, flip), x.second);
        return _mm512_add_epi32(_mm512_shuffle_i64x2(s, t, 0x88), _mm512_shuffle_i64x2(s, t, 0xdd));
    } else {
        const __m512i nibble = _mm512_set1_epi8(15);
        const __m512i raw = load_lanes<kStride>(p + offsetof(Block, qs));
        __m512i low = _mm512_and_si512(raw, nibble), high = _mm512_and_si512(_mm512_srli_epi16(raw, 4), nibble);
        if constexpr (Format<T>::kMaxCode == 31) {
            low = add_fifth_bits<kStride, 0>(low, p + offsetof(Block, qh));
            high = add_fifth_bits<kStride, 16>(high, p + offsetof(Block, qh));
        }
        if constexpr (Format<T>::kMaxCode == 255) {
            const __m512i table = table_of(Format<T>::kTable);
            low = _mm512_shuffle_epi8(table, low);
            high = _mm512_shuffle_epi8(table, high);
        }
        return _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(zero, low, x.first), high, x.second);
    }
}

// Scales of four rows, four blocks each: 64-bit lane j holds block j. They stay float16, as the block has them, and for
// MXFP4 its exponent bytes, widened.
template <DType T>
inline __m256i load_scales(const uint8_t* const* p, size_t at) {
    constexpr size_t kStride = sizeof(typename Format<T>::Block);
    if constexpr (kStride == 18) {
        const __m512i pick = _mm512_set_epi16(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 59, 27, 59, 27, 50, 18,
                                              50, 18, 41, 9, 41, 9, 32, 0, 32, 0);
        const __m512i a = _mm512_permutex2var_epi16(_mm512_loadu_si512(p[0] + at), pick, _mm512_loadu_si512(p[1] + at));
        const __m512i b = _mm512_permutex2var_epi16(_mm512_loadu_si512(p[2] + at), pick, _mm512_loadu_si512(p[3] + at));
        return _mm256_blend_epi32(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b), 0xaa);
    } else if constexpr (T == DType::MXFP4) {
        __m128i rows[4];
        for (int r = 0; r < 4; ++r) {
            const uint8_t* e = p[r] + at;
            rows[r] = _mm_cvtsi64_si128(static_cast<int64_t>(uint64_t{e[0]} | uint64_t{e[17]} << 16 |
                                                             uint64_t{e[34]} << 32 | uint64_t{e[51]} << 48));
        }
        return transpose_halves(rows[0], rows[1], rows[2], rows[3]);
    } else {
        return transpose_halves(load_halves<kStride>(p[0] + at), load_halves<kStride>(p[1] + at),
                                load_halves<kStride>(p[2] + at), load_halves<kStride>(p[3] + at));
    }
}

template <DType T>
inline __m512 scales_to_float(__m256i scales) {
    if constexpr (T == DType::MXFP4) {
        // 2^(e - 128): the bits are those of the exponent e - 1, and of a subnormal number where e < 2.
        const __m512i e = _mm512_cvtepu16_epi32(scales);
        const __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        const __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
        return _mm512_castsi512_ps(
            _mm512_mask_mov_epi32(normal, _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2)), subnormal));
    } else {
        return _mm512_cvtph_ps(scales);
    }
}

// One step: `count` blocks (1 to 4) at byte `at` of 16 rows. All four blocks are readable.
template <DType T>
inline __m512 plain_step(const uint8_t* const* p, size_t at, const Q8Group& g, int count, __m512 acc) {
    constexpr bool kMin = Format<T>::kMin;
    const PlainActivations x = load_activations<T>(g);
    __m512i sums[4];
    __m256i d[4], m[4];
    for (int r = 0; r < 4; ++r) {
        const uint8_t* const* q = p + 4 * r;
        sums[r] =
            add_transposed(dots<T>(q[0] + at, x), dots<T>(q[1] + at, x), dots<T>(q[2] + at, x), dots<T>(q[3] + at, x));
        if (!kMin) sums[r] = _mm512_add_epi32(sums[r], x.bias);
        d[r] = load_scales<T>(q, at);
        if (kMin) m[r] = load_scales<T>(q, at + 2);
    }
    transpose_lanes(sums);
    transpose_quads(d);
    if (kMin) transpose_quads(m);
    const auto add_block = [&](int j) {
        const __m512 scale = _mm512_mul_ps(scales_to_float<T>(d[j]), _mm512_set1_ps(g.d[j]));
        acc = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sums[j]), acc);
        if (kMin) acc = _mm512_fmadd_ps(scales_to_float<T>(m[j]), _mm512_set1_ps(g.s[j]), acc);
    };
    if (count == 4) {
        for (int j = 0; j < 4; ++j) add_block(j);
    } else {
        for (int j = 0; j < count; ++j) add_block(j);
    }
    return acc;
}

template <DType T>
void gemv_plain(const Operands& o) {
    constexpr size_t kBlockBytes = sizeof(typename Format<T>::Block), kStep = kGroupBlocks * kBlockBytes;
    const size_t blocks = o.k / kBlock, groups = blocks / kGroupBlocks;
    const int rest = static_cast<int>(blocks % kGroupBlocks);
    // A step reads four blocks, so that the last ones of a row whose count is no multiple of four are copied first.
    alignas(64) uint8_t tail[kGemvRows][kStep] = {};
    const uint8_t* tails[kGemvRows];
    for (size_t r = 0; r < kGemvRows; ++r) tails[r] = tail[r];
    const uint8_t* end = o.w + (o.rows - 1) * o.w_stride + blocks * kBlockBytes;
    for (size_t row = 0; row < o.rows; row += kGemvRows) {
        const size_t valid = o.rows - row < kGemvRows ? o.rows - row : kGemvRows;
        const uint8_t* next = row + kGemvRows < o.rows ? o.w + (row + kGemvRows) * o.w_stride : end;
        const uint8_t* p[kGemvRows];
        for (size_t r = 0; r < kGemvRows; ++r) p[r] = o.w + (row + (r < valid ? r : valid - 1)) * o.w_stride;
        for (size_t r = 0; rest > 0 && r < kGemvRows; ++r) {
            memcpy(tail[r], p[r] + groups * kStep, static_cast<size_t>(rest) * kBlockBytes);
        }
        for (size_t m = 0; m < o.m_rows; ++m) {
            const auto* a = reinterpret_cast<const Q8Group*>(o.a + m * o.a_stride);
            __m512 acc = _mm512_setzero_ps();
            for (size_t g = 0; g < groups; ++g) {
                if (m == 0) prefetch(next + g * kGemvRows * kStep, kGemvRows * kStep, end);
                acc = plain_step<T>(p, g * kStep, a[g], kGroupBlocks, acc);
            }
            if (rest > 0) acc = plain_step<T>(tails, 0, a[groups], rest, acc);
            _mm512_mask_storeu_ps(o.out + m * o.out_stride + row, static_cast<__mmask16>((1u << valid) - 1u), acc);
        }
    }
}

}  // namespace
}  // namespace metallic::cpu
