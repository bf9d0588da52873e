#include <metal_stdlib>

#include "elementary.h"
#include "params.h"

using namespace metal;

// Row i of `out` is row rows[i] of `in`. Elements are 32 bits of any kind.
kernel void select_rows(device const uint* in [[buffer(0)]], device const uint* rows [[buffer(1)]],
                        device uint* out [[buffer(2)]], constant SelectParams& params [[buffer(3)]],
                        uint2 place [[thread_position_in_grid]]) {
    const uint width = params.width;
    if (place.x >= width || place.y >= params.rows) return;
    out[ulong(place.y) * width + place.x] = in[ulong(rows[place.y]) * width + place.x];
}

// ---- casts, rounding to nearest even; a NaN stays a NaN ----

struct Half {
    static ushort from(float x) { return as_type<ushort>(half(x)); }
    static float to(ushort bits) { return float(as_type<half>(bits)); }
};
// Metal 3.0 has no bfloat: its bits are the upper half of a float's.
struct BFloat {
    static ushort from(float x) {
        const uint bits = as_type<uint>(x);
        if (is_nan_bits(bits)) return ushort(bits >> 16 | 0x40u);
        return ushort((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    static float to(ushort bits) { return as_type<float>(uint(bits) << 16); }
};

template <typename Type>
kernel void narrow_floats(device const float* in [[buffer(0)]], device ushort* out [[buffer(1)]],
                          constant uint& count [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < count) out[i] = Type::from(in[i]);
}
template <typename Type>
kernel void widen_floats(device const ushort* in [[buffer(0)]], device float* out [[buffer(1)]],
                         constant uint& count [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    if (i < count) out[i] = Type::to(in[i]);
}

template [[host_name("f32_to_f16")]] kernel decltype(narrow_floats<Half>) narrow_floats<Half>;
template [[host_name("f32_to_bf16")]] kernel decltype(narrow_floats<BFloat>) narrow_floats<BFloat>;
template [[host_name("f16_to_f32")]] kernel decltype(widen_floats<Half>) widen_floats<Half>;
template [[host_name("bf16_to_f32")]] kernel decltype(widen_floats<BFloat>) widen_floats<BFloat>;

// Copies whole pages, 16 bytes to a thread: pages[2 i] to pages[2 i + 1]. Pages are multiples of 16 bytes and aligned
// so. A page is not the source of one move and the target of another.
kernel void move_pages(device const Page* pages [[buffer(0)]], constant MoveParams& params [[buffer(1)]],
                       uint2 place [[thread_position_in_grid]]) {
    if (place.x >= params.page_quads || place.y >= params.moves) return;
    device const uint4* from = (device const uint4*)pages[2 * place.y].bytes;
    device uint4* to = (device uint4*)pages[2 * place.y + 1].bytes;
    to[place.x] = from[place.x];
}
