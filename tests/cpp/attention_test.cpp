#include <gtest/gtest.h>

#include <limits>

#include "attention_test_support.h"

namespace metallic::cpu {
namespace {

using namespace testing;

constexpr DType kDTypes[] = {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0};
constexpr uint32_t kHeadSizes[] = {64, 128, 80, 20, 33, 1, 256, 96, 192, 512, 16, 47, 1056};

Problem random_problem(std::mt19937& random, int i) {
    const auto upto = [&random](uint32_t n) { return static_cast<uint32_t>(random() % n); };
    Problem p;
    p.types = {kDTypes[i % 5], kDTypes[i / 5 % 5]};
    p.head_size = kHeadSizes[upto(std::size(kHeadSizes))];
    p.group_heads = 1 + upto(9);
    p.rows = upto(3) == 0 ? 1 : 1 + upto(40);
    p.tokens = p.rows + (upto(4) == 0 ? 0 : upto(300));
    if (upto(3) == 0) p.window = 1 + upto(90);
    if (upto(4) == 0) p.softcap = 1.0f + static_cast<float>(upto(30));
    p.sinks = upto(3) == 0;
    p.layers = 1 + upto(3);
    p.layer = upto(p.layers);
    p.kv_heads = 1 + upto(3);
    p.kv_head = upto(p.kv_heads);
    p.deviation = upto(3) == 0 ? 3.0f : 1.0f;
    return p;
}

std::vector<Problem> long_problems() {
    std::vector<Problem> problems;
    Problem p;
    p.tokens = 2500;
    p.group_heads = 3;
    problems.push_back(p);
    p.rows = 17;
    p.head_size = 80;
    p.window = 1100;
    p.sinks = true;
    problems.push_back(p);
    p.tokens = 1030;
    p.rows = 40;
    p.window = 5;
    p.types = DType::Q8_0;
    problems.push_back(p);
    p.tokens = 1024;
    p.rows = 1;
    p.window = 0;
    p.softcap = 20;
    problems.push_back(p);
    p.types = {DType::Q4_0, DType::Q8_0};
    p.head_size = 128;
    p.group_heads = 4;
    problems.push_back(p);
    p.types = {DType::Q8_0, DType::Q4_0};
    p.rows = 20;
    problems.push_back(p);
    return problems;
}

class Attention : public ::testing::TestWithParam<const char*> {
  protected:
    void SetUp() override {
        for (const Isa& isa : supported_isas()) {
            if (std::string(isa.name) == GetParam()) kernels_ = isa.vector;
        }
        if (kernels_ == nullptr) GTEST_SKIP() << "this processor or build has no " << GetParam();
    }
    void check(const Cache& cache, const std::vector<float>& out) {
        for (uint32_t row = 0; row < cache.p.rows; ++row) {
            for (uint32_t head = 0; head < cache.p.group_heads; ++head) {
                const Reference r = reference(cache, row, head);
                const float* at = out.data() + row * cache.out_stride() + size_t{head} * cache.p.head_size;
                for (uint32_t d = 0; d < cache.p.head_size; ++d) {
                    ASSERT_NEAR(at[d], r.out[d], r.tolerance[d]) << describe(cache.p) << " row " << row << " dim " << d;
                }
            }
            ASSERT_EQ(out[(row + 1) * cache.out_stride() - 1], -12345.0f) << "wrote past a row";
        }
    }
    const VectorKernels* kernels_ = nullptr;
};

TEST_P(Attention, IsTheDefinition) {
    std::mt19937 random(1);
    for (int i = 0; i < 120; ++i) {
        const Cache cache(random_problem(random, i), random);
        ASSERT_NO_FATAL_FAILURE(check(cache, cache.attend(*kernels_)));
    }
}

TEST_P(Attention, IsTheDefinitionOverSegments) {
    std::mt19937 random(2);
    for (const Problem& p : long_problems()) {
        const Cache cache(p, random);
        ASSERT_NO_FATAL_FAILURE(check(cache, cache.attend(*kernels_)));
    }
}

TEST_P(Attention, DoesNotDependOnTheTiles) {
    std::mt19937 random(3);
    for (int i = 0; i < 60; ++i) {
        const Cache cache(random_problem(random, i), random);
        const auto whole = cache.attend(*kernels_);
        for (const uint32_t rows : {1u, 2u, 5u, 16u, 33u}) {
            ASSERT_TRUE(same_bits(whole, cache.attend(*kernels_, rows, cache.p.group_heads)))
                << describe(cache.p) << " in tiles of " << rows;
        }
        ASSERT_TRUE(same_bits(whole, cache.attend(*kernels_, cache.p.rows, 1))) << describe(cache.p) << " by heads";
        ASSERT_TRUE(same_bits(whole, cache.attend_segments(*kernels_))) << describe(cache.p) << " by segments";
    }
}

TEST_P(Attention, DoesNotDependOnTheTilesOverSegments) {
    std::mt19937 random(4);
    for (const Problem& p : long_problems()) {
        const Cache cache(p, random);
        const auto whole = cache.attend(*kernels_);
        ASSERT_TRUE(same_bits(whole, cache.attend(*kernels_, 1, 1))) << describe(p);
        ASSERT_TRUE(same_bits(whole, cache.attend(*kernels_, 7, 2))) << describe(p);
        ASSERT_TRUE(same_bits(whole, cache.attend_segments(*kernels_))) << describe(p);
    }
}

TEST_P(Attention, IsThePortableOneBitForBit) {
    if (kernels_ == &vector_portable()) GTEST_SKIP() << "the others are compared with this one";
    std::mt19937 random(5);
    for (int i = 0; i < 80; ++i) {
        const Cache cache(random_problem(random, i), random);
        ASSERT_TRUE(same_bits(cache.attend(vector_portable()), cache.attend(*kernels_))) << describe(cache.p);
    }
    for (const Problem& p : long_problems()) {
        const Cache cache(p, random);
        ASSERT_TRUE(same_bits(cache.attend(vector_portable()), cache.attend(*kernels_))) << describe(p);
    }
}

// A value that one row sees and another does not reaches only the first, even when it is no number.
TEST_P(Attention, KeepsNaNsFromThoseWhoDoNotSeeThem) {
    std::mt19937 random(6);
    for (const uint32_t rows : {6u, 40u}) {
        Problem p;
        p.types = DType::F32;
        p.rows = rows;
        p.tokens = rows + 20;
        p.group_heads = 2;
        p.window = 9;
        const Cache cache(p, random);
        const auto sound = cache.attend(*kernels_);
        const uint32_t bad_row = rows / 2;
        const float nan = std::numeric_limits<float>::quiet_NaN();
        std::memcpy(cache.row(20 + bad_row, KvSide::values), &nan, sizeof nan);
        const auto poisoned = cache.attend(*kernels_);
        for (uint32_t row = 0; row < rows; ++row) {
            const bool sees = row >= bad_row && row < bad_row + p.window;
            const size_t at = row * cache.out_stride();
            EXPECT_EQ(std::isnan(poisoned[at]), sees) << row;
            EXPECT_EQ(std::memcmp(&poisoned[at + 1], &sound[at + 1], sizeof(float) * 63), 0) << row;
        }
    }
}

TEST_P(Attention, SurvivesScoresFarApart) {
    std::mt19937 random(7);
    for (const uint32_t rows : {1u, 24u}) {
        Problem p;
        p.types = DType::F32;
        p.rows = rows;
        p.tokens = 200;
        p.deviation = 40.0f;
        const Cache cache(p, random);
        for (const float x : cache.attend(*kernels_)) ASSERT_TRUE(std::isfinite(x));
    }
}

TEST_P(Attention, NeedsNoMoreScratchForLess) {
    const auto bytes = [this](uint32_t rows, uint32_t heads) {
        return kernels_->attention_scratch_bytes(rows, heads, 64);
    };
    for (uint32_t n = 2; n < 80; ++n) {
        EXPECT_GE(bytes(n, 1), bytes(n - 1, 1)) << n;
        EXPECT_GE(bytes(3, n), bytes(3, n - 1)) << n;
    }
}

INSTANTIATE_TEST_SUITE_P(Isa, Attention, ::testing::Values("portable", "avx2", "avx512"),
                         [](const auto& isa) { return std::string(isa.param); });

}  // namespace
}  // namespace metallic::cpu
