#include <metal_stdlib>

#include "blocks.h"
#include "params.h"

using namespace metal;

// out[row] = scale * table[tokens[row]], from any tensor type. One piece of a row (see blocks.h) to a thread; the grid
// is [pieces of a row, rows]. The host has checked that every token is in the table.
template <typename F>
kernel void embed(device const uchar* table [[buffer(0)]], device const int* tokens [[buffer(1)]],
                  device float* out [[buffer(2)]], constant EmbeddingParams& params [[buffer(3)]],
                  uint2 place [[thread_position_in_grid]]) {
    const uint each = 4u * uint(F::vectors), cols = params.cols;
    const uint first = place.x * each;
    if (first >= cols || place.y >= params.rows) return;
    device const uchar* row = table + ulong(tokens[place.y]) * params.row_bytes;
    device float* to = out + ulong(place.y) * cols + first;
    const float scale = params.scale;
    if (!F::whole && first + each > cols) {
        for (uint i = 0; first + i < cols; ++i) to[i] = F::element(row, first + i) * scale;
        return;
    }
    float4 w[F::vectors];
    dequantise<F>(row, place.x, w);
    // A row of any number of floats: aligned as a float.
    for (int i = 0; i < F::vectors; ++i) ((device packed_float4*)to)[i] = packed_float4(w[i] * scale);
}

template [[host_name("embed_f32")]] kernel decltype(embed<ElementF32>) embed<ElementF32>;
template [[host_name("embed_f16")]] kernel decltype(embed<ElementF16>) embed<ElementF16>;
template [[host_name("embed_bf16")]] kernel decltype(embed<ElementBF16>) embed<ElementBF16>;
template [[host_name("embed_q4_0")]] kernel decltype(embed<BlockQ4_0>) embed<BlockQ4_0>;
template [[host_name("embed_q4_1")]] kernel decltype(embed<BlockQ4_1>) embed<BlockQ4_1>;
template [[host_name("embed_q5_0")]] kernel decltype(embed<BlockQ5_0>) embed<BlockQ5_0>;
template [[host_name("embed_q5_1")]] kernel decltype(embed<BlockQ5_1>) embed<BlockQ5_1>;
template [[host_name("embed_q8_0")]] kernel decltype(embed<BlockQ8_0>) embed<BlockQ8_0>;
template [[host_name("embed_iq4_nl")]] kernel decltype(embed<BlockIQ4_NL>) embed<BlockIQ4_NL>;
template [[host_name("embed_mxfp4")]] kernel decltype(embed<BlockMXFP4>) embed<BlockMXFP4>;
template [[host_name("embed_q2_k")]] kernel decltype(embed<BlockQ2_K>) embed<BlockQ2_K>;
template [[host_name("embed_q3_k")]] kernel decltype(embed<BlockQ3_K>) embed<BlockQ3_K>;
template [[host_name("embed_q4_k")]] kernel decltype(embed<BlockQ4_K>) embed<BlockQ4_K>;
template [[host_name("embed_q5_k")]] kernel decltype(embed<BlockQ5_K>) embed<BlockQ5_K>;
template [[host_name("embed_q6_k")]] kernel decltype(embed<BlockQ6_K>) embed<BlockQ6_K>;
template [[host_name("embed_iq4_xs")]] kernel decltype(embed<BlockIQ4_XS>) embed<BlockIQ4_XS>;
