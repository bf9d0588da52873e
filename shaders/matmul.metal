#include <metal_stdlib>

#include "elementary.h"
#include "matvec.h"
#include "params.h"

using namespace metal;

// out[row][n] = norm(x)[row] . weights[n] [+ bias] [+ residual], or of a gated pair activation(gate) * up, where the
// weights stay in their file's blocks.
//   matvec_<type>_<rows>     few activation rows: see matvec.h
//   matmul_<type>_<staging>  many: tiles of both operands in threadgroup memory, products by simdgroup matrices
//   row_scale                1 / root mean square of rows, for matmul
//   expert_group             (token, slot) pairs sorted by expert, for matmul
// matvec and matmul take up to four weights of one type that share their input: a threadgroup finds its part by its
// place along the weight rows.
//
// Function constants 0 and 1 are those of matvec.h.
constant bool matmul_row_scale [[function_constant(2)]];
constant bool matmul_part1 [[function_constant(3)]];
constant bool matmul_part2 [[function_constant(4)]];
constant bool matmul_part3 [[function_constant(5)]];
constant bool matmul_bias0 [[function_constant(6)]];
constant bool matmul_bias1 [[function_constant(7)]];
constant bool matmul_bias2 [[function_constant(8)]];
constant bool matmul_bias3 [[function_constant(9)]];
constant bool matmul_gated [[function_constant(10)]];  // part 0 is the gate; `up` has its own arguments
constant bool matmul_up_bias [[function_constant(11)]];
constant bool matmul_gate_ready [[function_constant(12)]];  // the output holds the gate's products, the weights are up
constant bool matmul_residual [[function_constant(13)]];
constant bool matmul_experts [[function_constant(14)]];  // rows are (token, slot) pairs, weights those of their experts
constant uint matmul_activation [[function_constant(15)]];

// `index` is the experts' ids of all pairs, or for matmul what expert_group made.
#define MATMUL_ARGUMENTS                                                                                       \
    constant MatmulParams &params [[buffer(0)]], device const float *x [[buffer(1)]],                          \
        device const float *norm_weight [[buffer(2), function_constant(matmul_norm_weight)]],                  \
        device const float *row_scale [[buffer(3), function_constant(matmul_row_scale)]],                      \
        device const float *residual [[buffer(4), function_constant(matmul_residual)]],                        \
        device const uint *index [[buffer(5), function_constant(matmul_experts)]],                             \
        device const uchar *weight0 [[buffer(6)]],                                                             \
        device const uchar *weight1 [[buffer(7), function_constant(matmul_part1)]],                            \
        device const uchar *weight2 [[buffer(8), function_constant(matmul_part2)]],                            \
        device const uchar *weight3 [[buffer(9), function_constant(matmul_part3)]],                            \
        device const uchar *up [[buffer(10), function_constant(matmul_gated)]],                                \
        device const float *bias0 [[buffer(11), function_constant(matmul_bias0)]],                             \
        device const float *bias1 [[buffer(12), function_constant(matmul_bias1)]],                             \
        device const float *bias2 [[buffer(13), function_constant(matmul_bias2)]],                             \
        device const float *bias3 [[buffer(14), function_constant(matmul_bias3)]],                             \
        device const float *up_bias [[buffer(15), function_constant(matmul_up_bias)]],                         \
        device float *out0 [[buffer(16)]], device float *out1 [[buffer(17), function_constant(matmul_part1)]], \
        device float *out2 [[buffer(18), function_constant(matmul_part2)]],                                    \
        device float *out3 [[buffer(19), function_constant(matmul_part3)]],                                    \
        uint3 place [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],                 \
        uint simdgroup [[simdgroup_index_in_threadgroup]], uint thread_index [[thread_index_in_threadgroup]]

// What one threadgroup works on. Null where there is none.
struct Part {
    device const uchar* weight;
    device const uchar* up;
    device const float* bias;
    device const float* up_bias;
    device const float* residual;
    device float* out;
    uint number;
    uint count;      // weight rows
    uint row_bytes;  // of a weight
    uint group;      // the threadgroup's place along the weight rows of this part
};

