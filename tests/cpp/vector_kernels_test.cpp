#include "backend/cpu/isa/vector_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/isa/select.h"
#include "backend/kv_rows.h"
#include "core/blocks.h"
#include "program/program.h"

namespace metallic::cpu {
namespace {

using Floats = std::vector<float>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr size_t kSizes[] = {1, 2, 7, 15, 16, 17, 31, 32, 33, 64, 100, 257, 2048};

Floats random_floats(std::mt19937& random, size_t n, float deviation = 1.0f) {
    std::normal_distribution<float> normal(0.0f, deviation);
    Floats x(n);
    for (float& v : x) v = normal(random);
    return x;
}

// Distance in units of the last place of `expected`, as a float.
double ulps(float got, double expected) {
    if (std::isnan(got) || std::isnan(expected)) return std::isnan(got) && std::isnan(expected) ? 0 : 1e30;
    const float rounded = static_cast<float>(expected);
    if (std::isinf(rounded) || std::isinf(got)) return rounded == got ? 0 : 1e30;
    const float magnitude = std::max(std::abs(rounded), std::numeric_limits<float>::min());
    return std::abs(got - expected) / (std::nextafter(magnitude, kInf) - magnitude);
}

bool same_bits(const Floats& a, const Floats& b) {
    for (size_t i = 0; i < a.size(); ++i) {
        if (std::isnan(a[i]) && std::isnan(b[i])) continue;
        if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return false;
    }
    return a.size() == b.size();
}

class VectorKernelsOf : public ::testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        for (const Isa& isa : supported_isas()) {
            if (std::string(isa.name) == GetParam()) k_ = isa.vector;
        }
        if (k_ == nullptr) GTEST_SKIP() << "this processor or build has no " << GetParam();
    }
    Floats gated(Activation activation, const Floats& gate, const Floats& up) const {
        Floats out(gate.size());
        k_->gated_activation(static_cast<uint8_t>(activation), gate.data(), up.data(), gate.size(), out.data());
        return out;
    }
    const VectorKernels* k_ = nullptr;
};

TEST_P(VectorKernelsOf, RmsNorm) {
    std::mt19937 random(1);
    for (const size_t n : kSizes) {
        const Floats x = random_floats(random, n, 3), weight = random_floats(random, n),
                     residual = random_floats(random, n);
        double squares = 0;
        for (const float v : x) squares += static_cast<double>(v) * v;
        const double factor = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
        for (int which = 0; which < 4; ++which) {
            const float* w = which & 1 ? weight.data() : nullptr;
            const float* r = which & 2 ? residual.data() : nullptr;
            Floats out(n + 1, 7.0f);
            k_->rms_norm(x.data(), w, r, 1e-5f, n, out.data());
            EXPECT_EQ(out[n], 7.0f) << "wrote past the row";
            for (size_t i = 0; i < n; ++i) {
                const double scaled = x[i] * factor * (w ? w[i] : 1.0);
                // Roundings: the sum's chain of n / 16 and its tree, halved by the root, and a few more.
                const double tolerance = (static_cast<double>(n) / 32 + 8) * 0x1p-24 * std::abs(scaled) +
                                         0x1p-24 * std::abs(scaled + (r ? r[i] : 0));
                ASSERT_NEAR(out[i], scaled + (r ? r[i] : 0), tolerance) << n << " at " << i;
            }
            Floats in_place = x;
            k_->rms_norm(in_place.data(), w, r, 1e-5f, n, in_place.data());
            in_place.push_back(7.0f);
            EXPECT_TRUE(same_bits(in_place, out)) << n;
        }
    }
}

TEST_P(VectorKernelsOf, AddScaleSoftcap) {
    std::mt19937 random(2);
    for (const size_t n : kSizes) {
        const Floats a = random_floats(random, n, 20), b = random_floats(random, n);
        Floats sum(n + 1, 7.0f), scaled(n + 1, 7.0f), capped(n + 1, 7.0f);
        k_->add(a.data(), b.data(), n, sum.data());
        k_->scale(a.data(), 0.3f, n, scaled.data());
        k_->softcap(a.data(), 30.0f, n, capped.data());
        EXPECT_EQ(sum[n] + scaled[n] + capped[n], 21.0f) << "wrote past the row";
        for (size_t i = 0; i < n; ++i) {
            ASSERT_EQ(sum[i], a[i] + b[i]);
            ASSERT_EQ(scaled[i], a[i] * 0.3f);
            ASSERT_LE(ulps(capped[i], 30.0 * std::tanh(static_cast<double>(a[i] / 30.0f))), 4) << a[i];
        }
        Floats in_place = a;
        k_->softcap(in_place.data(), 30.0f, n, in_place.data());
        in_place.push_back(7.0f);
        EXPECT_TRUE(same_bits(in_place, capped));
    }
}

