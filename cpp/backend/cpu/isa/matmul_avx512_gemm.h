#pragma once

#include <immintrin.h>

#include "backend/cpu/isa/matmul_panel.h"

// Register tiles of the AVX-512 panel kernels: 16 weight rows, one lane each, times up to 8 activation rows.
namespace metallic::cpu {
namespace {

inline __m512i broadcast32(const void* p) {
    int32_t value;
    memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
}

inline __m512 broadcast_float(const void* p) {
    return _mm512_castsi512_ps(broadcast32(p));
}

// Hides how a pointer came about: the compiler would else precompute, and spill, every address of a tile.
[[gnu::always_inline]] inline void keep_in_register(const uint8_t*& p) {
    asm("" : "+r"(p));
}

// sum += the products of each four unsigned bytes of w with the same four signed bytes at q. As assembly, because GCC
// would load and broadcast q in an instruction of its own.
[[gnu::always_inline]] inline void add_products(__m512i& sum, __m512i w, const uint8_t* q) {
    struct Word {
        uint8_t bytes[4];
    };
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*reinterpret_cast<const Word*>(q)));
}

[[gnu::always_inline]] inline void prefetch_next(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
}

inline __mmask16 row_mask(int rows) {
    return static_cast<__mmask16>((1u << rows) - 1u);
}

// The codes of a table's values, in every 128-bit lane.
inline __m512i table_of(const int8_t* values) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm512_broadcast_i32x4(_mm_xor_si128(codes, _mm_set1_epi8(-128)));
}

