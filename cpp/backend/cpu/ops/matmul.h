#pragma once

#include <array>

#include "backend/cpu/ops/preparation.h"

namespace metallic::cpu {

std::unique_ptr<Operation> prepare(const LinearStep& step, Preparation& preparation);

// ---- shared with the mixture-of-experts steps ----

// Most floats of one tile of products that a thread keeps before they are stored (two tiles when gated).
inline constexpr uint32_t kTileFloats = 32768;
inline constexpr uint32_t kMostTileRows = 256;  // activation rows of a tile
inline constexpr uint32_t kRowMultiple = 16;    // weight rows of a chunk, except the last of a part

// Rows of weights per chunk, such that `total` rows keep all threads busy: a multiple of kRowMultiple, and with
// `tile_rows` activation rows no more than two tiles of kTileFloats / 2.
uint32_t chunk_rows(uint64_t total, uint32_t threads, uint32_t tile_rows) noexcept;

// Products with matrices of `cols` columns, in the plan's precision. int8: by each type's own kernel, which takes
// rounded activations where the weights are quantised. float32: rows of quantised weights become floats in a thread's
// scratch, a few at a time, for the F32 kernel; which rows are together changes no bit.
class Products {
  public:
    Products(const Preparation& preparation, uint32_t cols);

    // Counts a matrix in; the format in which `multiply` then takes activations.
    ActivationFormat add(DType dtype) noexcept;
    // A thread's scratch for `multiply`, after all matrices were counted in.
    size_t scratch_bytes() const noexcept;
    // out[m * out_stride + n] for the `count` rows of the matrix that are at `weights`, and `rows` activation rows.
    void multiply(const Matrix& matrix, const std::byte* weights, uint32_t count, const std::byte* activations,
                  size_t activation_bytes, uint32_t rows, float* out, size_t out_stride,
                  std::byte* scratch) const noexcept;

  private:
    bool expands(DType dtype) const noexcept { return exact_ && dtype_info(dtype).quantised; }

    const MatmulKernels& kernels_;
    const bool exact_;
    const uint32_t cols_;
    const size_t expanded_row_bytes_;
    const uint32_t expanded_rows_;  // most at a time
    bool any_expands_ = false;
};

// The distinct formats in which some matrices want rows of `cols` activations, and buffers of rows in each of them.
class ActivationRows {
  public:
    explicit ActivationRows(uint32_t cols) : cols_(cols) {}

    // The format's index.
    uint32_t add(ActivationFormat format);
    size_t bytes(size_t rows) const noexcept { return rows * all_bytes_; }
    size_t row_bytes(uint32_t format) const noexcept { return row_bytes_[format]; }
    // Row `row` of a buffer made for `rows` rows; the formats follow each other.
    std::byte* row(std::byte* buffer, size_t rows, uint32_t format, size_t row) const noexcept {
        return buffer + rows * before_[format] + row * row_bytes_[format];
    }
    // One row to every format.
    void convert(const MatmulKernels& kernels, const float* x, std::byte* buffer, size_t rows,
                 size_t row_index) const noexcept;
    // One converted row to another place of the same buffer.
    void duplicate(std::byte* buffer, size_t rows, size_t from, size_t to) const noexcept;

  private:
    uint32_t cols_;
    uint32_t count_ = 0;
    std::array<ActivationFormat, kMaxLinearParts> formats_{};
    std::array<size_t, kMaxLinearParts> row_bytes_{}, before_{};
    size_t all_bytes_ = 0;
};

}  // namespace metallic::cpu
