#pragma once

#include <metal_stdlib>

using namespace metal;

// The tensor types of GGUF as kernels read them: in place, a piece of a row at a time. The layouts are those of
// cpp/core/blocks.h (source: ggml's block_* structures and gguf-py's quants.py).
//
// Every type has
//   elements, bytes   of a block; `pieces` of `vectors` * 4 consecutive elements each
//   whole             a row is whole blocks (else it may end inside of one, and `element` reads what is left)
//   has_offset        whether the second value of `codes` can be other than 0
//   codes()           q[vectors] and (scale, offset): element i of the piece is scale * q[i] + offset
// A scale and an offset per piece, because a dot product needs them once and not per element.
//
// Bytes are loaded as words of the alignment that a type's blocks keep in a file whose tensors are 4-byte aligned.

// Before loops over arrays that are to live in registers.
#define METALLIC_UNROLL _Pragma("clang loop unroll(full)")

// ---- bytes to codes ----

inline uint4 load_words_4(device const uchar* p) {
    return uint4(*(device const packed_uint4*)p);
}

inline uint4 load_words_2(device const uchar* p) {
    device const packed_ushort4* const q = (device const packed_ushort4*)p;
    return uint4(as_type<uint2>(ushort4(q[0])), as_type<uint2>(ushort4(q[1])));
}

inline uint4 load_words_1(device const uchar* p) {
    device const packed_uchar4* const q = (device const packed_uchar4*)p;
    return uint4(as_type<uint>(uchar4(q[0])), as_type<uint>(uchar4(q[1])), as_type<uint>(uchar4(q[2])),
                 as_type<uint>(uchar4(q[3])));
}

inline void unsigned_bytes(uint4 words, thread float4* q) {
    q[0] = float4(as_type<uchar4>(words.x));
    q[1] = float4(as_type<uchar4>(words.y));
    q[2] = float4(as_type<uchar4>(words.z));
    q[3] = float4(as_type<uchar4>(words.w));
}

inline void signed_bytes(uint4 words, thread float4* q) {
    q[0] = float4(as_type<char4>(words.x));
    q[1] = float4(as_type<char4>(words.y));
    q[2] = float4(as_type<char4>(words.z));
    q[3] = float4(as_type<char4>(words.w));
}

inline float4 look_up(constant const float* table, uint word) {
    const uchar4 i = as_type<uchar4>(word);
    return float4(table[i.x], table[i.y], table[i.z], table[i.w]);
}

inline void look_up(constant const float* table, uint4 words, thread float4* q) {
    q[0] = look_up(table, words.x);
    q[1] = look_up(table, words.y);
    q[2] = look_up(table, words.z);
    q[3] = look_up(table, words.w);
}

// The low (shift 0) or high (shift 4) nibble of every byte.
inline uint4 nibbles(uint4 words, uint shift) {
    return (words >> shift) & 0x0f0f0f0fu;
}

// Bit i of `bits`, i < 16, as bit 4 of byte i. The product puts bit j of four at bits j, j + 7, j + 14, j + 21, all
// different, so that bit j lies at 8 j.
inline uint4 fifth_bits(uint bits) {
    const uint4 four = (uint4(bits) >> uint4(0u, 4u, 8u, 12u)) & 15u;
    return ((four * 0x00204081u) & 0x01010101u) << 4u;
}

constant constexpr float kIq4Values[16] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
                                           1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f};
constant constexpr float kE2m1Values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                            -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

struct WholeBlocks {
    enum { vectors = 4, whole = 1 };
    static float element(device const uchar*, uint) { return 0.0f; }  // never called
};
struct SingleElements {
    enum { vectors = 2, whole = 0 };
};

// ---- elements without blocks: a "block" is eight of them ----

struct ElementF32 : SingleElements {
    enum { elements = 8, bytes = 32, pieces = 1, has_offset = 0 };

    static float2 codes(device const uchar* block, uint, thread float4* q) {
        device const packed_float4* const v = (device const packed_float4*)block;
        q[0] = float4(v[0]);
        q[1] = float4(v[1]);
        return float2(1.0f, 0.0f);
    }
    static float element(device const uchar* row, uint i) { return ((device const float*)row)[i]; }
};

