#pragma once

#include <metal_stdlib>

#include "params.h"

using namespace metal;

// Rows of a page: `kv_head_size` elements of one type, as cpp/backend/kv_layout.h lays them out. A group's pages are
// aligned to 16 bytes, so a row of a multiple of four elements may be read by fours.
constant uint kv_type [[function_constant(0)]];  // KvType
constant uint kv_head_size [[function_constant(1)]];

constant constexpr uint kPageTokens = 32;
constant constexpr uint kKvBlock = 32;  // elements of a block of Q8_0: a half scale, then a char each
constant constexpr uint kKvBlockBytes = 34;

inline bool kv_is_narrow() {  // elements of 16 bits
    return kv_type == KvF16 || kv_type == KvBF16;
}
inline float kv_from_bits(ushort bits) {
    return kv_type == KvF16 ? float(as_type<half>(bits)) : as_type<float>(uint(bits) << 16);
}
inline float2 kv_from_bits(ushort2 bits) {
    return kv_type == KvF16 ? float2(as_type<half2>(bits)) : as_type<float2>(uint2(bits) << 16);
}
inline float4 kv_from_bits(ushort4 bits) {
    return kv_type == KvF16 ? float4(as_type<half4>(bits)) : as_type<float4>(uint4(bits) << 16);
}

// Elements [i, i + 4) of a row of 16-bit elements; those past the row's end are 0. i is a multiple of 4.
inline ushort4 kv_bits_four(device const uchar* row, uint i) {
    device const ushort* elements = (device const ushort*)row + i;
    if (kv_head_size % 4 == 0) return *(device const ushort4*)elements;
    ushort4 bits = ushort4(0);
    for (uint k = 0; k < 4 && i + k < kv_head_size; ++k) bits[k] = elements[k];
    return bits;
}

// The same as floats, of any type.
inline float4 kv_four(device const uchar* row, uint i) {
    if (kv_is_narrow()) return kv_from_bits(kv_bits_four(row, i));
    float4 x = float4(0.0f);
    if (kv_type == KvF32) {
        device const float* elements = (device const float*)row + i;
        if (kv_head_size % 4 == 0) return *(device const float4*)elements;
        for (uint k = 0; k < 4 && i + k < kv_head_size; ++k) x[k] = elements[k];
        return x;
    }
    // A block is there to its end, whatever the head size. Its quants lie at even addresses.
    device const uchar* block = row + i / kKvBlock * kKvBlockBytes;
    device const ushort* quants = (device const ushort*)(block + 2 + i % kKvBlock);
    x = float4(as_type<char4>(ushort2(quants[0], quants[1]))) * float(*(device const half*)block);
    if (kv_head_size % 4 != 0) {
        for (uint k = 0; k < 4; ++k) x[k] = i + k < kv_head_size ? x[k] : 0.0f;
    }
    return x;
}

inline bool kv_is_nan(float x) {  // by its bits: fast arithmetic may assume that there are none
    return (as_type<uint>(x) & 0x7fffffffu) > 0x7f800000u;
}
inline float kv_saturate(float x, float limit) {  // NaNs stay
    return kv_is_nan(x) ? x : clamp(x, -limit, limit);
}
inline ushort kv_bfloat_bits(float x) {  // nearest, ties to even
    const uint bits = as_type<uint>(x);
    if (kv_is_nan(x)) return ushort(bits >> 16 | 0x40u);
    return ushort((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Element i of a row of any type but Q8_0. Values beyond the type's range become its largest.
inline void kv_store(device uchar* row, uint i, float x) {
    if (kv_type == KvF32) {
        ((device float*)row)[i] = x;
    } else if (kv_type == KvF16) {
        ((device half*)row)[i] = half(kv_saturate(x, 65504.0f));
    } else {
        ((device ushort*)row)[i] = kv_bfloat_bits(kv_saturate(x, as_type<float>(0x7f7f0000u)));
    }
}

// One block of Q8_0, an element per lane of the simdgroup; lanes past the head's end bring 0.
inline void kv_store_block(device uchar* block, float x, uint lane) {
    const bool sound = !simd_any(kv_is_nan(x));
    const float scale = min(65504.0f, simd_max(abs(sound ? x : 0.0f)) / 127.0f);
    // Below the smallest half the stored scale is 0, whatever the quants; so a reciprocal that overflows is not needed.
    const float inverse = scale < 9.31322575e-10f ? 0.0f : 1.0f / scale;
    const float quant = sound ? rint(clamp(x * inverse, -127.0f, 127.0f)) : 0.0f;
    if (lane == 0) *(device half*)block = sound ? half(scale) : as_type<half>(ushort(0x7e00));
    ((device char*)block)[2 + lane] = char(quant);
}

// Where the row of `token` lies in the page that holds it, for a head whose rows start at `offset` of a page.
inline device uchar* kv_row(device const Page* pages, uint table, uint token, ulong offset, uint row_bytes) {
    return pages[table + token / kPageTokens].bytes + offset + token % kPageTokens * row_bytes;
}
// What kv_row wants of a table: the index of its page 0 in the batch's pages, whether that one is listed or not.
inline uint kv_table(device const TableParams* tables, uint index) {
    return tables[index].first - tables[index].first_page;
}
