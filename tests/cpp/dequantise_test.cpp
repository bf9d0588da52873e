#include "core/dequantise.h"

#include <gtest/gtest.h>

#include <bit>

#include "matmul_test_data.h"

namespace metallic {
namespace {

float half_at(const uint8_t* p) {
    half_t h;
    std::memcpy(&h, p, sizeof h);
    return to_float(h);
}

int nibble(const uint8_t* qs, int i) {
    return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
}

// Sub-block j's 6-bit scale (or, with `minimum`, minimum) of Q4_K and Q5_K.
int scale_k4(const uint8_t* s, int j, bool minimum) {
    const int base = minimum ? 4 : 0;
    if (j < 4) return s[base + j] & 63;
    const int low = minimum ? s[4 + j] >> 4 : s[4 + j] & 15;
    return low | (s[base + j - 4] >> 6) << 4;
}

// Element i of a plain block, written from the format's description and not from the library's unpacking.
float plain_element(DType type, const uint8_t* p, int i) {
    switch (type) {
        case DType::Q4_0:
            return half_at(p) * static_cast<float>(nibble(p + 2, i) - 8);
        case DType::Q4_1:
            return half_at(p) * static_cast<float>(nibble(p + 4, i)) + half_at(p + 2);
        case DType::Q5_0: {
            const int q = nibble(p + 6, i) + 16 * (p[2 + i / 8] >> i % 8 & 1);
            return half_at(p) * static_cast<float>(q - 16);
        }
        case DType::Q5_1: {
            const int q = nibble(p + 8, i) + 16 * (p[4 + i / 8] >> i % 8 & 1);
            return half_at(p) * static_cast<float>(q) + half_at(p + 2);
        }
        case DType::Q8_0:
            return half_at(p) * static_cast<float>(static_cast<int8_t>(p[2 + i]));
        case DType::IQ4_NL:
            return half_at(p) * static_cast<float>(kIQ4Values[nibble(p + 2, i)]);
        case DType::MXFP4:
            return std::ldexp(1.0f, p[0] - 128) * static_cast<float>(kE2M1Doubled[nibble(p + 1, i)]);
        default:
            return 0;
    }
}

// Element i of a super-block.
float super_element(DType type, const uint8_t* p, int i) {
    const int half = i / 128, part = i % 128 / 32, l = i % 32;
    switch (type) {
        case DType::Q2_K: {
            const int s = p[i / 16], q = p[16 + 32 * half + l] >> 2 * part & 3;
            return half_at(p + 80) * static_cast<float>(s & 15) * static_cast<float>(q) -
                   half_at(p + 82) * static_cast<float>(s >> 4);
        }
        case DType::Q3_K: {
            const int j = i / 16;
            const int low = j < 8 ? p[96 + j] & 15 : p[96 + j - 8] >> 4;
            const int sc = (low | (p[104 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
            const int q = (p[32 + 32 * half + l] >> 2 * part & 3) - (p[l] >> (i / 32) & 1 ? 0 : 4);
            return half_at(p + 108) * static_cast<float>(sc) * static_cast<float>(q);
        }
        case DType::Q4_K:
        case DType::Q5_K: {
            const int j = i / 32;
            const uint8_t* qs = p + (type == DType::Q4_K ? 16 : 48);
            const uint8_t byte = qs[32 * (j / 2) + l];
            int q = j % 2 ? byte >> 4 : byte & 15;
            if (type == DType::Q5_K) q += 16 * (p[16 + l] >> j & 1);
            return half_at(p) * static_cast<float>(scale_k4(p + 4, j, false)) * static_cast<float>(q) -
                   half_at(p + 2) * static_cast<float>(scale_k4(p + 4, j, true));
        }
        case DType::Q6_K: {
            const uint8_t byte = p[64 * half + 32 * (part % 2) + l];
            const int low = part < 2 ? byte & 15 : byte >> 4;
            const int q = low + 16 * (p[128 + 32 * half + l] >> 2 * part & 3);
            return half_at(p + 208) * static_cast<float>(static_cast<int8_t>(p[192 + i / 16])) *
                   static_cast<float>(q - 32);
        }
        case DType::IQ4_XS: {
            const int j = i / 32, high = (p[2] | p[3] << 8) >> 2 * j & 3;
            const int low = j % 2 ? p[4 + j / 2] >> 4 : p[4 + j / 2] & 15;
            return half_at(p) * static_cast<float>((low | high << 4) - 32) *
                   static_cast<float>(kIQ4Values[nibble(p + 8 + 16 * j, l)]);
        }
        default:
            return 0;
    }
}

class DequantiseTest : public ::testing::TestWithParam<DType> {};

TEST_P(DequantiseTest, EqualsTheFormatsDescriptionBitForBit) {
    const DTypeInfo& info = dtype_info(GetParam());
    std::mt19937 random(11);
    for (int round = 0; round < 20; ++round) {
        const size_t blocks = 1 + random() % 5, k = blocks * info.block_elements;
        const auto scales = round % 2 ? testing::Scales::Extreme : testing::Scales::Ordinary;
        const std::vector<uint8_t> row = testing::random_weights(info.dtype, 1, k, random, scales);
        std::vector<float> out(k);
        dequantise_row(info.dtype, row.data(), k, out.data());
        for (size_t i = 0; i < k; ++i) {
            const uint8_t* block = row.data() + i / info.block_elements * info.block_bytes;
            const int at = static_cast<int>(i % info.block_elements);
            const float expected =
                info.block_elements == 32 ? plain_element(info.dtype, block, at) : super_element(info.dtype, block, at);
            ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected)) << "element " << i;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Quantised, DequantiseTest,
                         ::testing::Values(DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1, DType::Q8_0,
                                           DType::IQ4_NL, DType::MXFP4, DType::Q2_K, DType::Q3_K, DType::Q4_K,
                                           DType::Q5_K, DType::Q6_K, DType::IQ4_XS),
                         [](const auto& test) { return std::string(dtype_info(test.param).name); });

TEST(DequantiseRowTest, ConvertsAllHalves) {
    std::vector<half_t> halves(65536);
    for (uint32_t i = 0; i < 65536; ++i) halves[i].bits = static_cast<uint16_t>(i);
    std::vector<float> out(65536);
    dequantise_row(DType::F16, halves.data(), halves.size(), out.data());
    for (uint32_t i = 0; i < 65536; ++i) {
        const int exponent = static_cast<int>(i >> 10 & 31), mantissa = static_cast<int>(i & 1023);
        if (exponent == 31) {
            EXPECT_EQ(std::isnan(out[i]), mantissa != 0);
            EXPECT_EQ(std::isinf(out[i]), mantissa == 0);
        } else {
            const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                                  : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
            EXPECT_EQ(out[i], i & 0x8000 ? -magnitude : magnitude);
        }
        EXPECT_EQ(std::signbit(out[i]), (i & 0x8000) != 0);
    }
}

TEST(DequantiseRowTest, ConvertsTheOtherElementTypes) {
    const float f32[2] = {1.5f, -2.25f};
    const bf16_t bf16[2] = {to_bf16(-3.0f), {0x0001}};
    const int32_t i32[2] = {-7, 16777216};
    float out[2];
    dequantise_row(DType::F32, f32, 2, out);
    EXPECT_EQ(out[1], -2.25f);
    dequantise_row(DType::BF16, bf16, 2, out);
    EXPECT_EQ(out[0], -3.0f);
    EXPECT_EQ(std::bit_cast<uint32_t>(out[1]), 0x00010000u);
    dequantise_row(DType::I32, i32, 2, out);
    EXPECT_EQ(out[0], -7.0f);
    EXPECT_EQ(out[1], 16777216.0f);
}

}  // namespace
}  // namespace metallic