struct ElementF16 : SingleElements {
    enum { elements = 8, bytes = 16, pieces = 1, has_offset = 0 };

    static float2 codes(device const uchar* block, uint, thread float4* q) {
        device const packed_half4* const v = (device const packed_half4*)block;
        q[0] = float4(half4(v[0]));
        q[1] = float4(half4(v[1]));
        return float2(1.0f, 0.0f);
    }
    static float element(device const uchar* row, uint i) { return float(((device const half*)row)[i]); }
};

// Without the type bfloat, which came with Metal 3.1.
struct ElementBF16 : SingleElements {
    enum { elements = 8, bytes = 16, pieces = 1, has_offset = 0 };

    static float2 codes(device const uchar* block, uint, thread float4* q) {
        device const packed_ushort4* const v = (device const packed_ushort4*)block;
        q[0] = as_type<float4>(uint4(ushort4(v[0])) << 16u);
        q[1] = as_type<float4>(uint4(ushort4(v[1])) << 16u);
        return float2(1.0f, 0.0f);
    }
    static float element(device const uchar* row, uint i) {
        return as_type<float>(uint(((device const ushort*)row)[i]) << 16u);
    }
};

// ---- plain blocks: 32 elements, pieces 0 and 1 ----

struct BlockQ4_0 : WholeBlocks {  // x = d (q - 8); low nibbles are elements 0..15, high nibbles 16..31
    half d;
    uchar qs[16];

    enum { elements = 32, bytes = 18, pieces = 2, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ4_0* const b = (device const BlockQ4_0*)block;
        unsigned_bytes(nibbles(load_words_2(b->qs), 4u * piece), q);
        const float d = float(b->d);
        return float2(d, -8.0f * d);
    }
};

struct BlockQ4_1 : WholeBlocks {  // x = d q + m
    half d, m;
    uchar qs[16];

    enum { elements = 32, bytes = 20, pieces = 2, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ4_1* const b = (device const BlockQ4_1*)block;
        unsigned_bytes(nibbles(load_words_4(b->qs), 4u * piece), q);
        return float2(float(b->d), float(b->m));
    }
};

struct BlockQ5_0 : WholeBlocks {  // x = d (q - 16); bit i of qh is bit 4 of element i
    half d;
    ushort qh[2];
    uchar qs[16];

    enum { elements = 32, bytes = 22, pieces = 2, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ5_0* const b = (device const BlockQ5_0*)block;
        unsigned_bytes(nibbles(load_words_2(b->qs), 4u * piece) | fifth_bits(b->qh[piece]), q);
        const float d = float(b->d);
        return float2(d, -16.0f * d);
    }
};

struct BlockQ5_1 : WholeBlocks {  // x = d q + m
    half d, m;
    ushort qh[2];
    uchar qs[16];

    enum { elements = 32, bytes = 24, pieces = 2, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ5_1* const b = (device const BlockQ5_1*)block;
        unsigned_bytes(nibbles(load_words_4(b->qs), 4u * piece) | fifth_bits(b->qh[piece]), q);
        return float2(float(b->d), float(b->m));
    }
};

struct BlockQ8_0 : WholeBlocks {  // x = d q
    half d;
    char qs[32];

    enum { elements = 32, bytes = 34, pieces = 2, has_offset = 0 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ8_0* const b = (device const BlockQ8_0*)block;
        signed_bytes(load_words_2((device const uchar*)b->qs + 16u * piece), q);
        return float2(float(b->d), 0.0f);
    }
};

struct BlockIQ4_NL : WholeBlocks {  // x = d kIq4Values[q]; nibbles as in Q4_0
    half d;
    uchar qs[16];

    enum { elements = 32, bytes = 18, pieces = 2, has_offset = 0 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockIQ4_NL* const b = (device const BlockIQ4_NL*)block;
        look_up(kIq4Values, nibbles(load_words_2(b->qs), 4u * piece), q);
        return float2(float(b->d), 0.0f);
    }
};

struct BlockMXFP4 : WholeBlocks {  // x = 2^(e - 127) e2m1(q); nibbles as in Q4_0 (OCP MX v1.0)
    uchar e;
    uchar qs[16];

