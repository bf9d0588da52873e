#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "core/dtype.h"
#include "memory/pool.h"

namespace metallic {

// A tensor in memory that somebody else keeps: slices and transposes share its bytes. Dimensions go from the outermost
// to the innermost; strides are in elements, and of a quantised type in elements that whole blocks hold. The innermost
// dimension of a quantised tensor lies in blocks, which cannot be taken apart: its stride is 1, it is cut at the bounds
// of blocks, and stays the innermost. Everything here throws RequestError for what cannot be; nothing is copied.
class TensorView {
  public:
    static constexpr size_t kMostDimensions = 8;

    TensorView() = default;
    // Contiguous, from the start of `memory`, which is large enough.
    TensorView(DType dtype, std::span<const uint64_t> shape, BufferView memory);
    // Of an allocation: its dtype; its elements are at least those of the shape.
    TensorView(const Allocation& allocation, std::span<const uint64_t> shape);

    DType dtype() const noexcept { return dtype_; }
    size_t dimensions() const noexcept { return dimensions_; }
    std::span<const uint64_t> shape() const noexcept { return {shape_.data(), dimensions_}; }
    std::span<const uint64_t> strides() const noexcept { return {strides_.data(), dimensions_}; }
    uint64_t elements() const noexcept;
    // In elements from the start of the memory.
    uint64_t offset() const noexcept { return offset_; }
    bool contiguous() const noexcept;
    // From the first element to the end of the last one; a contiguous view has no others between.
    BufferView bytes() const;

    // Elements [begin, end) of one dimension.
    TensorView slice(size_t dimension, uint64_t begin, uint64_t end) const;
    // One element of a dimension, which goes.
    TensorView select(size_t dimension, uint64_t index) const;
    // The same elements in another shape; only of contiguous views.
    TensorView reshape(std::span<const uint64_t> shape) const;
    TensorView transpose(size_t a, size_t b) const;

  private:
    void lay_out(std::span<const uint64_t> shape);
    void check_dimension(size_t dimension) const;
    bool blocked() const noexcept { return dtype_info(dtype_).block_elements > 1; }

    DType dtype_ = DType::F32;
    uint8_t dimensions_ = 0;
    uint64_t offset_ = 0;
    std::array<uint64_t, kMostDimensions> shape_{}, strides_{};
    BufferView memory_;
};

}  // namespace metallic
