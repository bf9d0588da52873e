#pragma once

#include "backend/kv_layout.h"
#include "backend/metal/ops/preparation.h"
#include "params.h"

// What every kernel that reaches into pages wants to know; the other side is shaders/kv.h.
namespace metallic::metal {

static_assert(kPageTokens == 32, "shaders/kv.h knows pages of 32 tokens");

inline KvType kv_type(DType dtype) noexcept {
    switch (dtype) {
        case DType::F32:
            return KvF32;
        case DType::F16:
            return KvF16;
        case DType::BF16:
            return KvBF16;
        default:
            return KvQ8_0;  // Preparation::group has refused all others
    }
}

inline FunctionConstant kv_type_constant(const KvLayout& layout) {
    return FunctionConstant::of(0, static_cast<uint32_t>(kv_type(layout.dtype)));
}
inline FunctionConstant head_size_constant(uint32_t head_size) {
    return FunctionConstant::of(1, head_size);
}

inline KvPlaceParams kv_place(const Preparation& p, uint32_t group, uint32_t layer) noexcept {
    const KvLayout& layout = p.kv_layout(group);
    KvPlaceParams place{};
    place.keys = layout.keys(layer, 0);
    place.side_bytes = layout.side_bytes;
    place.head_bytes = layout.head_bytes;
    place.row_bytes = layout.row_bytes;
    place.group = group;
    place.groups = static_cast<uint32_t>(p.program.groups.size());
    return place;
}

}  // namespace metallic::metal
