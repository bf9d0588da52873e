#pragma once

#include <metal_stdlib>

#include "params.h"

using namespace metal;

// Rows of a page: `kv_head_size` elements of one type, as cpp/backend/kv_layout.h lays them out. A group's pages are
// aligned to 16 bytes, so a row of a multiple of four elements may be read by fours. Functions take the type as an
// argument, which is one of these two constants.
constant uint kv_key_type [[function_constant(0)]];  // KvType
constant uint kv_value_type [[function_constant(7)]];
constant uint kv_head_size [[function_constant(1)]];

constant constexpr uint kPageTokens = 32;
constant constexpr uint kKvBlock = 32;  // elements of a block: a half scale, then a char or half a char each

inline bool kv_is_narrow(uint type) {  // elements of 16 bits
    return type == KvF16 || type == KvBF16;
}
inline bool kv_is_block(uint type) {
    return type == KvQ8_0 || type == KvQ4_0;
}
inline uint kv_block_bytes(uint type) {
    return type == KvQ8_0 ? 34 : 18;
}
inline float kv_from_bits(uint type, ushort bits) {
    return type == KvF16 ? float(as_type<half>(bits)) : as_type<float>(uint(bits) << 16);
}
inline float2 kv_from_bits(uint type, ushort2 bits) {
    return type == KvF16 ? float2(as_type<half2>(bits)) : as_type<float2>(uint2(bits) << 16);
}
inline float4 kv_from_bits(uint type, ushort4 bits) {
    return type == KvF16 ? float4(as_type<half4>(bits)) : as_type<float4>(uint4(bits) << 16);
}

// ---- the transform of rotated rows ----
//
// KvRows::rotated and rotate_kv_row in cpp/backend: an aligned run of 2, 4, .. 32 elements that lies within the head is
// multiplied by its Hadamard matrix. In steps: at the step s, elements i and i + s become their sum and difference
// wherever the run of 2 s elements that holds them lies within the head.

inline bool kv_rotates(uint type) {
    return type == KvQ4_0 && kv_head_size <= kMostRotatedHead;
}
inline bool kv_steps(uint element, uint step) {
    return (element | (2 * step - 1)) < kv_head_size;
}
// 2^(-steps / 2)
inline float kv_step_factor(uint steps) {
    return (steps % 2 == 0 ? 1.0f : 0.707106769f) / float(1u << (steps / 2));
}

// Of the element that each lane holds, those of a block of 32 in turn.
inline float kv_rotate(float x, uint element, uint lane) {
    uint steps = 0;
    for (uint step = 16; step > 0; step /= 2) {
        const float other = simd_shuffle_xor(x, ushort(step));
        if (!kv_steps(element, step)) continue;
        x = (lane & step) == 0 ? x + other : other - x;
        ++steps;
    }
    return x * kv_step_factor(steps);
}

// Of the four elements from `element` on that each lane holds, eight lanes in turn those of a block.
inline float4 kv_rotate_four(float4 x, uint element, uint lane) {
    uint steps = 0;
    for (uint step = 4; step > 0; step /= 2) {
        const float4 other = simd_shuffle_xor(x, ushort(step));
        if (!kv_steps(element, step * 4)) continue;
        x = (lane & step) == 0 ? x + other : other - x;
        ++steps;
    }
    if (kv_steps(element, 2)) {
        x = float4(x.x + x.z, x.y + x.w, x.x - x.z, x.y - x.w);
        ++steps;
    }
    const bool low = kv_steps(element, 1), high = kv_steps(element + 2, 1);
    if (low) x = float4(x.x + x.y, x.x - x.y, x.z, x.w);
    if (high) x = float4(x.x, x.y, x.z + x.w, x.z - x.w);
    const float a = kv_step_factor(steps + (low ? 1 : 0)), b = kv_step_factor(steps + (high ? 1 : 0));
    return x * float4(a, a, b, b);
}

// ---- reading ----

// Elements [i, i + 4) of a row of 16-bit elements; those past the row's end are 0. i is a multiple of 4.
inline ushort4 kv_bits_four(device const uchar* row, uint i) {
    device const ushort* elements = (device const ushort*)row + i;
    if (kv_head_size % 4 == 0) return *(device const ushort4*)elements;
    ushort4 bits = ushort4(0);
    for (uint k = 0; k < 4 && i + k < kv_head_size; ++k) bits[k] = elements[k];
    return bits;
}