TEST_P(VectorKernelsOf, SoftcapIsTanh) {
    Floats x;
    for (float v = 1e-30f; v < 100; v *= 1.003f) x.insert(x.end(), {v, -v});
    x.insert(x.end(), {0.0f, -0.0f, kInf, -kInf, kNan});
    Floats out(x.size());
    k_->softcap(x.data(), 1.0f, x.size(), out.data());
    for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_LE(ulps(out[i], std::tanh(static_cast<double>(x[i]))), 2) << x[i];
        ASSERT_EQ(std::signbit(out[i]), std::signbit(x[i])) << x[i];
    }
}

TEST_P(VectorKernelsOf, Activations) {
    Floats x;
    for (float v = 1e-6f; v < 80; v *= 1.002f) x.insert(x.end(), {v, -v});
    x.insert(x.end(), {0.0f, -0.0f, 1000.0f, kNan});
    const Floats ones(x.size(), 1.0f);
    const Floats silu = gated(Activation::silu, x, ones), gelu = gated(Activation::gelu, x, ones);
    const Floats gelu_tanh = gated(Activation::gelu_tanh, x, ones), relu = gated(Activation::relu, x, ones);
    for (size_t i = 0; i < x.size(); ++i) {
        const double v = x[i];
        ASSERT_LE(ulps(silu[i], v / (1 + std::exp(-v))), 4) << v;
        // Where the tail is a subnormal number, or smaller than one after the product, zero is as good.
        const double exact = v * 0.5 * std::erfc(-v / std::sqrt(2.0));
        ASSERT_LE(v < -12.5 ? 0 : ulps(gelu[i], exact), 12) << v;
        if (v < -12.5) {
            ASSERT_NEAR(gelu[i], exact, 1e-6 * std::abs(exact) + 1e-35) << v;
        }
        const double slope = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
        const double by_tanh = v / (1 + std::exp(-2 * slope));
        // The relative error of the exponent's argument, of up to four roundings, is one of the result's logarithm.
        if (!std::isnan(v)) {
            ASSERT_NEAR(gelu_tanh[i], by_tanh, (6 + 8 * std::abs(slope)) * 0x1p-24 * std::abs(by_tanh) + 1e-36) << v;
        }
        ASSERT_LE(ulps(relu[i], std::isnan(v) ? v : std::max(v, 0.0)), 0) << v;
    }
}

TEST_P(VectorKernelsOf, GatedActivationTakesAnyLengthInPlace) {
    std::mt19937 random(3);
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        for (const size_t n : kSizes) {
            const Floats gate = random_floats(random, n), up = random_floats(random, n);
            const Floats whole = gated(activation, gate, up);
            const Floats function = gated(activation, gate, Floats(n, 1.0f));
            for (size_t i = 0; i < n; ++i) ASSERT_EQ(whole[i], function[i] * up[i]);
            Floats in_place = gate;
            k_->gated_activation(static_cast<uint8_t>(activation), in_place.data(), up.data(), n, in_place.data());
            EXPECT_TRUE(same_bits(in_place, whole));
        }
    }
}

TEST_P(VectorKernelsOf, WeightedSum) {
    std::mt19937 random(4);
    for (const size_t n : kSizes) {
        for (const size_t count : {1u, 2u, 8u}) {
            const size_t stride = n + 3;
            const Floats rows = random_floats(random, count * stride), weights = random_floats(random, count);
            const Floats residual = random_floats(random, n);
            for (const bool with : {false, true}) {
                Floats out(n + 1, 7.0f);
                k_->weighted_sum(rows.data(), stride, weights.data(), count, with ? residual.data() : nullptr, n,
                                 out.data());
                EXPECT_EQ(out[n], 7.0f);
                for (size_t i = 0; i < n; ++i) {
                    float expected = with ? residual[i] : 0.0f;
                    for (size_t r = 0; r < count; ++r) expected = std::fma(weights[r], rows[r * stride + i], expected);
                    ASSERT_EQ(out[i], expected);
                }
            }
        }
    }
}

