#include "backend/cpu/isa/matmul_kernels.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <string>
#include <string_view>

#include "backend/cpu/isa/matmul_activation.h"
#include "backend/cpu/isa/select.h"
#include "core/dequantise.h"
#include "matmul_test_data.h"

namespace metallic::cpu {
namespace {

using testing::AlignedBytes;
using testing::kWeightTypes;
using testing::random_floats;
using testing::random_weights;
using testing::Scales;

// Null where this processor cannot run them.
const MatmulKernels* find_kernels(std::string_view name) {
    for (const Isa& isa : supported_isas()) {
        if (name == isa.name) return isa.matmul;
    }
    return nullptr;
}

// A product with its operands. The weights end where their allocation ends.
struct Problem {
    Problem(DType dtype, size_t weight_rows, size_t elements, size_t activation_rows, std::mt19937& random,
            Scales scales = Scales::Ordinary)
        : type(dtype),
          rows(weight_rows),
          k(elements),
          m_rows(activation_rows),
          w_stride(row_bytes(dtype, elements)),
          a_stride(activation_row_bytes(activation_format(dtype), elements)),
          w(random_weights(dtype, weight_rows, elements, random, scales)),
          x(random_floats(activation_rows * elements, random)),
          a(a_stride * activation_rows) {
        quantise(matmul_portable(), a);
    }

    void quantise(const MatmulKernels& kernels, AlignedBytes& out) const {
        for (size_t m = 0; m < m_rows; ++m) {
            kernels.quantise(activation_format(type), x.data() + m * k, k, out.data() + m * a_stride);
        }
    }

    // Rows [n0, n1) times activation rows [m0, m1) into the right part of `out` ([m_rows, rows]).
    void multiply(const MatmulKernels& kernels, size_t n0, size_t n1, size_t m0, size_t m1, std::vector<float>& out) {
        AlignedBytes scratch(matmul_scratch_bytes(k));
        kernels.multiply(type, w.data() + n0 * w_stride, w_stride, n1 - n0, k, a.data() + m0 * a_stride, a_stride,
                         m1 - m0, out.data() + m0 * rows + n0, rows, scratch.data());
    }

    std::vector<float> multiply(const MatmulKernels& kernels) {
        std::vector<float> out(m_rows * rows, -1.0f);
        multiply(kernels, 0, rows, 0, m_rows, out);
        return out;
    }

    DType type;
    size_t rows, k, m_rows, w_stride, a_stride;
    std::vector<uint8_t> w;
    std::vector<float> x;
    AlignedBytes a;
};

// NaNs count as equal whatever their payload.
::testing::AssertionResult same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
        if (std::isnan(a[i]) && std::isnan(b[i])) continue;
        if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) {
            return ::testing::AssertionFailure()
                   << "element " << i << " of " << a.size() << ": " << a[i] << " and " << b[i];
        }
    }
    return ::testing::AssertionSuccess();
}

size_t random_k(DType type, std::mt19937& random) {
    const size_t block = dtype_info(type).block_elements;
    return block == 1 ? 1 + random() % 300 : block * (1 + random() % 9);
}

class MatmulTest : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
  protected:
    void SetUp() override {
        kernels = find_kernels(std::get<0>(GetParam()));
        type = std::get<1>(GetParam());
        if (kernels == nullptr) GTEST_SKIP() << "this processor has no " << std::get<0>(GetParam());
    }
    const MatmulKernels* kernels = nullptr;
    DType type = DType::F32;
    std::mt19937 random{20240229};
};

TEST_P(MatmulTest, EqualsThePortableKernelsBitForBit) {
    for (int i = 0; i < 60; ++i) {
        const size_t rows = 1 + random() % 35, m_rows = 1 + random() % 33;
        Problem p(type, rows, random_k(type, random), m_rows, random, i % 2 ? Scales::Extreme : Scales::Ordinary);
        EXPECT_TRUE(same_bits(p.multiply(matmul_portable()), p.multiply(*kernels)))
            << rows << " rows, k " << p.k << ", " << m_rows << " activation rows";
    }
}