// The same as floats, of any type.
inline float4 kv_four(uint type, device const uchar* row, uint i) {
    if (kv_is_narrow(type)) return kv_from_bits(type, kv_bits_four(row, i));
    float4 x = float4(0.0f);
    if (type == KvF32) {
        device const float* elements = (device const float*)row + i;
        if (kv_head_size % 4 == 0) return *(device const float4*)elements;
        for (uint k = 0; k < 4 && i + k < kv_head_size; ++k) x[k] = elements[k];
        return x;
    }
    // A block is there to its end, whatever the head size. Its quants lie at even addresses.
    device const uchar* block = row + i / kKvBlock * kv_block_bytes(type);
    device const ushort* quants = (device const ushort*)(block + 2 + i % (type == KvQ8_0 ? 32 : 16));
    const ushort2 four = ushort2(quants[0], quants[1]);
    if (type == KvQ8_0) {
        x = float4(as_type<char4>(four));
    } else {  // low nibbles are the first 16 elements
        x = float4(as_type<uchar4>((i % kKvBlock < 16 ? four : four >> 4) & 0x0f0f)) - 8.0f;
    }
    x *= float(*(device const half*)block);
    if (kv_head_size % 4 != 0) {
        for (uint k = 0; k < 4; ++k) x[k] = i + k < kv_head_size ? x[k] : 0.0f;
    }
    return x;
}

// ---- writing ----

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

// Element i of a row of a type without blocks. Values beyond the type's range become its largest.
inline void kv_store(uint type, device uchar* row, uint i, float x) {
    if (type == KvF32) {
        ((device float*)row)[i] = x;
    } else if (type == KvF16) {
        ((device half*)row)[i] = half(kv_saturate(x, 65504.0f));
    } else {
        ((device ushort*)row)[i] = kv_bfloat_bits(kv_saturate(x, as_type<float>(0x7f7f0000u)));
    }
}

// Block `element / 32` of a row, that element of each lane of the simdgroup; lanes past the head's end bring 0.
inline void kv_store_block(uint type, device uchar* row, uint element, float x, uint lane) {
    device uchar* block = row + element / kKvBlock * kv_block_bytes(type);
    if (kv_rotates(type)) x = kv_rotate(x, element, lane);
    const bool sound = !simd_any(kv_is_nan(x));
    const float kept = sound ? x : 0.0f;
    const float most = simd_max(kept), least = simd_min(kept);
    const float extreme = most > -least ? most : least;
    const float scale = clamp(type == KvQ8_0 ? abs(extreme) / 127.0f : extreme * -0.125f, -65504.0f, 65504.0f);
    // Below the smallest half the stored scale is 0, whatever the quants; so a reciprocal that overflows is not needed.
    const float inverse = abs(scale) < 9.31322575e-10f ? 0.0f : 1.0f / scale;
    if (lane == 0) *(device half*)block = sound ? half(scale) : as_type<half>(ushort(0x7e00));
    if (type == KvQ8_0) {
        ((device char*)block)[2 + lane] = char(rint(clamp(kept * inverse, -127.0f, 127.0f)));
        return;
    }
    const uint quant = uint(rint(clamp(kept * inverse, -8.0f, 7.0f)) + 8.0f);
    const uint above = simd_shuffle_xor(quant, ushort(16));
    if (lane < 16) block[2 + lane] = uchar(quant | above << 4);
}

// Where the row of `token` and a kv head lies in the page that holds it.
inline device uchar* kv_row(device const Page* pages, uint table, uint token, constant KvSideParams& side,
                            uint kv_head) {
    return pages[table + token / kPageTokens].bytes + side.first + kv_head * side.head_bytes +
           token % kPageTokens * side.row_bytes;
}
// What kv_row wants of a table: the index of its page 0 in the batch's pages, whether that one is listed or not.
inline uint kv_table(device const TableParams* tables, uint index) {
    return tables[index].first - tables[index].first_page;
}
