#pragma once

#include "backend/cpu/ops/preparation.h"

namespace metallic::cpu {

// Computes cos and sin of this thread's part of the batch's rows: angles are position * inverse frequency in double.
void fill_rope_rows(const RopeTable& table, const RopeRows& out, const Worker& worker) noexcept;

// Rotates heads of one row, in place.
struct RowRotation {
    RowRotation(RopeId rope, const RopeTable& table)
        : id(rope), dims(table.dims), neox(table.pairing == RopePairing::neox) {}
    void apply(const VectorKernels& kernels, const Worker& worker, uint32_t row, float* x, size_t heads,
               size_t head_size) const noexcept {
        const RopeRows& table = worker.submission.ropes[id];
        const size_t at = size_t{row} * table.half;
        kernels.rope(x, heads, head_size, dims, neox, table.cos + at, table.sin + at);
    }

    RopeId id;
    uint32_t dims;
    bool neox;
};

std::unique_ptr<Operation> prepare(const RopeStep& step, Preparation& preparation);

}  // namespace metallic::cpu
