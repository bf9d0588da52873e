#include "backend/metal/ops/copy.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <random>

#include "core/error.h"
#include "core/half.h"
#include "metal_kernels.h"

// Casts and moves of pages.
namespace metallic::testing {
namespace {

class MetalCopy : public MetalKernels {
  protected:
    void cast(DType from, DType to, const Memory& in, const Memory& out, uint32_t count) {
        Program program;
        CompileInputs inputs;
        inputs.program = &program;
        run<metal::Cast>(
            inputs, [&](metal::Preparation& p) { return metal::Cast(from, to, p); },
            [&](const metal::Cast& c, metal::Encoder& encoder) { c.encode(encoder, in.binding, out.binding, count); });
    }
};

TEST_F(MetalCopy, NarrowsAsTheHostDoes) {
    std::mt19937 random(3);
    std::vector<float> floats{0.0f, -0.0f, 65504.0f, 65519.0f, 65520.0f, 1e30f, -INFINITY, 5e-8f, 3e-5f, 1.0009765f};
    for (int i = 0; i < 1001; ++i) {
        floats.push_back(std::ldexp(static_cast<float>(static_cast<int32_t>(random())), -32 - int(random() % 30)));
    }
    const uint32_t count = static_cast<uint32_t>(floats.size());
    const Memory in = memory(std::span<const float>(floats)), out = memory(count * 2);
    cast(DType::F32, DType::F16, in, out, count);
    for (uint32_t i = 0; i < count; ++i) EXPECT_EQ(out.as<uint16_t>()[i], to_half(floats[i]).bits) << floats[i];
    cast(DType::F32, DType::BF16, in, out, count);
    for (uint32_t i = 0; i < count; ++i) EXPECT_EQ(out.as<uint16_t>()[i], to_bf16(floats[i]).bits) << floats[i];
}

TEST_F(MetalCopy, ANaNStaysANaN) {
    const std::vector<float> floats{NAN, -NAN, std::bit_cast<float>(0x7f800001u)};
    const Memory in = memory(std::span<const float>(floats)), out = memory(6);
    cast(DType::F32, DType::F16, in, out, 3);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(to_float(half_t{out.as<uint16_t>()[i]})));
    cast(DType::F32, DType::BF16, in, out, 3);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(to_float(bf16_t{out.as<uint16_t>()[i]})));
}

TEST_F(MetalCopy, WidensEveryValue) {
    std::vector<uint16_t> bits(1 << 16);
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
    const Memory in = memory(std::span<const uint16_t>(bits)), out = memory(bits.size() * 4);
    for (const DType dtype : {DType::F16, DType::BF16}) {
        cast(dtype, DType::F32, in, out, static_cast<uint32_t>(bits.size()));
        for (const uint16_t b : bits) {
            const float wanted = dtype == DType::F16 ? to_float(half_t{b}) : to_float(bf16_t{b});
            const float got = out.as<float>()[b];
            if (std::isnan(wanted)) {
                EXPECT_TRUE(std::isnan(got));
            } else {
                EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(wanted));
            }
        }
    }
}

TEST_F(MetalCopy, RefusesOtherCasts) {
    const Memory some = memory(64);
    EXPECT_THROW(cast(DType::F16, DType::BF16, some, some, 4), Error);
    EXPECT_THROW(cast(DType::Q8_0, DType::F32, some, some, 4), Error);
}

TEST_F(MetalCopy, MovesPages) {
    for (const DType dtype : {DType::F16, DType::Q8_0}) {
        Program program;
        program.groups.push_back({0, 2, 40, 3});
        const std::vector<KvLayout> layouts{KvLayout::of(program.groups[0], dtype)};
        CompileInputs inputs;
        inputs.program = &program;
        inputs.kv = layouts;
        const uint64_t bytes = layouts[0].page_bytes;
        std::mt19937 random(5);
        std::vector<std::byte> before(8 * bytes);
        for (std::byte& b : before) b = static_cast<std::byte>(random());
        const Memory pages = memory(std::span<const std::byte>(before));
        const std::vector<std::pair<uint32_t, uint32_t>> moves{{7, 0}, {5, 2}, {6, 3}};
        std::vector<uint64_t> addresses;
        std::vector<std::byte> wanted = before;
        for (const auto& [from, to] : moves) {
            addresses.push_back(pages.heap->address() + from * bytes);
            addresses.push_back(pages.heap->address() + to * bytes);
            std::memcpy(wanted.data() + to * bytes, before.data() + from * bytes, bytes);
        }
        const Memory list = memory(std::span<const uint64_t>(addresses));
        run<metal::PageMoves>(
            inputs, [](metal::Preparation& p) { return metal::PageMoves(0, p); },
            [&](const metal::PageMoves& m, metal::Encoder& encoder) {
                m.encode(encoder, list.binding, static_cast<uint32_t>(moves.size()));
            });
        EXPECT_EQ(std::memcmp(pages.heap->host(), wanted.data(), wanted.size()), 0);
    }
}

}  // namespace
}  // namespace metallic::testing
