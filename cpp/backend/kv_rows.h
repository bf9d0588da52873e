#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "backend/kv_layout.h"

// Rows of a page on the host, one at a time: for tests, and for work on pages that need not be fast. The CPU's kernels
// give the same bits; Metal's may round the other way at the border of two quants.
namespace metallic {

// The transform of rotated rows, in place: its own inverse. Every aligned run of 32, 16, 8, 4 or 2 elements that lies
// within the head, and in no longer such run, is multiplied by the normalised Hadamard matrix of its length. It is
// orthonormal, so scores stay the same where queries are transformed too, and what attention sums up of rotated values
// is transformed back at the end. (Rotations before quantisation: QuaRot, Ashkboos et al., 2024.)
void rotate_kv_row(std::span<float> head) noexcept;

// One row as floats, `layout.head_size` of them, the rotation undone.
void read_kv_row(const KvLayout& layout, KvSide side, const std::byte* row, float* out) noexcept;

// The reverse: rotates and rounds `head_size` floats. F16 and BF16 round to nearest even and saturate at their largest
// finite value. Q8_0: scale = max|x| / 127; Q4_0: scale = -x / 8 for the x of the greatest magnitude, the negative one
// of two; kept as F16, quants x / scale rounded to nearest even. A block with a NaN becomes NaNs. Blocks are padded
// with zeros.
void write_kv_row(const KvLayout& layout, KvSide side, const float* x, std::byte* row) noexcept;

// A page in another layout of the same cache group: row by row, rounded to its types.
std::unique_ptr<std::byte[]> convert_kv_page(const KvLayout& from, const std::byte* page, const KvLayout& to);

}  // namespace metallic
