#pragma once

#include <cstdint>

#include "core/half.h"

// The block-quantised layouts of GGUF, byte for byte. Source of the formats: ggml's block_* structures (ggml-common.h)
// and the reference dequantisation in gguf-py (quants.py).
namespace metallic {

inline constexpr int kBlock = 32;        // elements of a plain block
inline constexpr int kSuperBlock = 256;  // elements of a K-quant super-block

struct BlockQ4_0 {  // x = d (q - 8); low nibbles are elements 0..15, high nibbles 16..31
    half_t d;
    uint8_t qs[16];
};
struct BlockQ4_1 {  // x = d q + m
    half_t d, m;
    uint8_t qs[16];
};
struct BlockQ5_0 {  // x = d (q - 16); bit i of qh is bit 4 of element i
    half_t d;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct BlockQ5_1 {  // x = d q + m
    half_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct BlockQ8_0 {  // x = d q
    half_t d;
    int8_t qs[32];
};
struct BlockIQ4_NL {  // x = d kIQ4Values[q]; nibbles as in Q4_0
    half_t d;
    uint8_t qs[16];
};
struct BlockMXFP4 {  // x = 2^(e - 127) e2m1(q); nibbles as in Q4_0 (OCP MX v1.0)
    uint8_t e;
    uint8_t qs[16];
};

struct BlockQ2_K {  // 16 sub-blocks of 16: x = d sc q - dmin m; scales: low nibble sc, high nibble m
    uint8_t scales[16];
    uint8_t qs[64];
    half_t d, dmin;
};
struct BlockQ3_K {  // 16 sub-blocks of 16: x = d (sc - 32) (q - 4), hmask holds bit 2 of q
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    half_t d;
};
struct BlockQ4_K {  // 8 sub-blocks of 32: x = d sc q - dmin m, sc and m of 6 bits in scales
    half_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
};
struct BlockQ5_K {  // as Q4_K with bit 4 of q in qh
    half_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct BlockQ6_K {  // 16 sub-blocks of 16: x = d sc (q - 32)
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    half_t d;
};
struct BlockIQ4_XS {  // 8 sub-blocks of 32: x = d (sc - 32) kIQ4Values[q], sc of 6 bits
    half_t d;
    uint16_t scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
};

static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockIQ4_NL) == 18 && sizeof(BlockMXFP4) == 17);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210 && sizeof(BlockIQ4_XS) == 136);

inline constexpr int8_t kIQ4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// Twice the e2m1 values, so that they are integers; the block's scale is halved to match.
inline constexpr int8_t kE2M1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace metallic
