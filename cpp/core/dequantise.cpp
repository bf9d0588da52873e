#include "core/dequantise.h"

#include <cstring>

#include "core/unpack.h"

namespace metallic {
namespace {

// The order of the float operations below is gguf-py's; a fused multiply-add would round differently.
template <DType T>
void plain_row(const uint8_t* row, size_t k, float* out) {
    using F = Format<T>;
    for (size_t b = 0; b < k / kBlock; ++b, out += kBlock) {
        const auto& block = *reinterpret_cast<const typename F::Block*>(row + b * sizeof(typename F::Block));
        uint8_t codes[kBlock];
        F::codes(block, codes);
        const float d = F::scale(block), m = F::minimum(block);
        for (int i = 0; i < kBlock; ++i) {
            const float value = d * static_cast<float>(codes[i] - F::kZero);
            out[i] = F::kMin ? value + m : value;
        }
    }
}

template <DType T>
void super_row(const uint8_t* row, size_t k, float* out) {
    using F = Format<T>;
    for (size_t b = 0; b < k / kSuperBlock; ++b, out += kSuperBlock) {
        const auto& block = *reinterpret_cast<const typename F::Block*>(row + b * sizeof(typename F::Block));
        uint8_t codes[kSuperBlock];
        int16_t sc[kSuperBlock / F::kSub], mn[kSuperBlock / F::kSub] = {};
        F::codes(block, codes);
        F::scales(block, sc, mn);
        for (int j = 0; j < kSuperBlock / F::kSub; ++j) {
            const float d = F::scale(block) * static_cast<float>(sc[j]);
            const float m = F::minimum(block) * static_cast<float>(mn[j]);
            for (int i = j * F::kSub; i < (j + 1) * F::kSub; ++i) {
                const float value = d * static_cast<float>(codes[i] - F::kZero);
                out[i] = F::kMin ? value - m : value;
            }
        }
    }
}

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
        case DType::Q4_0:
            return plain_row<DType::Q4_0>(bytes, k, out);
        case DType::Q4_1:
            return plain_row<DType::Q4_1>(bytes, k, out);
        case DType::Q5_0:
            return plain_row<DType::Q5_0>(bytes, k, out);
        case DType::Q5_1:
            return plain_row<DType::Q5_1>(bytes, k, out);
        case DType::Q8_0:
            return plain_row<DType::Q8_0>(bytes, k, out);
        case DType::IQ4_NL:
            return plain_row<DType::IQ4_NL>(bytes, k, out);
        case DType::MXFP4:
            return plain_row<DType::MXFP4>(bytes, k, out);
        case DType::Q2_K:
            return super_row<DType::Q2_K>(bytes, k, out);
        case DType::Q3_K:
            return super_row<DType::Q3_K>(bytes, k, out);
        case DType::Q4_K:
            return super_row<DType::Q4_K>(bytes, k, out);
        case DType::Q5_K:
            return super_row<DType::Q5_K>(bytes, k, out);
        case DType::Q6_K:
            return super_row<DType::Q6_K>(bytes, k, out);
        case DType::IQ4_XS:
            return super_row<DType::IQ4_XS>(bytes, k, out);
    }
}

}  // namespace metallic