TEST_P(MatmulTest, LongRowsEqualThePortableKernels) {
    const size_t block = dtype_info(type).block_elements;
    for (const size_t k : {size_t{2048}, size_t{4096} + block}) {
        Problem p(type, 70, k, 13, random);
        EXPECT_TRUE(same_bits(p.multiply(matmul_portable()), p.multiply(*kernels))) << "k " << k;
    }
}

TEST_P(MatmulTest, SplittingTheWorkChangesNoBit) {
    for (int i = 0; i < 20; ++i) {
        Problem p(type, 1 + random() % 150, random_k(type, random), 1 + random() % 40, random);
        const std::vector<float> whole = p.multiply(*kernels);
        std::vector<float> parts(whole.size(), -1.0f);
        for (size_t n = 0; n < p.rows;) {
            const size_t n1 = std::min(p.rows, n + 1 + random() % 64);
            for (size_t m = 0; m < p.m_rows;) {
                const size_t m1 = std::min(p.m_rows, m + 1 + random() % 12);
                p.multiply(*kernels, n, n1, m, m1, parts);
                m = m1;
            }
            n = n1;
        }
        ASSERT_TRUE(same_bits(whole, parts)) << p.rows << " rows, k " << p.k << ", " << p.m_rows << " activation rows";
    }
}

// The largest |minimum| that a weight of this block can have had subtracted or added; see the bound below.
double minimum_bound(DType type, const uint8_t* block) {
    const int at = testing::scale_offsets(type).second;
    if (at < 0) return 0;
    half_t h;
    std::memcpy(&h, block + at, sizeof h);
    const double factor = type == DType::Q2_K ? 15 : type == DType::Q4_K || type == DType::Q5_K ? 63 : 1;
    return factor * std::fabs(to_float(h));
}

// Rounding to a grid of step d = max|x| / 127 moves an activation by at most d / 2 (and a little, as x / d is itself
// rounded), which moves a block's product by at most d / 2 sum |w|. The float chain of n blocks rounds each of its
// terms, and each partial sum, by a relative 2^-24: at most (2 n + 4) 2^-24 times the sum of the magnitudes of the
// terms, which for x = d sc q - m are |d sc q| + |m| <= |w| + 2 |m| for each weight. F32 activations have only the
// second part, with k / 16 fused additions in a lane and 4 in the tree.
double error_bound(const Problem& p, size_t m, size_t n, const std::vector<float>& w) {
    const DTypeInfo& info = dtype_info(p.type);
    const bool quantised = activation_format(p.type) != ActivationFormat::F32;
    const size_t block = quantised ? info.block_elements : p.k;
    double moved = 0, magnitude = 0;
    for (size_t b = 0; b < p.k; b += block) {
        const double minimum =
            minimum_bound(p.type, p.w.data() + n * p.w_stride + b / info.block_elements * info.block_bytes);
        double largest = 0, weights = 0, products = 0;
        for (size_t i = b; i < b + block; ++i) largest = std::max<double>(largest, std::fabs(p.x[m * p.k + i]));
        for (size_t i = b; i < b + block; ++i) {
            weights += std::fabs(w[i]);
            products += (std::fabs(w[i]) + 2 * minimum) * (quantised ? largest : std::fabs(p.x[m * p.k + i]));
        }
        if (quantised) moved += largest / 127 / 2 * 1.001 * weights;
        magnitude += products;
    }
    const double steps = quantised ? 2.0 * static_cast<double>(p.k / block) + 4 : static_cast<double>(p.k) / 16 + 6;
    return moved + steps * 0x1p-24 * magnitude + 1e-30;
}

