#pragma once

#include "backend/cpu/isa/matmul_panel.h"

// The driver of products with F32, F16 and BF16 weights, shared by the vector instruction sets.
//
// A tile of a few weight rows and activation rows keeps the 16 lanes of each of their products. With many activation
// rows, k is cut into chunks so that a tile's activations stay in the first-level cache while a block of weight rows
// passes; the lanes are carried from chunk to chunk in scratch, which changes no rounding.
namespace metallic::cpu {

// Activation rows m.. and elements [k0, k1) of k.
struct FloatRange {
    size_t m, k0, k1;
};

inline constexpr size_t kFloatChunk = 1024;
inline constexpr size_t kFloatRowBlock = 48;

namespace {

// A block of weight rows, with M activation rows.
template <class Isa, DType T, int R, int M>
void float_rows(const Operands& o, const FloatRange& range, size_t row, size_t end, float* carried) {
    for (; row + R <= end; row += R, carried += R * M * 16) Isa::template tile<T, R, M>(o, range, row, carried);
    for (; row < end; ++row, carried += M * 16) Isa::template tile<T, 1, M>(o, range, row, carried);
}

template <class Isa, DType T, int M>
void float_chunks(const Operands& o, size_t m, size_t row, size_t end, void* scratch) {
    static_assert(kFloatRowBlock * M * 16 * sizeof(float) <= kScratchBytes);
    for (size_t k0 = 0; k0 < o.k; k0 += kFloatChunk) {
        const size_t k1 = o.k - k0 < kFloatChunk ? o.k : k0 + kFloatChunk;
        float_rows<Isa, T, Isa::kRows, M>(o, {m, k0, k1}, row, end, static_cast<float*>(scratch));
    }
}

template <class Isa, DType T>
void multiply_float(const Operands& o, void* scratch) {
    for (size_t row = 0; row < o.rows; row += kFloatRowBlock) {
        const size_t end = o.rows - row < kFloatRowBlock ? o.rows : row + kFloatRowBlock;
        size_t m = 0;
        for (; m + Isa::kTile <= o.m_rows; m += Isa::kTile) float_chunks<Isa, T, Isa::kTile>(o, m, row, end, scratch);
        for (; m + 2 <= o.m_rows; m += 2) float_chunks<Isa, T, 2>(o, m, row, end, scratch);
        // The last row, or the only one: its activations alone are no burden, and long runs of weights are read faster.
        for (; m < o.m_rows; ++m) {
            float_rows<Isa, T, Isa::kRowsOfOne, 1>(o, {m, 0, o.k}, row, end, static_cast<float*>(scratch));
        }
    }
}

}  // namespace
}  // namespace metallic::cpu
