#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace metallic {

// Element types of tensors. The values are GGUF's type ids (ggml's gguf.md), so a file's id converts by a checked cast.
enum class DType : uint8_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    IQ4_NL = 20,
    IQ4_XS = 23,
    I32 = 26,
    BF16 = 30,
    MXFP4 = 39,
};

// How one type lays out elements: `block_elements` consecutive elements of a row share `block_bytes` bytes.
struct DTypeInfo {
    DType dtype;
    std::string_view name;
    uint32_t block_elements;
    uint32_t block_bytes;
    bool quantised;
};

// Null when `gguf_type` is no type that this library supports.
const DTypeInfo* find_dtype(uint32_t gguf_type) noexcept;
// Null when no supported type has this name (case-sensitive, as in GGUF: "Q4_K").
const DTypeInfo* find_dtype(std::string_view name) noexcept;
const DTypeInfo& dtype_info(DType dtype) noexcept;

// The name that GGUF gives a type id, also for types that this library does not support; empty for an unknown id.
std::string_view gguf_type_name(uint32_t gguf_type) noexcept;

// Bytes of one row of `elements` elements; `elements` must be a multiple of the block's.
inline size_t row_bytes(DType dtype, size_t elements) noexcept {
    const DTypeInfo& info = dtype_info(dtype);
    return elements / info.block_elements * info.block_bytes;
}

}  // namespace metallic
