#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_panel.h"

// Register tiles of the AVX2 panel kernels: 8 weight rows, one dword lane each, times up to 4 activation rows.
//
// maddubs multiplies unsigned by signed bytes and adds pairs, saturating at int16. Codes up to 63 are used as they are:
// some steps of pairs are added before they would overflow. The formats with a zero of 128 keep signed values in their
// panel instead, and |w| times a with the sign of w is exact (128 * 127 * 2 < 32768), so that they need no correction.
namespace metallic::cpu {
namespace {

inline __m256i broadcast32(const void* p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return _mm256_set1_epi32(value);
}

inline __m256 broadcast_float(const void* p) {
    return _mm256_castsi256_ps(broadcast32(p));
}

inline __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline __m128i load128(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

// The sum of the four dwords in lane j of s_r becomes dword r of lane j.
inline __m256i add_transposed(__m256i s0, __m256i s1, __m256i s2, __m256i s3) {
    const __m256i t0 = _mm256_add_epi32(_mm256_unpacklo_epi32(s0, s1), _mm256_unpackhi_epi32(s0, s1));
    const __m256i t1 = _mm256_add_epi32(_mm256_unpacklo_epi32(s2, s3), _mm256_unpackhi_epi32(s2, s3));
    return _mm256_add_epi32(_mm256_unpacklo_epi64(t0, t1), _mm256_unpackhi_epi64(t0, t1));
}

// Rows of dwords to columns of dwords.
inline void transpose8(__m256i* v) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        v[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(v[i], v[i + 4], 0x31);
    }
    for (int i = 0; i < 8; ++i) v[i] = t[i];
}

template <class F>
inline constexpr bool kSigned = F::kZero == 128;

// The largest magnitude that a maddubs sees, and how many of its results can be added in int16.
template <class F>
constexpr int largest_magnitude() {
    if constexpr (F::kTabled) return F::kLargest;
    return kSigned<F> ? 128 : F::kMaxCode;
}
template <class F>
constexpr int steps_in_int16() {
    constexpr int kFits = 32767 / (2 * 127 * largest_magnitude<F>());
    return kFits >= 8 ? 8 : kFits >= 4 ? 4 : kFits >= 2 ? 2 : 1;
}

// Signed values of codes of a format with a zero of 128.
template <class F>
inline __m256i signed_values(__m256i codes) {
    if constexpr (F::kTabled) {
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(F::kTable)), codes);
    } else {
        return _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    }
}

// Pairs of products of 32 codes (signed values where kSigned) and activations.
template <class F>
[[gnu::always_inline]] inline __m256i pair_products(__m256i w, __m256i q) {
    if constexpr (kSigned<F>) {
        return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w));
    } else {
        return _mm256_maddubs_epi16(w, q);
    }
}

// Hides how a pointer came about: the compiler would else precompute, and spill, every address of a tile.
[[gnu::always_inline]] inline void keep_in_register(const uint8_t*& p) {
    asm("" : "+r"(p));
}

// Masks for up to eight rows.
inline __m256i row_mask(int rows) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(rows), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

struct Avx2 {
    static constexpr int kRows = 8;
    static constexpr int kTile = 4;

    // Twice, for madd with pairs of the same row.
    static int32_t pack_scale(int16_t sc) {
        return (sc & 0xffff) | static_cast<int32_t>(static_cast<uint32_t>(sc) << 16);
    }

    template <class F>
    static constexpr int zero() {
        return kSigned<F> ? 0 : F::kZero;
    }

    template <class F>
    static void interleave(const uint8_t* staged, int k, uint8_t* panel) {
        for (int i = 0; i < k; i += 32, panel += 32 * kRows) {
            __m256i v[8];
            for (int r = 0; r < 8; ++r) {
                v[r] = load256(staged + r * kChunk + i);
                if constexpr (kSigned<F>) v[r] = signed_values<F>(v[r]);
            }
            transpose8(v);
            for (int c = 0; c < 8; ++c) _mm256_store_si256(reinterpret_cast<__m256i*>(panel + c * 32), v[c]);
        }
    }

