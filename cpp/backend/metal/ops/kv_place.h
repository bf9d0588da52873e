#pragma once

#include "backend/kv_layout.h"
#include "backend/metal/ops/preparation.h"
#include "params.h"

// What every kernel that reaches into pages wants to know; the other side is shaders/kv.h.
namespace metallic::metal {

static_assert(kPageTokens == 32, "shaders/kv.h knows pages of 32 tokens");
static_assert(kMostRotatedHead == metallic::kMostRotatedHead, "shaders/kv.h knows which heads are rotated");

inline KvType kv_type(DType dtype) noexcept {
    switch (dtype) {
        case DType::F32:
            return KvF32;
        case DType::F16:
            return KvF16;
        case DType::BF16:
            return KvBF16;
        case DType::Q4_0:
            return KvQ4_0;
        default:
            return KvQ8_0;  // Preparation::group has refused all others
    }
}

inline FunctionConstant key_type_constant(const KvLayout& layout) {
    return FunctionConstant::of(0, static_cast<uint32_t>(kv_type(layout.key_rows.dtype)));
}
inline FunctionConstant value_type_constant(const KvLayout& layout) {
    return FunctionConstant::of(7, static_cast<uint32_t>(kv_type(layout.value_rows.dtype)));
}
inline FunctionConstant head_size_constant(uint32_t head_size) {
    return FunctionConstant::of(1, head_size);
}

inline KvPlaceParams kv_place(const Preparation& p, uint32_t group, uint32_t layer) noexcept {
    const KvLayout& layout = p.kv_layout(group);
    KvPlaceParams place{};
    place.keys = {layout.keys(layer, 0), layout.key_rows.head_bytes, layout.key_rows.row_bytes, 0};
    place.values = {layout.values(layer, 0), layout.value_rows.head_bytes, layout.value_rows.row_bytes, 0};
    place.group = group;
    place.groups = static_cast<uint32_t>(p.program.groups.size());
    return place;
}

}  // namespace metallic::metal
