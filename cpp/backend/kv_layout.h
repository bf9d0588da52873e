#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "program/program.h"

namespace metallic {

inline constexpr uint32_t kPageTokens = 32;
inline constexpr uint64_t kPageAlignment = 16;  // of page addresses: what the widest loads of kernels need

// How one page of a cache group lies in memory. For each layer, first the keys, then the values:
//     [layer][keys | values][kv_head][token of the page][row]
// A row is head_size elements of `dtype`; Q8_0 rows are padded to whole blocks of 32.
struct KvLayout {
    DType dtype = DType::F16;
    uint32_t kv_heads = 0;
    uint32_t head_size = 0;
    uint32_t layers = 0;
    uint32_t row_bytes = 0;
    uint64_t head_bytes = 0;  // one head's rows of a page
    uint64_t side_bytes = 0;  // all heads: the keys (or the values) of one layer
    uint64_t page_bytes = 0;

    static KvLayout of(const CacheGroup& group, DType dtype) noexcept {
        KvLayout layout;
        layout.dtype = dtype;
        layout.kv_heads = group.kv_heads;
        layout.head_size = group.head_size;
        layout.layers = group.layers;
        const uint32_t block = dtype_info(dtype).block_elements;
        const uint32_t padded = (group.head_size + block - 1) / block * block;
        layout.row_bytes = static_cast<uint32_t>(metallic::row_bytes(dtype, padded));
        layout.head_bytes = uint64_t{layout.row_bytes} * kPageTokens;
        layout.side_bytes = layout.head_bytes * group.kv_heads;
        layout.page_bytes = uint64_t{2} * layout.side_bytes * group.layers;
        return layout;
    }

    uint64_t keys(uint32_t layer, uint32_t head) const noexcept {
        return uint64_t{2} * layer * side_bytes + uint64_t{head} * head_bytes;
    }
    uint64_t values(uint32_t layer, uint32_t head) const noexcept { return keys(layer, head) + side_bytes; }
};

}  // namespace metallic