// Rows of dwords to columns of dwords.
inline void transpose16(__m512i* v) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(v[i], v[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(v[i + 8], v[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        v[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        v[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

struct Avx512 {
    static constexpr int kRows = 16;
    static constexpr int kTile = 8;

    static int32_t pack_scale(int16_t sc) { return sc; }

    template <class F>
    static constexpr int zero() {
        return F::kZero;
    }

    // Codes of plain formats without a minimum are shifted to a zero of 128, so that Q8Group::bias corrects them all.
    template <class F>
    static __m512i finish_codes(__m512i codes) {
        if constexpr (F::kTabled) {
            return _mm512_shuffle_epi8(table_of(F::kTable), codes);
        } else if constexpr (!F::kSuper && !F::kMin && F::kZero != 128) {
            return _mm512_add_epi8(codes, _mm512_set1_epi8(128 - F::kZero));
        } else {
            return codes;
        }
    }

    template <class F>
    static void interleave(const uint8_t* staged, int k, uint8_t* panel) {
        for (int i = 0; i < k; i += 64, panel += 64 * kRows) {
            const int columns = k - i < 64 ? 8 : 16;
            const __mmask16 mask = row_mask(columns);
            __m512i v[16];
            for (int r = 0; r < 16; ++r)
                v[r] = finish_codes<F>(_mm512_maskz_loadu_epi32(mask, staged + r * kChunk + i));
            transpose16(v);
            for (int c = 0; c < columns; ++c) _mm512_store_si512(panel + c * 64, v[c]);
        }
    }

    template <int M>
    [[gnu::always_inline]] static void load_results(const Tile& t, __m512* acc) {
        const __mmask16 mask = row_mask(t.rows);
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const float* out = t.out + i.value * t.out_stride;
            _mm_prefetch(reinterpret_cast<const char*>(out + M * t.out_stride), _MM_HINT_T0);
            acc[i.value] = t.first ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, out);
        });
    }

    template <int M>
    [[gnu::always_inline]] static void store_results(const Tile& t, const __m512* acc) {
        const __mmask16 mask = row_mask(t.rows);
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            _mm512_mask_storeu_ps(t.out + i.value * t.out_stride, mask, acc[i.value]);
        });
    }

    // sum[i] += the dot products of kSteps times four codes of every row with the activations at a[i].
    template <int M, int kSteps>
    [[gnu::always_inline]] static void dot(const uint8_t* codes, const uint8_t** a, __m512i* sum) {
        unrolled<M>([&](auto i) __attribute__((always_inline)) { keep_in_register(a[i.value]); });
        unrolled<kSteps>([&](auto s) __attribute__((always_inline)) {
            const __m512i w = _mm512_load_si512(codes + 64 * s.value);
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                add_products(sum[i.value], w, a[i.value] + 4 * s.value);
            });
        });
    }

    // The block at a[i], number j of its group.
    template <bool kMin, int M>
    [[gnu::always_inline]] static void add_plain_block(const PlainPanel<kRows>& panel, int b, const uint8_t** a, int j,
                                                       __m512* acc) {
        // From a[i] to the group's scale, sum and bias of this block.
        const int back = 4 * j - kBlock * j;
        __m512i sum[M];
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const uint8_t* bias = a[i.value] + back + static_cast<int>(offsetof(Q8Group, bias));
            sum[i.value] = kMin ? _mm512_setzero_si512() : broadcast32(bias);
        });
        dot<M, 8>(panel.codes[b], a, sum);
        const __m512 d = _mm512_load_ps(panel.d[b]);
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const uint8_t* p = a[i.value] + back;
            const __m512 scale = _mm512_mul_ps(d, broadcast_float(p + offsetof(Q8Group, d)));
            acc[i.value] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum[i.value]), acc[i.value]);
            if constexpr (kMin) {
                const __m512 s = broadcast_float(p + offsetof(Q8Group, s));
                acc[i.value] = _mm512_fmadd_ps(_mm512_load_ps(panel.m[b]), s, acc[i.value]);
            }
        });
    }

    template <class F, int M>
    static void plain_tile(const PlainPanel<kRows>& panel, const Tile& t) {
        plain_blocks<F::kMin, M>(panel, t);
    }

    template <bool kMin, int M>
    static void plain_blocks(const PlainPanel<kRows>& panel, const Tile& t) {
        __m512 acc[M];
        const uint8_t* a[M];
        load_results<M>(t, acc);
        unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] = t.a + i.value * t.a_stride; });
        for (int b = 0; b < t.count; ++b) {
            const int j = b % kGroupBlocks;
            // Line j of this group of the next tile: a tile's rows are too short to be found as streams.
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                prefetch_next(a[i.value] + M * t.a_stride + kBlock * j);
            });
            add_plain_block<kMin, M>(panel, b, a, j, acc);
            const size_t step = j + 1 < kGroupBlocks ? kBlock : sizeof(Q8Group) - kGroup + kBlock;
            unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] += step; });
        }
        store_results<M>(t, acc);
    }

    // sum[i] += the pairs of int16 of every row times the activations' sums.
    template <int kSub, int M>
    [[gnu::always_inline]] static void dot_sums(const SuperPanel<kRows>& panel, const uint8_t* const* a, __m512i* sum) {
        constexpr size_t kSums = kSub == 32 ? offsetof(Q8KBlock, sums32) : offsetof(Q8KBlock, sums16);
        for (int p = 0; p < kSuperBlock / kSub / 2; ++p) {
            const __m512i pairs = _mm512_load_si512(panel.pairs[p]);
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                sum[i.value] = _mm512_dpwssd_epi32(sum[i.value], pairs, broadcast32(a[i.value] + kSums + 4 * p));
            });
        }
    }

    template <int kSub, bool kMin, int M>
    [[gnu::always_inline]] static void add_super_block(const SuperPanel<kRows>& panel, const uint8_t** a, __m512* acc) {
        __m512i sum[M], extra[M];
        unrolled<M>([&](auto i)
                        __attribute__((always_inline)) { sum[i.value] = extra[i.value] = _mm512_setzero_si512(); });
        dot_sums<kSub, M>(panel, a, kMin ? extra : sum);
        for (int j = 0; j < kSuperBlock / kSub; ++j) {
            __m512i part[M];
            unrolled<M>([&](auto i) __attribute__((always_inline)) { part[i.value] = _mm512_setzero_si512(); });
            dot<M, kSub / 4>(panel.codes + j * kSub * kRows, a, part);
            const __m512i sc = _mm512_load_si512(panel.sc[j]);
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                sum[i.value] = _mm512_add_epi32(sum[i.value], _mm512_mullo_epi32(part[i.value], sc));
                a[i.value] += kSub;
            });
        }
        const __m512 d = _mm512_load_ps(panel.d);
        unrolled<M>([&](auto i) __attribute__((always_inline)) {
            const __m512 da = broadcast_float(a[i.value] - kSuperBlock + offsetof(Q8KBlock, d));
            acc[i.value] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(sum[i.value]), acc[i.value]);
            if constexpr (kMin) {
                const __m512 scale = _mm512_mul_ps(_mm512_load_ps(panel.m), da);
                acc[i.value] = _mm512_fnmadd_ps(scale, _mm512_cvtepi32_ps(extra[i.value]), acc[i.value]);
            }
        });
    }

    template <class F, int M>
    static void super_tile(const SuperPanel<kRows>* panels, const Tile& t) {
        super_blocks<F::kSub, F::kMin, M>(panels, t);
    }

    template <int kSub, bool kMin, int M>
    static void super_blocks(const SuperPanel<kRows>* panels, const Tile& t) {
        __m512 acc[M];
        const uint8_t* a[M];
        load_results<M>(t, acc);
        unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] = t.a + i.value * t.a_stride; });
        for (int b = 0; b < t.count; ++b) {
            // This block of the next tile: a tile's rows are too short to be found as streams.
            unrolled<M>([&](auto i) __attribute__((always_inline)) {
                for (size_t at = 0; at < sizeof(Q8KBlock); at += 64) prefetch_next(a[i.value] + M * t.a_stride + at);
            });
            add_super_block<kSub, kMin, M>(panels[b], a, acc);
            unrolled<M>([&](auto i) __attribute__((always_inline)) { a[i.value] += sizeof(Q8KBlock) - kSuperBlock; });
        }
        store_results<M>(t, acc);
    }
};

}  // namespace
}  // namespace metallic::cpu
