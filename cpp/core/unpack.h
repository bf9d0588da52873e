#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__F16C__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/blocks.h"
#include "core/dtype.h"

// How each quantised type unpacks to codes and scales, written once for dequantisation and all matrix kernels.
//
// Everything here has internal linkage on purpose: the header is compiled with different instruction sets in different
// translation units, and the linker must not merge those copies. It therefore calls no inline function of other
// headers.
//
// Plain formats (32 elements):   x = scale (code - kZero), or x = scale code + minimum
// Super formats (256 elements):  x = d sc[j] (code - kZero), or x = d sc[j] code - dmin mn[j], j = element / kSub
namespace metallic {
namespace {

inline float half_bits_to_float(half_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h.bits);
#else
    const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
    const uint32_t magnitude = h.bits & 0x7fffu;
    uint32_t bits = (magnitude << 13) + 0x38000000u;
    if (magnitude >= 0x7c00u) bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
    if (magnitude < 0x0400u)
        bits = __builtin_bit_cast(uint32_t, static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f);
    return __builtin_bit_cast(float, sign | bits);
#endif
}

inline float bf16_bits_to_float(bf16_t b) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(b.bits) << 16);
}

// Half of 2^(e - 127): MXFP4's values are kept doubled.
inline float e8m0_half_to_float(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
    return __builtin_bit_cast(float, bits);
}

// 16 bytes as a vector of the compiler: loops over bytes that may alias would be left scalar.
using Bytes = uint8_t __attribute__((vector_size(16)));

inline Bytes load_bytes(const void* p) {
    Bytes v;
    memcpy(&v, p, sizeof v);
    return v;
}
inline void store_bytes(uint8_t* p, Bytes v) {
    memcpy(p, &v, sizeof v);
}

// 16 bytes of nibbles: the low ones are elements 0..15, the high ones 16..31.
inline void unpack_nibbles(const uint8_t* qs, uint8_t* codes) {
    const Bytes q = load_bytes(qs);
    store_bytes(codes, q & 15);
    store_bytes(codes + 16, q >> 4);
}

// Bit i in the byte at offset i of a word in memory.
inline constexpr uint64_t kEightBits =
    __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 0x8040201008040201u : 0x0102040810204080u;

// Sets bit 4 of code i to bit i of qh: bytes of eight codes at a time, each of which keeps its own bit of the byte of
// qh, which the addition carries to its top.
inline void add_fifth_bit(const uint8_t* qh, uint8_t* codes) {
    for (int i = 0; i < 4; ++i) {
        uint64_t eight;
        memcpy(&eight, codes + 8 * i, sizeof eight);
        const uint64_t bits = qh[i] * 0x0101010101010101u & kEightBits;
        eight |= (bits + 0x7f7f7f7f7f7f7f7fu) >> 3 & 0x1010101010101010u;
        memcpy(codes + 8 * i, &eight, sizeof eight);
    }
}

// The 6-bit scales and minima of Q4_K and Q5_K: 12 bytes for 8 sub-blocks.
inline void unpack_scales_k4(const uint8_t* packed, int16_t* sc, int16_t* mn) {
    for (int j = 0; j < 4; ++j) {
        sc[j] = packed[j] & 63;
        mn[j] = packed[4 + j] & 63;
        sc[4 + j] = static_cast<int16_t>((packed[8 + j] & 15) | (packed[j] >> 2 & 48));
        mn[4 + j] = static_cast<int16_t>((packed[8 + j] >> 4) | (packed[4 + j] >> 2 & 48));
    }
}

// n is a multiple of 16, the codes are below 16.
inline void look_up(const int8_t* table, int n, uint8_t* codes) {
#if defined(__AVX2__)
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    for (int i = 0; i < n; i += 16) {
        __m128i* const c = reinterpret_cast<__m128i*>(codes + i);
        _mm_storeu_si128(c, _mm_xor_si128(_mm_shuffle_epi8(values, _mm_loadu_si128(c)), _mm_set1_epi8(-128)));
    }
#else
    for (int i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(table[codes[i]]) ^ 0x80;
#endif
}

template <DType T>
struct Format;

// kTable, where a format is kTabled, maps the nibbles that raw() unpacks to signed values of a magnitude up to
// kLargest; codes() are those values + 128.
struct PlainFormat {
    static constexpr bool kTabled = false;
    static constexpr int kElements = kBlock;
    static constexpr bool kSuper = false;
};
struct SuperFormat {
    static constexpr bool kTabled = false;
    static constexpr int kElements = kSuperBlock;
    static constexpr bool kSuper = true;
};

template <>
struct Format<DType::Q4_0> : PlainFormat {
    using Block = BlockQ4_0;
    static constexpr int kZero = 8, kMaxCode = 15;
    static constexpr bool kMin = false;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void codes(const Block& b, uint8_t* out) { unpack_nibbles(b.qs, out); }
};

template <>
struct Format<DType::Q4_1> : PlainFormat {
    using Block = BlockQ4_1;
    static constexpr int kZero = 0, kMaxCode = 15;
    static constexpr bool kMin = true;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block& b) { return half_bits_to_float(b.m); }
    static void codes(const Block& b, uint8_t* out) { unpack_nibbles(b.qs, out); }
};

