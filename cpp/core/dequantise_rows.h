#pragma once

#include "core/unpack.h"

// Rows of blocks as floats. As in core/unpack.h everything has internal linkage, because the header is compiled with
// several instruction sets; all of them give the same bits.
namespace metallic {
namespace {

// Some codes as floats, less `zero`. Written out, because compilers read codes in wider pieces than they were stored
// in, which then wait for the stores.
#if defined(__AVX512F__)
using WideFloats = __m512;
inline constexpr int kWide = 16;
inline WideFloats load_codes(const uint8_t* codes, int zero) {
    const __m512i c = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(c, _mm512_set1_epi32(zero)));
}
#elif defined(__AVX2__)
using WideFloats = __m256;
inline constexpr int kWide = 8;
inline WideFloats load_codes(const uint8_t* codes, int zero) {
    const __m256i c = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(c, _mm256_set1_epi32(zero)));
}
#else
using WideFloats = float;
inline constexpr int kWide = 1;
inline WideFloats load_codes(const uint8_t* codes, int zero) {
    return static_cast<float>(*codes - zero);
}
#endif

// out[i] = d (codes[i] - kZero), and plus `m` or, in super-blocks, minus it. The order of the float operations is
// gguf-py's; a fused multiply-add would round differently.
template <class F>
inline void scale_codes(const uint8_t* codes, int n, float d, float m, float* out) {
    for (int i = 0; i < n; i += kWide) {
        WideFloats x = d * load_codes(codes + i, F::kZero);
        if (F::kMin) x = F::kSuper ? x - m : x + m;
        memcpy(out + i, &x, sizeof x);
    }
}

template <DType T>
void plain_row(const uint8_t* row, size_t k, float* out) {
    using F = Format<T>;
    for (size_t b = 0; b < k / kBlock; ++b, out += kBlock) {
        const auto& block = *reinterpret_cast<const typename F::Block*>(row + b * sizeof(typename F::Block));
        uint8_t codes[kBlock];
        F::codes(block, codes);
        scale_codes<F>(codes, kBlock, F::scale(block), F::minimum(block), out);
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
            scale_codes<F>(codes + j * F::kSub, F::kSub, d, m, out + j * F::kSub);
        }
    }
}

// A row of a quantised type; false, and nothing written, for the others.
inline bool dequantise_blocks(DType type, const void* row, size_t k, float* out) {
    const uint8_t* bytes = static_cast<const uint8_t*>(row);
    switch (type) {
        case DType::Q4_0:
            return plain_row<DType::Q4_0>(bytes, k, out), true;
        case DType::Q4_1:
            return plain_row<DType::Q4_1>(bytes, k, out), true;
        case DType::Q5_0:
            return plain_row<DType::Q5_0>(bytes, k, out), true;
        case DType::Q5_1:
            return plain_row<DType::Q5_1>(bytes, k, out), true;
        case DType::Q8_0:
            return plain_row<DType::Q8_0>(bytes, k, out), true;
        case DType::IQ4_NL:
            return plain_row<DType::IQ4_NL>(bytes, k, out), true;
        case DType::MXFP4:
            return plain_row<DType::MXFP4>(bytes, k, out), true;
        case DType::Q2_K:
            return super_row<DType::Q2_K>(bytes, k, out), true;
        case DType::Q3_K:
            return super_row<DType::Q3_K>(bytes, k, out), true;
        case DType::Q4_K:
            return super_row<DType::Q4_K>(bytes, k, out), true;
        case DType::Q5_K:
            return super_row<DType::Q5_K>(bytes, k, out), true;
        case DType::Q6_K:
            return super_row<DType::Q6_K>(bytes, k, out), true;
        case DType::IQ4_XS:
            return super_row<DType::IQ4_XS>(bytes, k, out), true;
        case DType::F32:
        case DType::F16:
        case DType::BF16:
        case DType::I32:
            break;
    }
    return false;
}

}  // namespace
}  // namespace metallic
