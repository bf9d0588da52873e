#pragma once

#include <cstddef>

#include "core/dtype.h"

namespace metallic {

// Writes the k floats that one row of `type` holds to `out`: bit for bit what gguf-py's reference dequantisation gives
// (quants.py). `row` has row_bytes(type, k) bytes and is aligned to 2 bytes; k is a multiple of the type's block.
// I32 elements are converted to floats.
void dequantise_row(DType type, const void* row, size_t k, float* out) noexcept;

}  // namespace metallic