#define MATMUL_TAKE_PART(part, i)                              \
    if (matmul_part##i && at >= params.parts[i].first_group) { \
        part.number = i;                                       \
        part.weight = weight##i;                               \
        part.out = out##i;                                     \
        part.bias = nullptr;                                   \
        if (matmul_bias##i) part.bias = bias##i;               \
    }

// Declares `part` of the threadgroup `at` along the weight rows. A macro, because an argument that a function constant
// leaves out must not be named outside of a test of that constant.
#define MATMUL_PART(part, at_)                                                   \
    const uint at = at_;                                                         \
    Part part = {weight0, nullptr, nullptr, nullptr, nullptr, out0, 0, 0, 0, 0}; \
    if (matmul_bias0) part.bias = bias0;                                         \
    if (matmul_gated) part.up = up;                                              \
    if (matmul_up_bias) part.up_bias = up_bias;                                  \
    if (matmul_residual) part.residual = residual;                               \
    MATMUL_TAKE_PART(part, 1)                                                    \
    MATMUL_TAKE_PART(part, 2)                                                    \
    MATMUL_TAKE_PART(part, 3)                                                    \
    part.count = params.parts[part.number].count;                                \
    part.row_bytes = params.parts[part.number].row_bytes;                        \
    part.group = at - params.parts[part.number].first_group;

inline void choose_expert(thread Part& part, constant MatmulParams& params, uint id) {
    const uint expert = min(id, params.experts - 1u);
    part.weight += expert * params.parts[part.number].expert_bytes;
    if (part.bias) part.bias += ulong(expert) * params.parts[part.number].bias_stride;
    if (matmul_gated) part.up += expert * params.parts[1].expert_bytes;
    if (part.up_bias) part.up_bias += ulong(expert) * params.parts[1].bias_stride;
}

// Of `outputs` outputs from `first`, the weight row that makes product `i`: a gated pair has the gate's and then up's.
// Behind the last row comes the last one again, whose products nobody reads.
inline device const uchar* weight_row(thread const Part& part, uint first, uint outputs, uint i) {
    const bool of_up = matmul_gated && i >= outputs;
    const uint row = min(first + (of_up ? i - outputs : i), part.count - 1u);
    return (of_up ? part.up : part.weight) + ulong(row) * part.row_bytes;
}

inline void finish(thread const Part& part, uint row, uint n, float product, float up) {
    const ulong to = ulong(row) * part.count + n;
    if (part.bias) product += part.bias[n];
    if (matmul_gated) {
        if (part.up_bias) up += part.up_bias[n];
        product = activate(matmul_activation, product) * up;
    }
    if (matmul_gate_ready) product *= activate(matmul_activation, part.out[to]);
    if (part.residual) product += part.residual[to];
    part.out[to] = product;
}

// Grid: (threadgroups along the weight rows, activation rows / Rows, 1), or (.., 1, pairs) of experts.
template <typename F, int Rows>
kernel void matvec(MATMUL_ARGUMENTS) {
    enum { Weights = matvec_weights(Rows) };
    MATMUL_PART(part, place.x)
    const uint outputs = matmul_gated ? Weights / 2 : Weights;
    const uint first = (part.group * kMatvecSimdgroups + simdgroup) * outputs;
    if (first >= part.count) return;
    uint row = place.y * uint(Rows), input = row, rows = 1;
    if (matmul_experts) {
        row = place.z;
        input = row / params.pairs_per_input;
        choose_expert(part, params, index[row]);
    } else {
        rows = min(uint(Rows), params.rows - row);
    }

    WeightRows<Weights> weights;
    METALLIC_UNROLL
    for (int i = 0; i < Weights; ++i) weights.at[i] = weight_row(part, first, outputs, i);
    device const float* norm = x;
    if (matmul_norm_weight) norm = norm_weight;
    Products<Weights, Rows> products;
    multiply_rows<F, Weights, Rows>(weights, x + ulong(input) * params.cols, rows, params.cols, norm, lane, products);

    // Lane n * Rows + r finishes output n of row r.
    float mine = 0.0f, mine_up = 0.0f;
    METALLIC_UNROLL
    for (int r = 0; r < Rows; ++r) {
        if (uint(r) >= rows) break;
        float factor = 1.0f;
        if (matmul_norm) factor = precise::rsqrt(simd_sum(products.squares[r]) / float(params.cols) + params.epsilon);
        METALLIC_UNROLL
        for (int i = 0; i < Weights; ++i) {
            const float sum = simd_sum(products.sum[i][r]) * factor;
            const bool of_up = uint(i) >= outputs;
            if (lane != (of_up ? i - outputs : uint(i)) * Rows + r) continue;
            if (of_up) {
                mine_up = sum;
            } else {
                mine = sum;
            }
        }
    }
    const uint n = lane / Rows, r = lane % Rows;
    if (n < outputs && first + n < part.count && r < rows) finish(part, row + r, first + n, mine, mine_up);
}

// ---- matmul ----

enum MatmulTile : uint { kTileDepth = 32, kTileProductStride = kMatmulTileWeights + 4 };

// Sixteen elements of a weight row from column k; zeros behind its end.
template <typename F, typename T>
void stage_weights(device const uchar* row, uint k, uint cols, threadgroup vec<T, 4>* to) {
    if (F::whole || k + 16u <= cols) {
        METALLIC_UNROLL
        for (uint half_of = 0; half_of < 4u / F::vectors; ++half_of) {
            float4 w[F::vectors];
            dequantise<F>(row, k / (4u * F::vectors) + half_of, w);
            METALLIC_UNROLL
            for (uint i = 0; i < uint(F::vectors); ++i) to[half_of * F::vectors + i] = vec<T, 4>(w[i]);
        }
        return;
    }
    threadgroup T* const elements = (threadgroup T*)to;
    for (uint i = 0; i < 16u; ++i) elements[i] = k + i < cols ? T(F::element(row, k + i)) : T(0.0f);
}

// Eight activations of a row from column k; zeros behind its end.
template <typename F, typename T>
void stage_activations(device const float* row, uint k, uint cols, device const float* norm_weight, float scale,
                       threadgroup vec<T, 4>* to) {
    if (F::whole || k + 8u <= cols) {
        METALLIC_UNROLL
        for (uint i = 0; i < 2u; ++i) {
            float4 v = load_four<F>(row + k + 4u * i) * scale;
            if (matmul_norm_weight) v *= float4(*(device const packed_float4*)(norm_weight + k + 4u * i));
            to[i] = vec<T, 4>(v);
        }
        return;
    }
    threadgroup T* const elements = (threadgroup T*)to;
    for (uint i = 0; i < 8u; ++i) {
        float v = 0.0f;
        if (k + i < cols) {
            v = row[k + i] * scale;
            if (matmul_norm_weight) v *= norm_weight[k + i];
        }
        elements[i] = T(v);
    }
}

// The products of one depth of tiles: each simdgroup has 16 activation rows and 32 weight rows. Rows of both tiles are
// `Stride` elements apart, which spreads them over the banks of the memory.
template <typename T, int Stride>
void multiply_tiles(threadgroup const T* weights, threadgroup const T* activations, uint simdgroup,
                    thread simdgroup_float8x8 (&sums)[2][4]) {
    threadgroup const T* const a_from = activations + simdgroup / 2u * 16u * Stride;
    threadgroup const T* const b_from = weights + simdgroup % 2u * 32u * Stride;
    METALLIC_UNROLL
    for (uint k = 0; k < kTileDepth; k += 8u) {
        simdgroup_matrix<T, 8, 8> a[2], b[4];
        METALLIC_UNROLL
        for (uint i = 0; i < 2u; ++i) simdgroup_load(a[i], a_from + 8u * i * Stride + k, Stride);
        METALLIC_UNROLL
        for (uint j = 0; j < 4u; ++j) simdgroup_load(b[j], b_from + 8u * j * Stride + k, Stride, ulong2(0), true);
        METALLIC_UNROLL
        for (uint i = 0; i < 2u; ++i) {
            METALLIC_UNROLL
            for (uint j = 0; j < 4u; ++j) simdgroup_multiply_accumulate(sums[i][j], a[i], b[j], sums[i][j]);
        }
    }
}

// Grid: (tiles of activation rows, or of grouped experts; threadgroups along the weight rows). T is what the tiles
// hold; sums are float.
template <typename F, typename T>
kernel void matmul(MATMUL_ARGUMENTS) {
    enum {
        Stride = kTileDepth + 16 / sizeof(T),
        StageBytes = (kMatmulTileWeights + kMatmulTileRows) * Stride * sizeof(T),
        ProductBytes = kMatmulTileRows * kTileProductStride * sizeof(float),
        Bytes = StageBytes > ProductBytes ? StageBytes : ProductBytes,
    };
    threadgroup float4 memory[Bytes / sizeof(float4)];  // the tiles, then the products

    uint first_row = place.x * kMatmulTileRows, rows = 0;
    if (matmul_experts) {
        first_row = index[4u * place.x + 1u];
        rows = index[4u * place.x + 2u];
    } else {
        rows = min(uint(kMatmulTileRows), params.rows - first_row);
    }
    if (rows == 0u) return;
    MATMUL_PART(part, place.y)
    if (matmul_experts) choose_expert(part, params, index[4u * place.x]);
    const uint outputs = matmul_gated ? kMatmulTileWeights / 2 : kMatmulTileWeights;
    const uint first = part.group * outputs;

    // Each thread has half of a weight row's depth and a quarter of an activation row's. Rows behind the last are the
    // last one again.
    const uint cols = params.cols, weight_k = thread_index % 2u * 16u, x_k = thread_index % 4u * 8u;
    device const uchar* const weight = weight_row(part, first, outputs, thread_index / 2u);
    uint input = first_row + min(thread_index / 4u, rows - 1u);
    if (matmul_experts) input = index[params.order + input] / params.pairs_per_input;
    float scale = 1.0f;
    if (matmul_row_scale) scale = row_scale[input];
    device const float* norm = x;
    if (matmul_norm_weight) norm = norm_weight;
    device const float* const x_row = x + ulong(input) * cols;
    threadgroup T* const weights = (threadgroup T*)memory;
    threadgroup T* const activations = weights + kMatmulTileWeights * Stride;
    threadgroup vec<T, 4>* const weight_to = (threadgroup vec<T, 4>*)(weights + thread_index / 2u * Stride + weight_k);
    threadgroup vec<T, 4>* const x_to = (threadgroup vec<T, 4>*)(activations + thread_index / 4u * Stride + x_k);

    simdgroup_float8x8 sums[2][4];
    METALLIC_UNROLL
    for (uint i = 0; i < 8u; ++i) sums[i / 4u][i % 4u] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint k = 0; k < cols; k += kTileDepth) {
        stage_weights<F, T>(weight, k + weight_k, cols, weight_to);
        stage_activations<F, T>(x_row, k + x_k, cols, norm, scale, x_to);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        multiply_tiles<T, Stride>(weights, activations, simdgroup, sums);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

    threadgroup float* const products = (threadgroup float*)memory;
    threadgroup float* const own = products + simdgroup / 2u * 16u * kTileProductStride + simdgroup % 2u * 32u;
    METALLIC_UNROLL
    for (uint i = 0; i < 2u; ++i) {
        METALLIC_UNROLL
        for (uint j = 0; j < 4u; ++j) {
            simdgroup_store(sums[i][j], own + 8u * i * kTileProductStride + 8u * j, kTileProductStride);
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = thread_index; i < rows * outputs; i += kMatmulThreads) {
        const uint m = i / outputs, n = i % outputs;
        if (first + n >= part.count) continue;
        uint row = first_row + m;
        if (matmul_experts) row = index[params.order + row];
        const float product = products[m * kTileProductStride + n];
        const float up_product = matmul_gated ? products[m * kTileProductStride + outputs + n] : 0.0f;
        finish(part, row, first + n, product, up_product);
    }
}

// ---- helpers ----

// scale[row] = 1 / sqrt(mean(x[row]^2) + epsilon), one simdgroup per row.
kernel void row_scale(constant RowScaleParams& params [[buffer(0)]], device const float* x [[buffer(1)]],
                      device float* scale [[buffer(2)]], uint place [[threadgroup_position_in_grid]],
                      uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    const uint row = place * kRowScaleSimdgroups + simdgroup, cols = params.cols;
    if (row >= params.rows) return;
    device const float* const from = x + ulong(row) * cols;
    float squares = 0.0f;
    for (uint i = lane; i < cols; i += kSimdWidth) squares += from[i] * from[i];
    squares = simd_sum(squares);
    if (lane == 0) scale[row] = precise::rsqrt(squares / float(cols) + params.epsilon);
}

// Sorts pairs by expert and cuts each expert's into tiles, one threadgroup. `index` becomes params.tiles ExpertTiles
// and then the order of pairs. Each thread looks through all ids for its experts: no atomics, and a stable order.
kernel void expert_group(constant ExpertGroupParams& params [[buffer(0)]], device const uint* ids [[buffer(1)]],
                         device uint* index [[buffer(2)]], uint thread_index [[thread_index_in_threadgroup]],
                         uint threads [[threads_per_threadgroup]]) {
    threadgroup uint firsts[kExpertGroupLimit + 1], tiles[kExpertGroupLimit + 1];
    const uint experts = params.experts, pairs = params.pairs;
    for (uint e = thread_index; e < experts; e += threads) {
        uint count = 0;
        for (uint pair = 0; pair < pairs; ++pair) count += min(ids[pair], experts - 1u) == e ? 1u : 0u;
        firsts[e] = count;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index == 0) {
        uint first = 0, tile = 0;
        for (uint e = 0; e < experts; ++e) {
            const uint count = firsts[e];
            firsts[e] = first;
            tiles[e] = tile;
            first += count;
            tile += (count + kMatmulTileRows - 1u) / kMatmulTileRows;
        }
        firsts[experts] = first;
        tiles[experts] = tile;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = thread_index; e < experts; e += threads) {
        const uint end = firsts[e + 1];
        uint to = firsts[e];
        for (uint tile = tiles[e]; tile < tiles[e + 1]; ++tile) {
            const uint first = to + (tile - tiles[e]) * kMatmulTileRows;
            index[4u * tile] = e;
            index[4u * tile + 1u] = first;
            index[4u * tile + 2u] = min(uint(kMatmulTileRows), end - first);
            index[4u * tile + 3u] = 0;
        }
        for (uint pair = 0; pair < pairs && to < end; ++pair) {
            if (min(ids[pair], experts - 1u) == e) index[4u * params.tiles + to++] = pair;
        }
    }
    for (uint i = 4u * tiles[experts] + thread_index; i < 4u * params.tiles; i += threads) index[i] = 0;
}

// ---- instances ----

#define MATVEC(F, name, Rows) \
    template [[host_name("matvec_" name "_" #Rows)]] kernel void matvec<F, Rows>(MATMUL_ARGUMENTS);
#define MATMUL(F, name, T, staging) \
    template [[host_name("matmul_" name "_" staging)]] kernel void matmul<F, T>(MATMUL_ARGUMENTS);

#if __METAL_VERSION__ >= 310
#define MATMUL_BFLOAT(F, name) MATMUL(F, name, bfloat, "bfloat")
#else
#define MATMUL_BFLOAT(F, name)
#endif

#define MATMUL_TYPE(F, name)        \
    MATVEC(F, name, 1)              \
    MATVEC(F, name, 2)              \
    MATVEC(F, name, 4)              \
    MATVEC(F, name, 8)              \
    MATMUL(F, name, float, "float") \
    MATMUL(F, name, half, "half")   \
    MATMUL_BFLOAT(F, name)

MATMUL_TYPE(ElementF32, "f32")
MATMUL_TYPE(ElementF16, "f16")
MATMUL_TYPE(ElementBF16, "bf16")
MATMUL_TYPE(BlockQ4_0, "q4_0")
MATMUL_TYPE(BlockQ4_1, "q4_1")
MATMUL_TYPE(BlockQ5_0, "q5_0")
MATMUL_TYPE(BlockQ5_1, "q5_1")
MATMUL_TYPE(BlockQ8_0, "q8_0")
MATMUL_TYPE(BlockIQ4_NL, "iq4_nl")
MATMUL_TYPE(BlockMXFP4, "mxfp4")
MATMUL_TYPE(BlockQ2_K, "q2_k")
MATMUL_TYPE(BlockQ3_K, "q3_k")
MATMUL_TYPE(BlockQ4_K, "q4_k")
MATMUL_TYPE(BlockQ5_K, "q5_k")
MATMUL_TYPE(BlockQ6_K, "q6_k")
MATMUL_TYPE(BlockIQ4_XS, "iq4_xs")
