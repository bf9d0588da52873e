#include "core/dequantise.h"

#include <cstring>

#include "core/dequantise_rows.h"

namespace metallic {
namespace {

template <typename Element, typename Convert>
void element_row(const uint8_t* row, size_t k, float* out, Convert convert) {
    for (size_t i = 0; i < k; ++i) {
        Element element;
        std::memcpy(&element, row + i * sizeof element, sizeof element);
        out[i] = convert(element);
    }
}

}  // namespace

void dequantise_row(DType type, const void* row, size_t k, float* out) noexcept {
    if (dequantise_blocks(type, row, k, out)) return;
    const uint8_t* bytes = static_cast<const uint8_t*>(row);
    switch (type) {
        case DType::F32:
            std::memcpy(out, row, k * sizeof(float));
            return;
        case DType::F16:
            return element_row<half_t>(bytes, k, out, half_bits_to_float);
        case DType::BF16:
            return element_row<bf16_t>(bytes, k, out, bf16_bits_to_float);
        case DType::I32:
            return element_row<int32_t>(bytes, k, out, [](int32_t i) { return static_cast<float>(i); });
        default:
            return;
    }
}

}  // namespace metallic