template <>
struct Format<DType::Q5_0> : PlainFormat {
    using Block = BlockQ5_0;
    static constexpr int kZero = 16, kMaxCode = 31;
    static constexpr bool kMin = false;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void codes(const Block& b, uint8_t* out) {
        unpack_nibbles(b.qs, out);
        add_fifth_bit(b.qh, out);
    }
};

template <>
struct Format<DType::Q5_1> : PlainFormat {
    using Block = BlockQ5_1;
    static constexpr int kZero = 0, kMaxCode = 31;
    static constexpr bool kMin = true;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block& b) { return half_bits_to_float(b.m); }
    static void codes(const Block& b, uint8_t* out) {
        unpack_nibbles(b.qs, out);
        add_fifth_bit(b.qh, out);
    }
};

template <>
struct Format<DType::Q8_0> : PlainFormat {
    using Block = BlockQ8_0;
    static constexpr int kZero = 128, kMaxCode = 255;
    static constexpr bool kMin = false;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void codes(const Block& b, uint8_t* out) {
        for (int i = 0; i < 32; i += 16) store_bytes(out + i, load_bytes(b.qs + i) ^ 0x80);
    }
};

template <>
struct Format<DType::IQ4_NL> : PlainFormat {
    using Block = BlockIQ4_NL;
    static constexpr int kZero = 128, kMaxCode = 255;
    static constexpr bool kMin = false;
    static constexpr bool kTabled = true;
    static constexpr int kLargest = 127;
    static constexpr const int8_t* kTable = kIQ4Values;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void raw(const Block& b, uint8_t* out) { unpack_nibbles(b.qs, out); }
    static void codes(const Block& b, uint8_t* out) {
        raw(b, out);
        look_up(kTable, kElements, out);
    }
};

template <>
struct Format<DType::MXFP4> : PlainFormat {
    using Block = BlockMXFP4;
    static constexpr int kZero = 128, kMaxCode = 255;
    static constexpr bool kMin = false;
    static constexpr bool kTabled = true;
    static constexpr int kLargest = 12;
    static constexpr const int8_t* kTable = kE2M1Doubled;
    static float scale(const Block& b) { return e8m0_half_to_float(b.e); }
    static float minimum(const Block&) { return 0; }
    static void raw(const Block& b, uint8_t* out) { unpack_nibbles(b.qs, out); }
    static void codes(const Block& b, uint8_t* out) {
        raw(b, out);
        look_up(kTable, kElements, out);
    }
};

template <>
struct Format<DType::Q2_K> : SuperFormat {
    using Block = BlockQ2_K;
    static constexpr int kZero = 0, kMaxCode = 3, kSub = 16;
    static constexpr bool kMin = true;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block& b) { return half_bits_to_float(b.dmin); }
    static void scales(const Block& b, int16_t* sc, int16_t* mn) {
        for (int j = 0; j < 16; ++j) {
            sc[j] = b.scales[j] & 15;
            mn[j] = b.scales[j] >> 4;
        }
    }
    static void codes(const Block& b, uint8_t* out) {
        for (int n = 0; n < 2; ++n) {
            for (int i = 0; i < 32; i += 16) {
                const Bytes q = load_bytes(b.qs + 32 * n + i);
                for (int s = 0; s < 4; ++s) store_bytes(out + 128 * n + 32 * s + i, q >> (2 * s) & 3);
            }
        }
    }
};

template <>
struct Format<DType::Q3_K> : SuperFormat {
    using Block = BlockQ3_K;
    static constexpr int kZero = 4, kMaxCode = 7, kSub = 16;
    static constexpr bool kMin = false;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void scales(const Block& b, int16_t* sc, int16_t*) {
        for (int j = 0; j < 16; ++j) {
            const int low = b.scales[j % 8] >> (j / 8 * 4) & 15;
            const int high = b.scales[8 + j % 4] >> (j / 4 * 2) & 3;
            sc[j] = static_cast<int16_t>((low | high << 4) - 32);
        }
    }
    static void codes(const Block& b, uint8_t* out) {
        for (int n = 0; n < 2; ++n) {
            for (int i = 0; i < 32; i += 16) {
                const Bytes q = load_bytes(b.qs + 32 * n + i), h = load_bytes(b.hmask + i) >> (4 * n);
                for (int s = 0; s < 4; ++s) {
                    store_bytes(out + 128 * n + 32 * s + i, (q >> (2 * s) & 3) | (h >> s & 1) << 2);
                }
            }
        }
    }
};

