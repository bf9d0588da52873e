#pragma once

#include <metal_stdlib>

#include "blocks.h"
#include "elementary.h"

// Dot products of a few weight rows with a few activation rows, by one simdgroup: the lanes take the pieces of the rows
// in turn. A piece of weights is unpacked once for all activation rows, a piece of activations is loaded once for all
// weight rows.

// Activations are divided by their root mean square on the way: the factor is the row's, so it is applied to the
// products, and the squares are summed in the same pass.
constant bool matmul_norm [[function_constant(0)]];
constant bool matmul_norm_weight [[function_constant(1)]];

template <int Weights>
struct WeightRows {
    device const uchar* at[Weights];
};

template <int Weights, int Rows>
struct Products {
    float sum[Weights][Rows];
    float squares[Rows];
};

// Four activations; rows of whole blocks are 16-byte aligned.
template <typename F>
float4 load_four(device const float* x) {
    if (F::whole) return *(device const float4*)x;
    return float4(*(device const packed_float4*)x);
}

// A piece of activations, times the norm's weight; adds to their squares.
template <typename F>
void load_piece(device const float* x, device const float* weight, thread float4* to, thread float& squares) {
    METALLIC_UNROLL
    for (int i = 0; i < F::vectors; ++i) {
        to[i] = load_four<F>(x + 4 * i);
        if (matmul_norm) squares += dot(to[i], to[i]);
        if (matmul_norm_weight) to[i] *= float4(*(device const packed_float4*)(weight + 4 * i));
    }
}

template <typename F>
float piece_dot(thread const float4* a, thread const float4* b) {
    float sum = dot(a[0], b[0]);
    METALLIC_UNROLL
    for (int i = 1; i < F::vectors; ++i) sum += dot(a[i], b[i]);
    return sum;
}

template <typename F>
float piece_sum(thread const float4* a) {
    float4 sum = a[0];
    METALLIC_UNROLL
    for (int i = 1; i < F::vectors; ++i) sum += a[i];
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// For one or two activation rows: they are kept, and a product of codes is scaled once.
template <typename F, int Weights, int Rows>
void multiply_codes(thread const WeightRows<Weights>& weights, uint piece, device const float* x, uint cols,
                    device const float* norm_weight, thread Products<Weights, Rows>& products) {
    float4 xs[Rows][F::vectors];
    float sums[Rows];
    METALLIC_UNROLL
    for (int r = 0; r < Rows; ++r) {
        load_piece<F>(x + r * cols, norm_weight, xs[r], products.squares[r]);
        if (F::has_offset) sums[r] = piece_sum<F>(xs[r]);
    }
    METALLIC_UNROLL
    for (int n = 0; n < Weights; ++n) {
        float4 q[F::vectors];
        const float2 s = row_codes<F>(weights.at[n], piece, q);
        METALLIC_UNROLL
        for (int r = 0; r < Rows; ++r) {
            float dot = piece_dot<F>(q, xs[r]) * s.x;
            if (F::has_offset) dot = fma(sums[r], s.y, dot);
            products.sum[n][r] += dot;
        }
    }
}

// For more: the weights are kept, as values.
template <typename F, int Weights, int Rows>
void multiply_values(thread const WeightRows<Weights>& weights, uint piece, device const float* x, uint rows, uint cols,
                     device const float* norm_weight, thread Products<Weights, Rows>& products) {
    float4 w[Weights][F::vectors];
    METALLIC_UNROLL
    for (int n = 0; n < Weights; ++n) dequantise<F>(weights.at[n], piece, w[n]);
    METALLIC_UNROLL
    for (int r = 0; r < Rows; ++r) {
        if (uint(r) >= rows) break;
        float4 xs[F::vectors];
        load_piece<F>(x + ulong(r) * cols, norm_weight, xs, products.squares[r]);
        METALLIC_UNROLL
        for (int n = 0; n < Weights; ++n) products.sum[n][r] += piece_dot<F>(w[n], xs);
    }
}

// Element `i` of every row, where rows end inside of a piece.
template <typename F, int Weights, int Rows>
void multiply_element(thread const WeightRows<Weights>& weights, uint i, device const float* x, uint rows, uint cols,
                      device const float* norm_weight, thread Products<Weights, Rows>& products) {
    METALLIC_UNROLL
    for (int r = 0; r < Rows; ++r) {
        if (uint(r) >= rows) break;
        float value = x[ulong(r) * cols + i];
        if (matmul_norm) products.squares[r] += value * value;
        if (matmul_norm_weight) value *= norm_weight[i];
        METALLIC_UNROLL
        for (int n = 0; n < Weights; ++n) products.sum[n][r] += F::element(weights.at[n], i) * value;
    }
}

// This lane's share of the products; simd_sum() of it is the whole. `rows` is at most Rows, and Rows itself up to 2.
template <typename F, int Weights, int Rows>
void multiply_rows(thread const WeightRows<Weights>& weights, device const float* x, uint rows, uint cols,
                   device const float* norm_weight, uint lane, thread Products<Weights, Rows>& products) {
    METALLIC_UNROLL
    for (int r = 0; r < Rows; ++r) {
        products.squares[r] = 0.0f;
        METALLIC_UNROLL
        for (int n = 0; n < Weights; ++n) products.sum[n][r] = 0.0f;
    }
    const uint width = 4u * uint(F::vectors), pieces = cols / width;
    for (uint piece = lane; piece < pieces; piece += kSimdWidth) {
        device const float* const from = x + piece * width;
        device const float* const weight = norm_weight + piece * width;
        if (Rows <= 2) {
            multiply_codes<F, Weights, Rows>(weights, piece, from, cols, weight, products);
        } else {
            multiply_values<F, Weights, Rows>(weights, piece, from, rows, cols, weight, products);
        }
    }
    if (F::whole) return;
    for (uint i = pieces * width + lane; i < cols; i += kSimdWidth) {
        multiply_element<F, Weights, Rows>(weights, i, x, rows, cols, norm_weight, products);
    }
}