TEST_P(MatmulTest, StaysWithinTheErrorOfQuantisedActivations) {
    for (int i = 0; i < 12; ++i) {
        Problem p(type, 1 + random() % 20, random_k(type, random), 1 + random() % 9, random);
        const std::vector<float> out = p.multiply(*kernels);
        std::vector<float> w(p.k);
        for (size_t n = 0; n < p.rows; ++n) {
            dequantise_row(type, p.w.data() + n * p.w_stride, p.k, w.data());
            for (size_t m = 0; m < p.m_rows; ++m) {
                double exact = 0;
                for (size_t j = 0; j < p.k; ++j) exact += static_cast<double>(w[j]) * p.x[m * p.k + j];
                ASSERT_NEAR(out[m * p.rows + n], exact, error_bound(p, m, n, w))
                    << "row " << n << ", activation row " << m;
            }
        }
    }
}

// Memory whose last byte is followed by a page that may not be touched.
class GuardedBytes {
  public:
    explicit GuardedBytes(const std::vector<uint8_t>& bytes) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        size_ = (bytes.size() + page - 1) / page * page + page;
        base_ = static_cast<uint8_t*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        mprotect(base_ + size_ - page, page, PROT_NONE);
        uint8_t* start = base_ + size_ - page - bytes.size();
        std::copy(bytes.begin(), bytes.end(), start);
        data_ = start;
    }
    ~GuardedBytes() { munmap(base_, size_); }
    GuardedBytes(const GuardedBytes&) = delete;
    GuardedBytes& operator=(const GuardedBytes&) = delete;
    const uint8_t* data() const { return data_; }

  private:
    uint8_t* base_;
    const uint8_t* data_;
    size_t size_;
};

TEST_P(MatmulTest, ReadsNothingBehindTheLastRow) {
    const size_t block = dtype_info(type).block_elements;
    for (const size_t blocks : {1, 2, 3, 4, 5, 7, 17, 33}) {
        for (const size_t m_rows : {1, 3, 9}) {
            Problem p(type, 19, blocks * block, m_rows, random);
            const GuardedBytes w(p.w);
            AlignedBytes scratch(matmul_scratch_bytes(p.k));
            std::vector<float> out(p.m_rows * p.rows);
            kernels->multiply(type, w.data(), p.w_stride, p.rows, p.k, p.a.data(), p.a_stride, m_rows, out.data(),
                              p.rows, scratch.data());
            EXPECT_TRUE(same_bits(out, p.multiply(matmul_portable())));
        }
    }
}

TEST_P(MatmulTest, WritesNothingOutsideItsPartOfTheOutput) {
    Problem p(type, 21, 2 * dtype_info(type).block_elements, 11, random);
    const size_t stride = p.rows + 5;
    std::vector<float> out(p.m_rows * stride + 16, 12345.0f);
    AlignedBytes scratch(matmul_scratch_bytes(p.k));
    kernels->multiply(type, p.w.data(), p.w_stride, p.rows, p.k, p.a.data(), p.a_stride, p.m_rows, out.data(), stride,
                      scratch.data());
    for (size_t i = 0; i < out.size(); ++i) {
        const bool inside = i % stride < p.rows && i / stride < p.m_rows;
        EXPECT_EQ(out[i] == 12345.0f, !inside) << "element " << i;
    }
}

TEST_P(MatmulTest, TakesRowsThatAreApart) {
    Problem p(type, 18, dtype_info(type).block_elements * 3, 7, random);
    const std::vector<float> expected = p.multiply(*kernels);
    const size_t stride = p.w_stride + 36;
    std::vector<uint8_t> spread(stride * p.rows, 0xff);
    for (size_t n = 0; n < p.rows; ++n)
        std::copy_n(p.w.data() + n * p.w_stride, p.w_stride, spread.data() + n * stride);
    p.w = spread;
    p.w_stride = stride;
    EXPECT_TRUE(same_bits(expected, p.multiply(*kernels)));
}