    enum { elements = 32, bytes = 17, pieces = 2, has_offset = 0 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockMXFP4* const b = (device const BlockMXFP4*)block;
        look_up(kE2m1Values, nibbles(load_words_1(b->qs), 4u * piece), q);
        // 2^-127 is subnormal, which GPUs may flush to 0.
        const uint e = b->e;
        return float2(as_type<float>(e == 0u ? 0x00400000u : e << 23u), 0.0f);
    }
};

// ---- super-blocks: 256 elements, 16 pieces; `sub` is a piece's sub-block of 32, of which it is the first or second
// half ----

struct BlockQ2_K : WholeBlocks {  // 16 sub-blocks of 16: x = d sc q - dmin m; scales: low nibble sc, high nibble m
    uchar scales[16];
    uchar qs[64];
    half d, dmin;

    enum { elements = 256, bytes = 84, pieces = 16, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ2_K* const b = (device const BlockQ2_K*)block;
        const uint sub = piece / 2u, half_of = piece % 2u;
        const uint4 words = load_words_4(b->qs + 32u * (sub / 4u) + 16u * half_of);
        unsigned_bytes((words >> (2u * (sub % 4u))) & 0x03030303u, q);
        const uint scale = b->scales[piece];
        return float2(float(b->d) * float(scale & 15u), -float(b->dmin) * float(scale >> 4u));
    }
};

struct BlockQ3_K : WholeBlocks {  // 16 sub-blocks of 16: x = d (sc - 32) (q - 4), hmask holds bit 2 of q
    uchar hmask[32];
    uchar qs[64];
    uchar scales[12];
    half d;

    enum { elements = 256, bytes = 110, pieces = 16, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ3_K* const b = (device const BlockQ3_K*)block;
        const uint sub = piece / 2u, half_of = piece % 2u;
        const uint4 low = load_words_2(b->qs + 32u * (sub / 4u) + 16u * half_of) >> (2u * (sub % 4u));
        const uint4 high = load_words_2(b->hmask + 16u * half_of) >> sub;
        unsigned_bytes((low & 0x03030303u) | ((high & 0x01010101u) << 2u), q);
        const uint scale_low = (uint(b->scales[piece % 8u]) >> (4u * (piece / 8u))) & 15u;
        const uint scale_high = (uint(b->scales[8u + piece % 4u]) >> (2u * (piece / 4u))) & 3u;
        const float d = float(b->d) * (float(scale_low | (scale_high << 4u)) - 32.0f);
        return float2(d, -4.0f * d);
    }
};

// The 6-bit scale and minimum of sub-block `sub` of Q4_K and Q5_K.
inline uint2 scale_and_minimum(device const uchar* scales, uint sub) {
    const uint a = scales[sub % 4u], b = scales[4u + sub % 4u], c = scales[8u + sub % 4u];
    return sub < 4u ? uint2(a & 63u, b & 63u) : uint2((c & 15u) | ((a >> 2u) & 48u), (c >> 4u) | ((b >> 2u) & 48u));
}

struct BlockQ4_K : WholeBlocks {  // 8 sub-blocks of 32: x = d sc q - dmin m, sc and m of 6 bits in scales
    half d, dmin;
    uchar scales[12];
    uchar qs[128];

    enum { elements = 256, bytes = 144, pieces = 16, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ4_K* const b = (device const BlockQ4_K*)block;
        const uint sub = piece / 2u, half_of = piece % 2u;
        unsigned_bytes(nibbles(load_words_4(b->qs + 32u * (sub / 2u) + 16u * half_of), 4u * (sub % 2u)), q);
        const uint2 s = scale_and_minimum(b->scales, sub);
        return float2(float(b->d) * float(s.x), -float(b->dmin) * float(s.y));
    }
};

struct BlockQ5_K : WholeBlocks {  // as Q4_K; bit `sub` of qh is bit 4 of q
    half d, dmin;
    uchar scales[12];
    uchar qh[32];
    uchar qs[128];

    enum { elements = 256, bytes = 176, pieces = 16, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ5_K* const b = (device const BlockQ5_K*)block;
        const uint sub = piece / 2u, half_of = piece % 2u;
        const uint4 low = nibbles(load_words_4(b->qs + 32u * (sub / 2u) + 16u * half_of), 4u * (sub % 2u));
        const uint4 high = (load_words_4(b->qh + 16u * half_of) >> sub) & 0x01010101u;
        unsigned_bytes(low | (high << 4u), q);
        const uint2 s = scale_and_minimum(b->scales, sub);
        return float2(float(b->d) * float(s.x), -float(b->dmin) * float(s.y));
    }
};