template <>
struct Format<DType::Q4_K> : SuperFormat {
    using Block = BlockQ4_K;
    static constexpr int kZero = 0, kMaxCode = 15, kSub = 32;
    static constexpr bool kMin = true;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block& b) { return half_bits_to_float(b.dmin); }
    static void scales(const Block& b, int16_t* sc, int16_t* mn) { unpack_scales_k4(b.scales, sc, mn); }
    static void codes(const Block& b, uint8_t* out) {
        for (int n = 0; n < 4; ++n) {
            for (int i = 0; i < 32; i += 16) {
                const Bytes q = load_bytes(b.qs + 32 * n + i);
                store_bytes(out + 64 * n + i, q & 15);
                store_bytes(out + 64 * n + 32 + i, q >> 4);
            }
        }
    }
};

template <>
struct Format<DType::Q5_K> : SuperFormat {
    using Block = BlockQ5_K;
    static constexpr int kZero = 0, kMaxCode = 31, kSub = 32;
    static constexpr bool kMin = true;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block& b) { return half_bits_to_float(b.dmin); }
    static void scales(const Block& b, int16_t* sc, int16_t* mn) { unpack_scales_k4(b.scales, sc, mn); }
    static void codes(const Block& b, uint8_t* out) {
        for (int n = 0; n < 4; ++n) {
            for (int i = 0; i < 32; i += 16) {
                const Bytes q = load_bytes(b.qs + 32 * n + i), h = load_bytes(b.qh + i) >> (2 * n);
                store_bytes(out + 64 * n + i, (q & 15) | (h & 1) << 4);
                store_bytes(out + 64 * n + 32 + i, q >> 4 | (h & 2) << 3);
            }
        }
    }
};

template <>
struct Format<DType::Q6_K> : SuperFormat {
    using Block = BlockQ6_K;
    static constexpr int kZero = 32, kMaxCode = 63, kSub = 16;
    static constexpr bool kMin = false;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void scales(const Block& b, int16_t* sc, int16_t*) {
        for (int j = 0; j < 16; ++j) sc[j] = static_cast<int16_t>(int{b.scales[j]});
    }
    static void codes(const Block& b, uint8_t* out) {
        for (int n = 0; n < 2; ++n) {
            for (int i = 0; i < 32; i += 16) {
                const Bytes q0 = load_bytes(b.ql + 64 * n + i), q1 = load_bytes(b.ql + 64 * n + 32 + i);
                const Bytes h = load_bytes(b.qh + 32 * n + i);
                store_bytes(out + 128 * n + i, (q0 & 15) | (h & 3) << 4);
                store_bytes(out + 128 * n + 32 + i, (q1 & 15) | (h & 12) << 2);
                store_bytes(out + 128 * n + 64 + i, q0 >> 4 | (h & 48));
                store_bytes(out + 128 * n + 96 + i, q1 >> 4 | (h & 192) >> 2);
            }
        }
    }
};

template <>
struct Format<DType::IQ4_XS> : SuperFormat {
    using Block = BlockIQ4_XS;
    static constexpr int kZero = 128, kMaxCode = 255, kSub = 32;
    static constexpr bool kMin = false;
    static constexpr bool kTabled = true;
    static constexpr int kLargest = 127;
    static constexpr const int8_t* kTable = kIQ4Values;
    static float scale(const Block& b) { return half_bits_to_float(b.d); }
    static float minimum(const Block&) { return 0; }
    static void scales(const Block& b, int16_t* sc, int16_t*) {
        uint16_t high;
        memcpy(&high, &b.scales_h, sizeof high);
        for (int j = 0; j < 8; ++j) {
            const int low = b.scales_l[j / 2] >> (j % 2 * 4) & 15;
            sc[j] = static_cast<int16_t>((low | (high >> (2 * j) & 3) << 4) - 32);
        }
    }
    static void raw(const Block& b, uint8_t* out) {
        for (int n = 0; n < 8; ++n) unpack_nibbles(b.qs + 16 * n, out + 32 * n);
    }
    static void codes(const Block& b, uint8_t* out) {
        raw(b, out);
        look_up(kTable, kElements, out);
    }
};

}  // namespace
}  // namespace metallic