TEST_P(MatmulTest, RowsWithoutElementsGiveZeros) {
    std::vector<float> out(8 * 9, 7.0f);
    AlignedBytes a(activation_row_bytes(activation_format(type), 0) * 9), scratch(matmul_scratch_bytes(0));
    kernels->multiply(type, a.data(), 0, 8, 0, a.data(), a.size() / 9, 9, out.data(), 8, scratch.data());
    EXPECT_EQ(out, std::vector<float>(8 * 9, 0.0f));
}

TEST_P(MatmulTest, EmptyProductsDoNothing) {
    Problem p(type, 3, dtype_info(type).block_elements, 2, random);
    std::vector<float> out(6, 7.0f);
    p.multiply(*kernels, 0, 0, 0, 2, out);
    p.multiply(*kernels, 0, 3, 0, 0, out);
    EXPECT_EQ(out, std::vector<float>(6, 7.0f));
}

std::string parameter_name(const ::testing::TestParamInfo<std::tuple<std::string, DType>>& info) {
    return std::get<0>(info.param) + "_" + std::string(dtype_info(std::get<1>(info.param)).name);
}

INSTANTIATE_TEST_SUITE_P(All, MatmulTest,
                         ::testing::Combine(::testing::Values("portable", "avx2", "avx512"),
                                            ::testing::ValuesIn(kWeightTypes)),
                         parameter_name);

class QuantiseTest : public ::testing::TestWithParam<std::string> {
  protected:
    void SetUp() override {
        kernels = find_kernels(GetParam());
        if (kernels == nullptr) GTEST_SKIP() << "this processor has no " << GetParam();
    }
    const MatmulKernels* kernels = nullptr;
};

TEST_P(QuantiseTest, EqualsThePortableBytes) {
    std::mt19937 random(7);
    for (const DType type : {DType::F32, DType::Q8_0, DType::Q4_K}) {
        for (int i = 0; i < 30; ++i) {
            const size_t block = dtype_info(type).block_elements;
            const size_t k = block * (1 + random() % 11);
            std::vector<float> x = random_floats(k, random);
            for (float& value : x) value *= std::exp2(static_cast<float>(static_cast<int>(random() % 300) - 150));
            const size_t bytes = activation_row_bytes(activation_format(type), k);
            AlignedBytes a(bytes), b(bytes);
            matmul_portable().quantise(activation_format(type), x.data(), k, a.data());
            kernels->quantise(activation_format(type), x.data(), k, b.data());
            EXPECT_EQ(std::memcmp(a.data(), b.data(), bytes), 0) << dtype_info(type).name << " k " << k;
        }
    }
}

// Of bytes of any kind, so that scales are infinite, NaN and subnormal too.
TEST_P(QuantiseTest, DequantisesToTheSameBits) {
    std::mt19937 random(8);
    for (const DType type : kWeightTypes) {
        for (int i = 0; i < 20; ++i) {
            const size_t k = dtype_info(type).block_elements * (1 + random() % 5);
            std::vector<uint8_t> row(row_bytes(type, k));
            for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
            std::vector<float> wanted(k), found(k + 1, 7.0f);
            dequantise_row(type, row.data(), k, wanted.data());
            kernels->dequantise_row(type, row.data(), k, found.data());
            EXPECT_EQ(found.back(), 7.0f);
            found.pop_back();
            EXPECT_TRUE(same_bits(found, wanted)) << dtype_info(type).name;
        }
    }
}

TEST_P(QuantiseTest, RoundsToTheNearestWithTiesToEven) {
    std::vector<float> x(32, 0.0f);
    const float values[] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 3.4f, 3.6f, -127.0f};
    const int expected[] = {127, 0, 2, 2, 0, -2, -126, 3, 4, -127};
    std::copy(std::begin(values), std::end(values), x.begin());
    AlignedBytes out(activation_row_bytes(ActivationFormat::Q8, 32));
    kernels->quantise(ActivationFormat::Q8, x.data(), 32, out.data());
    const auto& group = *reinterpret_cast<const Q8Group*>(out.data());
    int sum = 0;
    for (int i = 0; i < 10; ++i) EXPECT_EQ(group.q[i], expected[i]) << "element " << i;
    for (const int q : expected) sum += q;
    EXPECT_EQ(group.d[0], 1.0f);
    EXPECT_EQ(group.s[0], static_cast<float>(sum));
    EXPECT_EQ(group.bias[0], -128 * sum);
    EXPECT_EQ(group.d[1], 0.0f);
}