struct BlockQ6_K : WholeBlocks {  // 16 sub-blocks of 16: x = d sc (q - 32)
    uchar ql[128];
    uchar qh[64];
    char scales[16];
    half d;

    enum { elements = 256, bytes = 210, pieces = 16, has_offset = 1 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockQ6_K* const b = (device const BlockQ6_K*)block;
        // Of each 128 elements, sub-blocks 0 and 1 are the low nibbles of 32 bytes each, 2 and 3 the high ones.
        const uint group = piece / 8u, sub = piece / 2u % 4u, half_of = piece % 2u;
        const uint4 low =
            nibbles(load_words_2(b->ql + 64u * group + 32u * (sub % 2u) + 16u * half_of), 4u * (sub / 2u));
        const uint4 high = (load_words_2(b->qh + 32u * group + 16u * half_of) >> (2u * sub)) & 0x03030303u;
        unsigned_bytes(low | (high << 4u), q);
        const float d = float(b->d) * float(b->scales[piece]);
        return float2(d, -32.0f * d);
    }
};

struct BlockIQ4_XS
    : WholeBlocks {  // 8 sub-blocks of 32: x = d (sc - 32) kIq4Values[q], sc of 6 bits; nibbles as in Q4_0
    half d;
    ushort scales_h;
    uchar scales_l[4];
    uchar qs[128];

    enum { elements = 256, bytes = 136, pieces = 16, has_offset = 0 };
    static float2 codes(device const uchar* block, uint piece, thread float4* q) {
        device const BlockIQ4_XS* const b = (device const BlockIQ4_XS*)block;
        const uint sub = piece / 2u, half_of = piece % 2u;
        look_up(kIq4Values, nibbles(load_words_4(b->qs + 16u * sub), 4u * half_of), q);
        const uint scale_low = (uint(b->scales_l[sub / 2u]) >> (4u * (sub % 2u))) & 15u;
        const uint scale_high = (uint(b->scales_h) >> (2u * sub)) & 3u;
        return float2(float(b->d) * (float(scale_low | (scale_high << 4u)) - 32.0f), 0.0f);
    }
};

static_assert(sizeof(BlockQ4_0) == BlockQ4_0::bytes && sizeof(BlockQ4_1) == BlockQ4_1::bytes, "layout");
static_assert(sizeof(BlockQ5_0) == BlockQ5_0::bytes && sizeof(BlockQ5_1) == BlockQ5_1::bytes, "layout");
static_assert(sizeof(BlockQ8_0) == BlockQ8_0::bytes && sizeof(BlockIQ4_NL) == BlockIQ4_NL::bytes, "layout");
static_assert(sizeof(BlockMXFP4) == BlockMXFP4::bytes && sizeof(BlockIQ4_XS) == BlockIQ4_XS::bytes, "layout");
static_assert(sizeof(BlockQ2_K) == BlockQ2_K::bytes && sizeof(BlockQ3_K) == BlockQ3_K::bytes, "layout");
static_assert(sizeof(BlockQ4_K) == BlockQ4_K::bytes && sizeof(BlockQ5_K) == BlockQ5_K::bytes, "layout");
static_assert(sizeof(BlockQ6_K) == BlockQ6_K::bytes, "layout");

// ---- for every reader ----

// Piece `piece` of a row (4 * F::vectors elements).
template <typename F>
float2 row_codes(device const uchar* row, uint piece, thread float4* q) {
    return F::codes(row + piece / uint(F::pieces) * uint(F::bytes), piece % uint(F::pieces), q);
}

template <typename F>
void dequantise(device const uchar* row, uint piece, thread float4* w) {
    const float2 s = row_codes<F>(row, piece, w);
    if (!F::has_offset && !F::whole) return;  // elements are their own codes
    METALLIC_UNROLL
    for (int i = 0; i < F::vectors; ++i) w[i] = F::has_offset ? fma(w[i], s.x, s.y) : w[i] * s.x;
}