    template <int M>
    [[gnu::always_inline]] static void load_results(const Tile& t, __m256* acc) {
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const float* out = t.out + i.value * t.out_stride;
            acc[i.value] = t.first ? _mm256_setzero_ps() : _mm256_maskload_ps(out, row_mask(t.rows));
        });
    }

    template <int M>
    [[gnu::always_inline]] static void store_results(const Tile& t, const __m256* acc) {
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            _mm256_maskstore_ps(t.out + i.value * t.out_stride, row_mask(t.rows), acc[i.value]);
        });
    }

    // sum[i] += scale times the dot products of kCount times four codes of every row with the activations at a[i].
    template <class F, int M, int kCount>
    [[gnu::always_inline]] static void dot(const uint8_t* codes, const uint8_t** a, __m256i scale, __m256i* sum) {
        constexpr int kSteps = steps_in_int16<F>() < kCount ? steps_in_int16<F>() : kCount;
        unrolled<M>([&](auto i) __attribute__((always_inline)) { keep_in_register(a[i.value]); });
        unrolled<kCount / kSteps>([&](auto s) __attribute__((always_inline)) {
            __m256i pairs[M];
            unrolled<kSteps>([&](auto t) __attribute__((always_inline)) {
                constexpr int kAt = s.value * kSteps + t.value;
                const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(codes + 32 * kAt));
                unrolled<M>([&](auto i) __attribute__((always_inline)) {
                    const __m256i p = pair_products<F>(w, broadcast32(a[i.value] + 4 * kAt));
                    pairs[i.value] = t.value == 0 ? p : _mm256_add_epi16(pairs[i.value], p);
                });
            });
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                sum[i.value] = _mm256_add_epi32(sum[i.value], _mm256_madd_epi16(pairs[i.value], scale));
            });
        });
    }

    // The block at a[i], number j of its group.
    template <class F, int M>
    [[gnu::always_inline]] static void add_plain_block(const PlainPanel<kRows>& panel, int b, const uint8_t** a, int j,
                                                       __m256* acc) {
        __m256i sum[M];
        // From a[i] to the group's scale, sum and bias of this block.
        const int back = 4 * j - kBlock * j;
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            sum[i.value] = _mm256_setzero_si256();
            if constexpr (zero<F>() != 0) {
                const __m256i bias = broadcast32(a[i.value] + back + static_cast<int>(offsetof(Q8Group, bias)));
                sum[i.value] = _mm256_srai_epi32(bias, zero<F>() == 8 ? 4 : 3);
            }
        });
        dot<F, M, 8>(panel.codes[b], a, _mm256_set1_epi16(1), sum);
        const __m256 d = _mm256_load_ps(panel.d[b]);
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const uint8_t* p = a[i.value] + back;
            const __m256 scale = _mm256_mul_ps(d, broadcast_float(p + offsetof(Q8Group, d)));
            acc[i.value] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sum[i.value]), acc[i.value]);
            if constexpr (F::kMin) {
                const __m256 s = broadcast_float(p + offsetof(Q8Group, s));
                acc[i.value] = _mm256_fmadd_ps(_mm256_load_ps(panel.m[b]), s, acc[i.value]);
            }
        });
    }

    template <class F, int M>
    static void plain_tile(const PlainPanel<kRows>& panel, const Tile& t) {
        __m256 acc[M];
        const uint8_t* a[M];
        load_results<M>(t, acc);
        unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] = t.a + i.value * t.a_stride; });
        for (int b = 0; b < t.count; ++b) {
            const int j = b % kGroupBlocks;
            add_plain_block<F, M>(panel, b, a, j, acc);
            const size_t step = j + 1 < kGroupBlocks ? kBlock : sizeof(Q8Group) - kGroup + kBlock;
            unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] += step; });
        }
        store_results<M>(t, acc);
    }

    // sum[i] += the pairs of int16 of every row times the activations' sums.
    template <class F, int M>
    [[gnu::always_inline]] static void dot_sums(const SuperPanel<kRows>& panel, const uint8_t* const* a, __m256i* sum) {
        constexpr size_t kSums = F::kSub == 32 ? offsetof(Q8KBlock, sums32) : offsetof(Q8KBlock, sums16);
        unrolled<kSuperBlock / F::kSub / 2>([&](auto p) __attribute__((always_inline)) {
            const __m256i pairs = load256(panel.pairs[p.value]);
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                const __m256i sums = broadcast32(a[i.value] + kSums + 4 * p.value);
                sum[i.value] = _mm256_add_epi32(sum[i.value], _mm256_madd_epi16(pairs, sums));
            });
        });
    }

    template <class F, int M>
    [[gnu::always_inline]] static void add_super_block(const SuperPanel<kRows>& panel, const uint8_t** a, __m256* acc) {
        __m256i sum[M], extra[M];
        unrolled<M>([&](auto i)
                        __attribute__((always_inline)) { sum[i.value] = extra[i.value] = _mm256_setzero_si256(); });
        if constexpr (zero<F>() != 0) dot_sums<F, M>(panel, a, sum);
        if constexpr (F::kMin) dot_sums<F, M>(panel, a, extra);
        const __m256 d = _mm256_load_ps(panel.d);
        if constexpr (F::kMin) {
            // Kept as floats until the sums are added, as the law has them in that order.
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                extra[i.value] = _mm256_castps_si256(_mm256_cvtepi32_ps(extra[i.value]));
            });
        }
        for (int j = 0; j < kSuperBlock / F::kSub; ++j) {
            dot<F, M, F::kSub / 4>(panel.codes + j * F::kSub * kRows, a, load256(panel.sc[j]), sum);
            unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] += F::kSub; });
        }
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const __m256 da = broadcast_float(a[i.value] - kSuperBlock + offsetof(Q8KBlock, d));
            acc[i.value] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(sum[i.value]), acc[i.value]);
            if constexpr (F::kMin) {
                const __m256 scale = _mm256_mul_ps(_mm256_load_ps(panel.m), da);
                acc[i.value] = _mm256_fnmadd_ps(scale, _mm256_castsi256_ps(extra[i.value]), acc[i.value]);
            }
            a[i.value] += sizeof(Q8KBlock) - kSuperBlock;
        });
    }

    template <class F, int M>
    static void super_tile(const SuperPanel<kRows>* panels, const Tile& t) {
        __m256 acc[M];
        const uint8_t* a[M];
        load_results<M>(t, acc);
        unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] = t.a + i.value * t.a_stride; });
        for (int b = 0; b < t.count; ++b) add_super_block<F, M>(panels[b], a, acc);
        store_results<M>(t, acc);
    }
};

}  // namespace
}  // namespace metallic::cpu