TEST_P(VectorKernelsOf, Rope) {
    std::mt19937 random(5);
    for (const bool neox : {false, true}) {
        for (const size_t dims : {2u, 6u, 16u, 20u, 32u, 34u, 64u, 96u, 128u}) {
            for (const size_t beyond : {0u, 5u}) {
                const size_t heads = 3, head_size = dims + beyond, half = dims / 2;
                const Floats x = random_floats(random, heads * head_size + 1);
                Floats cos(half), sin(half), out = x;
                for (size_t i = 0; i < half; ++i) {
                    cos[i] = std::cos(0.37f * static_cast<float>(i + 1));
                    sin[i] = std::sin(0.37f * static_cast<float>(i + 1));
                }
                k_->rope(out.data(), heads, head_size, dims, neox, cos.data(), sin.data());
                Floats expected = x;
                for (size_t h = 0; h < heads; ++h) {
                    for (size_t i = 0; i < half; ++i) {
                        const size_t ia = h * head_size + (neox ? i : 2 * i), ib = ia + (neox ? half : 1);
                        expected[ia] = std::fma(x[ia], cos[i], -(x[ib] * sin[i]));
                        expected[ib] = std::fma(x[ib], cos[i], x[ia] * sin[i]);
                    }
                }
                EXPECT_TRUE(same_bits(out, expected)) << (neox ? "neox " : "normal ") << dims;
            }
        }
    }
}

TEST_P(VectorKernelsOf, Softmax) {
    std::mt19937 random(6);
    for (const size_t n : kSizes) {
        for (const float deviation : {1.0f, 30.0f, 1e30f}) {
            Floats x = random_floats(random, n, deviation);
            for (float& v : x) v -= deviation;  // also rows without a positive number
            Floats out = x;
            out.push_back(7.0f);
            k_->softmax(out.data(), n);
            EXPECT_EQ(out[n], 7.0f);
            const double largest = *std::max_element(x.begin(), x.end());
            double sum = 0;
            for (const float v : x) sum += std::exp(v - largest);
            for (size_t i = 0; i < n; ++i) {
                const double exact = std::exp(x[i] - largest) / sum;
                const double depth = std::min(100.0, largest - x[i]);
                ASSERT_NEAR(out[i], exact, (static_cast<double>(n) / 16 + 8 + depth) * 0x1p-24 * exact + 2e-38);
            }
        }
    }
    Floats huge = {3.4e38f, -3.4e38f, 3.4e38f};
    k_->softmax(huge.data(), huge.size());
    EXPECT_EQ(huge, (Floats{0.5f, 0.0f, 0.5f}));
}

Floats hard_halves(std::mt19937& random) {
    Floats x = random_floats(random, 4000);
    for (int e = -40; e <= 20; ++e) {
        for (const float m : {1.0f, 1.5f, 1.00048828125f, 1.0009765625f, 1.00146484375f, 1.9999999f}) {
            x.insert(x.end(), {std::ldexp(m, e), -std::ldexp(m, e)});
        }
    }
    x.insert(x.end(),
             {0.0f, -0.0f, 65504.0f, 65519.99f, 65520.0f, 70000.0f, -1e30f, kInf, -kInf, kNan, 3.4e38f, 1e-45f});
    return x;
}

KvRows rows_of(DType dtype) {
    return KvRows::of({0, 1, 1, 1}, dtype);
}

TEST_P(VectorKernelsOf, StoresHalves) {
    std::mt19937 random(7);
    const Floats x = hard_halves(random);
    std::vector<half_t> halves(x.size());
    std::vector<bf16_t> brains(x.size());
    Floats floats(x.size());
    k_->store_kv(rows_of(DType::F16), x.data(), x.size(), halves.data());
    k_->store_kv(rows_of(DType::BF16), x.data(), x.size(), brains.data());
    k_->store_kv(rows_of(DType::F32), x.data(), x.size(), floats.data());
    EXPECT_TRUE(same_bits(floats, x));
    for (size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) {
            EXPECT_TRUE(std::isnan(to_float(halves[i])) && std::isnan(to_float(brains[i])));
            continue;
        }
        ASSERT_EQ(halves[i].bits, to_half(std::clamp(x[i], -65504.0f, 65504.0f)).bits) << x[i];
        ASSERT_EQ(brains[i].bits, to_bf16(std::clamp(x[i], -0x1.fep127f, 0x1.fep127f)).bits) << x[i];
    }
}

