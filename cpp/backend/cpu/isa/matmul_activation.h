#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "backend/cpu/isa/matmul_kernels.h"
#include "core/unpack.h"

// Activation rows and how they are quantised. The functions have internal linkage because the header is compiled with
// several instruction sets (see core/unpack.h).
namespace metallic::cpu {

inline constexpr int kGroupBlocks = 4;  // blocks of 32 in one Q8Group
inline constexpr int kGroup = 128;      // elements in one Q8Group

// Four blocks of 32; the last group of a row is padded with zero blocks.
struct alignas(64) Q8Group {
    int8_t q[kGroup];
    float d[kGroupBlocks];
    float s[kGroupBlocks];       // d times the block's sum of q
    int32_t bias[kGroupBlocks];  // -128 times the block's sum of q
};

struct alignas(64) Q8KBlock {
    int8_t q[kSuperBlock];
    int16_t sums16[16];  // of 16 elements each
    int16_t sums32[8];   // of 32 elements each
    float d;
};

static_assert(sizeof(Q8Group) == 192 && sizeof(Q8KBlock) == 320);

namespace {

inline uint32_t float_bits(float x) {
    return __builtin_bit_cast(uint32_t, x);
}
inline float bits_float(uint32_t bits) {
    return __builtin_bit_cast(float, bits);
}

// Rounds x * inverse to the nearest integer, ties to even: in [2^23, 2^24) the spacing of floats is 1.
inline int32_t round_scaled(float x, float inverse) {
    return static_cast<int32_t>(float_bits(x * inverse + 12582912.0f)) - 0x4b400000;
}

// Quantises N elements symmetrically to [-127, 127] and returns the scale.
template <int N>
inline float quantise_block(const float* x, int8_t* q) {
    // Magnitudes order as their bits do, and NaNs above all, so that one maximum also finds what is not finite.
    int32_t largest = 0;
    for (int i = 0; i < N; ++i) {
        const int32_t magnitude = static_cast<int32_t>(float_bits(x[i]) & 0x7fffffffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    if (largest >= 0x7f800000 || largest < 0x03800000) {
        memset(q, 0, N);
        return largest < 0x03800000 ? 0.0f : bits_float(0x7fc00000u);
    }
    const float magnitude = bits_float(static_cast<uint32_t>(largest));
    const float inverse = 127.0f / magnitude;
    for (int i = 0; i < N; ++i) q[i] = static_cast<int8_t>(round_scaled(x[i], inverse));
    return magnitude / 127.0f;
}

template <int N>
inline int32_t sum_of(const int8_t* q) {
    int32_t sum = 0;
    for (int i = 0; i < N; ++i) sum += q[i];
    return sum;
}

inline void quantise_q8(const float* x, size_t k, Q8Group* out) {
    const size_t blocks = k / kBlock, groups = (blocks + kGroupBlocks - 1) / kGroupBlocks;
    if (groups > 0) memset(static_cast<void*>(out + groups - 1), 0, sizeof(Q8Group));
    for (size_t b = 0; b < blocks; ++b) {
        Q8Group& group = out[b / kGroupBlocks];
        const size_t j = b % kGroupBlocks;
        int8_t* q = group.q + j * kBlock;
        const float d = quantise_block<kBlock>(x + b * kBlock, q);
        const int32_t sum = sum_of<kBlock>(q);
        group.d[j] = d;
        group.s[j] = d * static_cast<float>(sum);
        group.bias[j] = -128 * sum;
    }
    // The groups before the last one have their padding bytes set too, so that equal rows are equal bytes.
    for (size_t g = 0; g + 1 < groups; ++g) {
        memset(reinterpret_cast<char*>(out + g) + offsetof(Q8Group, bias) + sizeof out->bias, 0, 16);
    }
}

inline void quantise_q8k(const float* x, size_t k, Q8KBlock* out) {
    for (size_t b = 0; b < k / kSuperBlock; ++b) {
        Q8KBlock& block = out[b];
        memset(static_cast<void*>(&block), 0, sizeof block);
        block.d = quantise_block<kSuperBlock>(x + b * kSuperBlock, block.q);
        for (int j = 0; j < 16; ++j) block.sums16[j] = static_cast<int16_t>(sum_of<16>(block.q + 16 * j));
        for (int j = 0; j < 8; ++j)
            block.sums32[j] = static_cast<int16_t>(block.sums16[2 * j] + block.sums16[2 * j + 1]);
    }
}

inline void quantise_row(ActivationFormat format, const float* x, size_t k, void* out) {
    switch (format) {
        case ActivationFormat::F32: {
            const size_t padded = (k + 15) / 16 * 16;
            memcpy(out, x, k * sizeof(float));
            memset(static_cast<float*>(out) + k, 0, (padded - k) * sizeof(float));
            return;
        }
        case ActivationFormat::Q8:
            return quantise_q8(x, k, static_cast<Q8Group*>(out));
        case ActivationFormat::Q8K:
            return quantise_q8k(x, k, static_cast<Q8KBlock*>(out));
    }
}

}  // namespace
}  // namespace metallic::cpu