TEST_P(QuantiseTest, SumsOfSuperBlocksAreThoseOfTheirParts) {
    std::mt19937 random(9);
    const std::vector<float> x = random_floats(512, random);
    AlignedBytes out(activation_row_bytes(ActivationFormat::Q8K, 512));
    kernels->quantise(ActivationFormat::Q8K, x.data(), 512, out.data());
    for (int b = 0; b < 2; ++b) {
        const auto& block = reinterpret_cast<const Q8KBlock*>(out.data())[b];
        for (int j = 0; j < 16; ++j) {
            int sum = 0;
            for (int i = 0; i < 16; ++i) sum += block.q[16 * j + i];
            EXPECT_EQ(block.sums16[j], sum);
        }
        for (int j = 0; j < 8; ++j) EXPECT_EQ(block.sums32[j], block.sums16[2 * j] + block.sums16[2 * j + 1]);
        EXPECT_EQ(
            *std::max_element(block.q, block.q + 256, [](int a, int c) { return std::abs(a) < std::abs(c); }) % 127, 0);
    }
}

TEST_P(QuantiseTest, WhatIsNotFiniteGivesNaNAndWhatIsTinyGivesZero) {
    for (const DType type : {DType::Q8_0, DType::Q4_K}) {
        for (const float bad :
             {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN(), 1e-38f}) {
            std::mt19937 random(3);
            Problem p(type, 5, 256, 2, random);
            std::fill_n(p.x.begin(), 256, 0.0f);
            p.x[17] = bad;
            p.quantise(*kernels, p.a);
            const std::vector<float> out = p.multiply(*kernels);
            for (size_t n = 0; n < 5; ++n) {
                EXPECT_EQ(std::isnan(out[n]), bad != 1e-38f);
                EXPECT_TRUE(bad != 1e-38f || out[n] == 0.0f);
                EXPECT_TRUE(std::isfinite(out[5 + n]));
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(All, QuantiseTest, ::testing::Values("portable", "avx2", "avx512"),
                         [](const auto& test) { return test.param; });

TEST(MatmulKernelsTest, ActivationRowsAreAlignedAndLargeEnough) {
    for (const DType type : kWeightTypes) {
        const ActivationFormat format = activation_format(type);
        const size_t block = dtype_info(type).block_elements;
        for (size_t k = block; k < 40 * block; k += block) {
            const size_t bytes = activation_row_bytes(format, k);
            EXPECT_EQ(bytes % 64, 0u);
            const size_t needed = format == ActivationFormat::F32  ? (k + 15) / 16 * 64
                                  : format == ActivationFormat::Q8 ? (k + 127) / 128 * sizeof(Q8Group)
                                                                   : k / 256 * sizeof(Q8KBlock);
            EXPECT_GE(bytes, needed);
        }
    }
}

TEST(MatmulKernelsTest, IntegersAreNoWeights) {
    for (const char* name : {"portable", "avx2", "avx512"}) {
        const MatmulKernels* kernels = find_kernels(name);
        if (kernels == nullptr) continue;
        const int32_t w[4] = {1, 2, 3, 4};
        std::vector<float> out(4, 5.0f);
        AlignedBytes a(activation_row_bytes(ActivationFormat::F32, 2)), scratch(matmul_scratch_bytes(2));
        kernels->multiply(DType::I32, w, 8, 2, 2, a.data(), a.size(), 1, out.data(), 2, scratch.data());
        EXPECT_EQ(out, (std::vector<float>{0.0f, 0.0f, 5.0f, 5.0f}));
    }
}

}  // namespace
}  // namespace metallic::cpu