TEST_P(VectorKernelsOf, StoresNothingBeyondARow) {
    std::mt19937 random(8);
    for (const size_t n : kSizes) {
        const Floats x = random_floats(random, n);
        for (const DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0}) {
            const size_t block = dtype_info(dtype).block_elements;
            const size_t bytes = row_bytes(dtype, (n + block - 1) / block * block);
            std::vector<uint8_t> row(bytes + 64, 0xab);
            k_->store_kv(rows_of(dtype), x.data(), n, row.data());
            for (size_t i = bytes; i < row.size(); ++i) ASSERT_EQ(row[i], 0xab) << dtype_info(dtype).name << " " << n;
        }
    }
}

TEST_P(VectorKernelsOf, StoresQ8Blocks) {
    std::mt19937 random(9);
    for (const size_t n : kSizes) {
        for (const float deviation : {1.0f, 1e-6f, 1e-12f, 3e-44f, 1e6f, 1e38f}) {
            const Floats x = random_floats(random, n, deviation);
            std::vector<BlockQ8_0> row((n + 31) / 32);
            k_->store_kv(rows_of(DType::Q8_0), x.data(), n, row.data());
            for (size_t b = 0; b < row.size(); ++b) {
                float largest = 0;
                for (size_t i = 32 * b; i < std::min(n, 32 * b + 32); ++i) largest = std::max(largest, std::abs(x[i]));
                const float d = std::min(65504.0f, largest / 127.0f);
                ASSERT_EQ(row[b].d.bits, to_half(d).bits);
                for (size_t i = 0; i < 32; ++i) {
                    const float v = 32 * b + i < n ? x[32 * b + i] : 0.0f;
                    const float scaled = d < 0x1p-30f ? 0.0f : v * (1.0f / d);
                    const float quant = std::clamp(std::nearbyint(scaled), -127.0f, 127.0f);
                    ASSERT_EQ(static_cast<float>(row[b].qs[i]), quant) << v << " of " << d;
                }
            }
        }
    }
    Floats x(64, 1.0f);
    x[40] = kNan;
    BlockQ8_0 row[2];
    k_->store_kv(rows_of(DType::Q8_0), x.data(), x.size(), row);
    EXPECT_EQ(row[0].qs[31], 127);
    EXPECT_TRUE(std::isnan(to_float(row[1].d)));
    x[40] = -kInf;
    k_->store_kv(rows_of(DType::Q8_0), x.data(), x.size(), row);
    EXPECT_EQ(to_float(row[1].d), 65504.0f);
    EXPECT_EQ(row[1].qs[8], -127);
}

// Rows of all types, of odd values too, against the definition.
TEST_P(VectorKernelsOf, StoresWhatHostRowsAre) {
    std::mt19937 random(19);
    for (const uint32_t n :
         {1u, 2u, 3u, 16u, 20u, 31u, 32u, 33u, 40u, 64u, 80u, 96u, 127u, 128u, 192u, 256u, 500u, 1056u}) {
        for (const DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0}) {
            const KvLayout layout = KvLayout::of({0, 1, n, 1}, dtype);
            for (const float deviation : {1.0f, 1e-6f, 3e-44f, 1e6f, 1e37f, kNan, kInf}) {
                Floats x = random_floats(random, n, std::isfinite(deviation) ? deviation : 1.0f);
                if (!std::isfinite(deviation)) x[random() % n] = deviation;
                if (random() % 2 == 0) x[random() % n] = -x[random() % n];
                std::vector<std::byte> ours(layout.key_rows.row_bytes), wanted = ours;
                k_->store_kv(layout.key_rows, x.data(), n, ours.data());
                write_kv_row(layout, KvSide::keys, x.data(), wanted.data());
                if (!std::isfinite(deviation) && !dtype_info(dtype).quantised) continue;  // the bits of a NaN are free
                ASSERT_EQ(ours, wanted) << dtype_info(dtype).name << " " << n << " " << deviation;
            }
        }
    }
}

