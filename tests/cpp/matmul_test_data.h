#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "backend/cpu/isa/matmul_kernels.h"
#include "core/blocks.h"
#include "core/dtype.h"

// Random weights and activations for tests and benchmarks of the matrix kernels.
namespace metallic::testing {

inline constexpr DType kWeightTypes[] = {
    DType::F32,  DType::F16,  DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0,   DType::Q5_1,   DType::Q8_0,
    DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K, DType::IQ4_NL, DType::IQ4_XS, DType::MXFP4};

// Memory aligned to 64 bytes, of exactly the size asked for, so that sanitizers see what lies outside.
class AlignedBytes {
  public:
    explicit AlignedBytes(size_t size) : storage_(size + 64), size_(size) {}
    uint8_t* data() {
        const auto at = reinterpret_cast<uintptr_t>(storage_.data());
        return storage_.data() + ((at + 63) / 64 * 64 - at);
    }
    size_t size() const { return size_; }

  private:
    std::vector<uint8_t> storage_;
    size_t size_;
};

enum class Scales { Ordinary, Extreme };

// A finite float16: of ordinary size, or with Extreme any finite bits, subnormal numbers and zeros among them.
inline half_t random_half(std::mt19937& random, Scales scales) {
    if (scales == Scales::Ordinary) {
        const float sign = random() % 2 ? 1.0f : -1.0f;
        return to_half(sign * std::uniform_real_distribution<float>(0.001f, 0.02f)(random));
    }
    half_t h;
    do {
        h.bits = static_cast<uint16_t>(random());
        if (random() % 4 == 0) h.bits &= 0x83ffu;
        if (random() % 16 == 0) h.bits &= 0x8000u;
    } while ((h.bits & 0x7c00u) == 0x7c00u);
    return h;
}

// Where the float16 scales of a block are; -1 where there is none.
struct ScaleOffsets {
    int first, second;
};

inline ScaleOffsets scale_offsets(DType type) {
    switch (type) {
        case DType::Q4_0:
        case DType::Q5_0:
        case DType::Q8_0:
        case DType::IQ4_NL:
        case DType::IQ4_XS:
            return {0, -1};
        case DType::Q4_1:
        case DType::Q5_1:
        case DType::Q4_K:
        case DType::Q5_K:
            return {0, 2};
        case DType::Q2_K:
            return {80, 82};
        case DType::Q3_K:
            return {108, -1};
        case DType::Q6_K:
            return {208, -1};
        default:
            return {-1, -1};
    }
}

inline void random_block(DType type, uint8_t* block, std::mt19937& random, Scales scales) {
    const DTypeInfo& info = dtype_info(type);
    for (uint32_t i = 0; i < info.block_bytes; ++i) block[i] = static_cast<uint8_t>(random());
    const ScaleOffsets at = scale_offsets(type);
    for (const int offset : {at.first, at.second}) {
        if (offset < 0) continue;
        const half_t h = random_half(random, scales);
        std::memcpy(block + offset, &h, sizeof h);
    }
    if (type == DType::MXFP4) {
        block[0] = static_cast<uint8_t>(scales == Scales::Ordinary ? 118 + random() % 6 : random() % 230);
    } else if (type == DType::F16) {
        const half_t h = random_half(random, scales);
        std::memcpy(block, &h, sizeof h);
    } else if (type == DType::BF16 || type == DType::F32) {
        const float x = std::normal_distribution<float>(0.0f, 0.05f)(random);
        const bf16_t b = to_bf16(x);
        if (type == DType::F32) std::memcpy(block, &x, sizeof x);
        if (type == DType::BF16) std::memcpy(block, &b, sizeof b);
    }
}

// `rows` rows of k elements, one after the other.
inline std::vector<uint8_t> random_weights(DType type, size_t rows, size_t k, std::mt19937& random,
                                           Scales scales = Scales::Ordinary) {
    const DTypeInfo& info = dtype_info(type);
    std::vector<uint8_t> bytes(rows * row_bytes(type, k));
    for (size_t at = 0; at < bytes.size(); at += info.block_bytes)
        random_block(type, bytes.data() + at, random, scales);
    return bytes;
}

inline std::vector<float> random_floats(size_t count, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> x(count);
    for (float& value : x) value = normal(random);
    return x;
}

}  // namespace metallic::testing
