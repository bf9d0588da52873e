#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "program/program.h"

namespace metallic {

inline constexpr uint32_t kPageTokens = 32;
inline constexpr uint64_t kPageAlignment = 16;  // of page addresses: what the widest loads of kernels need

inline constexpr uint32_t kMostRotatedHead = 1024;  // elements; backends need room for a head's queries

enum class KvSide : uint8_t { keys, values };

// Whether keys and values can be kept in this type.
constexpr bool is_kv_dtype(DType dtype) noexcept {
    return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16 || dtype == DType::Q8_0 ||
           dtype == DType::Q4_0;
}

// Types of the keys and the values of one cache group.
struct KvPair {
    constexpr KvPair(DType both = DType::F16) noexcept : keys(both), values(both) {}  // NOLINT(*-explicit-*)
    constexpr KvPair(DType k, DType v) noexcept : keys(k), values(v) {}
    friend bool operator==(const KvPair&, const KvPair&) = default;

    DType keys;
    DType values;
};

// Rows of one side: head_size elements of `dtype`, in whole blocks. Rotated rows, those of 4 bits, hold the Hadamard
// transform of the head instead (kv_rows.h): a block's one scale fits 32 elements of like size better.
struct KvRows {
    DType dtype = DType::F16;
    bool rotated = false;
    uint32_t row_bytes = 0;
    uint64_t head_bytes = 0;  // one head's rows of a page
    uint64_t side_bytes = 0;  // all heads of one layer
    friend bool operator==(const KvRows&, const KvRows&) = default;

    static KvRows of(const CacheGroup& group, DType dtype) noexcept {
        KvRows rows;
        rows.dtype = dtype;
        rows.rotated = dtype == DType::Q4_0 && group.head_size <= kMostRotatedHead;
        const uint32_t block = dtype_info(dtype).block_elements;
        const uint64_t padded = (uint64_t{group.head_size} + block - 1) / block * block;
        rows.row_bytes = static_cast<uint32_t>(metallic::row_bytes(dtype, padded));
        rows.head_bytes = uint64_t{rows.row_bytes} * kPageTokens;
        rows.side_bytes = rows.head_bytes * group.kv_heads;
        return rows;
    }
};

// How one page of a cache group lies in memory. For each layer, first the keys, then the values:
//     [layer][keys | values][kv_head][token of the page][row]
struct KvLayout {
    KvRows key_rows;
    KvRows value_rows;
    uint32_t kv_heads = 0;
    uint32_t head_size = 0;
    uint32_t layers = 0;
    uint64_t layer_bytes = 0;  // keys and values
    uint64_t page_bytes = 0;
    friend bool operator==(const KvLayout&, const KvLayout&) = default;

    static KvLayout of(const CacheGroup& group, KvPair types) noexcept {
        KvLayout layout;
        layout.key_rows = KvRows::of(group, types.keys);
        layout.value_rows = KvRows::of(group, types.values);
        layout.kv_heads = group.kv_heads;
        layout.head_size = group.head_size;
        layout.layers = group.layers;
        layout.layer_bytes = layout.key_rows.side_bytes + layout.value_rows.side_bytes;
        layout.page_bytes = layout.layer_bytes * group.layers;
        return layout;
    }

    const KvRows& rows(KvSide side) const noexcept { return side == KvSide::keys ? key_rows : value_rows; }
    KvPair types() const noexcept { return {key_rows.dtype, value_rows.dtype}; }
    // Where a head's rows start in a page.
    uint64_t keys(uint32_t layer, uint32_t head) const noexcept {
        return layer * layer_bytes + head * key_rows.head_bytes;
    }
    uint64_t values(uint32_t layer, uint32_t head) const noexcept {
        return layer * layer_bytes + key_rows.side_bytes + head * value_rows.head_bytes;
    }
    uint64_t at(KvSide side, uint32_t layer, uint32_t head) const noexcept {
        return side == KvSide::keys ? keys(layer, head) : values(layer, head);
    }
};

}  // namespace metallic