// Every kernel, on random rows and on odd values, against the portable table.
TEST_P(VectorKernelsOf, IsThePortableOneBitForBit) {
    if (k_ == &vector_portable()) GTEST_SKIP() << "the others are compared with this one";
    std::mt19937 random(10);
    const VectorKernels& p = vector_portable();
    for (int round = 0; round < 40; ++round) {
        const size_t n = 1 + random() % 700;
        const Floats x = random_floats(random, n, std::ldexp(1.0f, static_cast<int>(random() % 40) - 20));
        const Floats y = random_floats(random, n), z = random_floats(random, n);
        const auto same = [&](const auto& call, const char* name) {
            Floats ours = x, theirs = x;
            call(*k_, ours.data());
            call(p, theirs.data());
            ASSERT_TRUE(same_bits(ours, theirs)) << name << " " << n;
        };
        same([&](const auto& k, float* a) { k.rms_norm(a, y.data(), z.data(), 1e-6f, n, a); }, "rms_norm");
        same([&](const auto& k, float* a) { k.rms_norm(a, y.data(), nullptr, 1e-6f, n, a); }, "rms_norm");
        same([&](const auto& k, float* a) { k.add(a, y.data(), n, a); }, "add");
        same([&](const auto& k, float* a) { k.scale(a, 1.7f, n, a); }, "scale");
        same([&](const auto& k, float* a) { k.softcap(a, 5.0f, n, a); }, "softcap");
        for (uint8_t f = 0; f < 4; ++f) {
            same([&](const auto& k, float* a) { k.gated_activation(f, a, y.data(), n, a); }, "gated_activation");
        }
        same([&](const auto& k, float* a) { k.weighted_sum(y.data(), 0, z.data(), 1, a, n, a); }, "weighted_sum");
        same([&](const auto& k, float* a) { k.rope(a, 1, n, n / 2 * 2, round % 2 == 0, y.data(), z.data()); }, "rope");
        same([&](const auto& k, float* a) { k.softmax(a, n); }, "softmax");
        for (const DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0}) {
            std::vector<uint8_t> ours(4 * n + 64), theirs = ours;
            k_->store_kv(rows_of(dtype), x.data(), n, ours.data());
            p.store_kv(rows_of(dtype), x.data(), n, theirs.data());
            ASSERT_EQ(ours, theirs) << dtype_info(dtype).name;
        }
    }
}

// Finite bit patterns of every exponent, and those at which the functions change their formula.
TEST_P(VectorKernelsOf, FunctionsAreThePortableOnesBitForBit) {
    if (k_ == &vector_portable()) GTEST_SKIP() << "the others are compared with this one";
    std::mt19937 random(11);
    Floats x;
    for (int i = 0; i < 60000; ++i) {
        const float v = std::bit_cast<float>(static_cast<uint32_t>(random()));
        if (!std::isnan(v)) x.push_back(v);
    }
    for (const float edge : {0.6f, 10.0f, 20.0f, 87.33654f, 88.72283f, 103.0f, 0x1p-126f, 0x1p-149f, 0.0f, kInf}) {
        x.insert(x.end(), {edge, -edge, std::nextafter(edge, 0.0f), -std::nextafter(edge, 0.0f)});
    }
    const Floats ones(x.size(), 1.0f);
    for (uint8_t f = 0; f < 5; ++f) {
        Floats ours(x.size()), theirs(x.size());
        for (const auto& [k, out] : {std::pair(k_, &ours), std::pair(&vector_portable(), &theirs)}) {
            if (f < 4) {
                k->gated_activation(f, x.data(), ones.data(), x.size(), out->data());
            } else {
                k->softcap(x.data(), 1.0f, x.size(), out->data());
            }
        }
        EXPECT_TRUE(same_bits(ours, theirs)) << static_cast<int>(f);
    }
}

// The portable fused multiply-add, where the processor has none, against the library's.
TEST(VectorKernels, PortableFusedIsFused) {
    std::mt19937 random(12);
    const auto any = [&random] { return std::bit_cast<float>(static_cast<uint32_t>(random())); };
    for (int i = 0; i < 200000; ++i) {
        float a = any(), b = any(), c = any();
        if (i % 2 == 0) c = std::nextafter(-a * b, static_cast<float>(static_cast<int>(random() % 3)) - 1.0f);
        if (i % 8 == 1) b = 1.0f + std::ldexp(1.0f, -static_cast<int>(random() % 24));
        if (i % 8 == 3) a = std::ldexp(a, -100);
        const float expected = std::fma(a, b, c);
        float got = 0;
        vector_portable().weighted_sum(&b, 0, &a, 1, &c, 1, &got);
        if (std::isnan(expected)) {
            ASSERT_TRUE(std::isnan(got));
        } else {
            ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(expected)) << a << " " << b << " " << c;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Isa, VectorKernelsOf, ::testing::Values("portable", "avx2", "avx512"),
                         [](const auto& isa) { return std::string(isa.param); });

}  // namespace
}  // namespace metallic::cpu
