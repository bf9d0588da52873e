#include "backend/kv_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "backend/kv_types.h"
#include "core/dequantise.h"
#include "core/error.h"
#include "reference_forward.h"

namespace metallic::testing {
namespace {

constexpr DType kTypes[] = {DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0};
constexpr uint32_t kHeadSizes[] = {1, 2, 3, 16, 20, 32, 47, 64, 80, 96, 128, 192, 256, 1000, 1056};

std::vector<float> random_row(std::mt19937& random, uint32_t n, float deviation = 1.0f) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<float> x(n);
    for (float& v : x) v = normal(random);
    return x;
}

std::vector<float> through(const KvLayout& layout, KvSide side, const std::vector<float>& x) {
    std::vector<std::byte> row(layout.rows(side).row_bytes, std::byte{0xff});
    write_kv_row(layout, side, x.data(), row.data());
    std::vector<float> out(x.size());
    read_kv_row(layout, side, row.data(), out.data());
    return out;
}

TEST(KvRows, FourBitsAreRotatedUpToWhatBackendsHold) {
    for (const DType dtype : kTypes) {
        EXPECT_EQ(KvRows::of({0, 1, kMostRotatedHead, 1}, dtype).rotated, dtype == DType::Q4_0);
        EXPECT_FALSE(KvRows::of({0, 1, kMostRotatedHead + 1, 1}, dtype).rotated);
    }
}

TEST(KvRows, LayoutsAreDenseAndOrdered) {
    for (const DType keys : kTypes) {
        for (const DType values : kTypes) {
            for (const uint32_t head_size : kHeadSizes) {
                const KvLayout layout = KvLayout::of({0, 3, head_size, 2}, {keys, values});
                uint64_t at = 0;
                for (uint32_t layer = 0; layer < 2; ++layer) {
                    for (const KvSide side : {KvSide::keys, KvSide::values}) {
                        for (uint32_t head = 0; head < 3; ++head) {
                            EXPECT_EQ(layout.at(side, layer, head), at);
                            EXPECT_EQ(at % 16, 0u) << "kernels read by sixteen bytes";
                            at += uint64_t{layout.rows(side).row_bytes} * kPageTokens;
                        }
                    }
                }
                EXPECT_EQ(layout.page_bytes, at);
            }
        }
    }
}

// By the matrix, in double precision; and twice is as before.
TEST(KvRows, RotationIsTheHadamardTransformOfRuns) {
    std::mt19937 random(1);
    for (const uint32_t n : kHeadSizes) {
        const std::vector<float> x = random_row(random, n);
        std::vector<float> y = x;
        rotate_kv_row(y);
        const std::vector<double> wanted = detail::hadamard({x.begin(), x.end()});
        for (uint32_t i = 0; i < n; ++i) ASSERT_NEAR(y[i], wanted[i], 2e-6) << n << " " << i;
        rotate_kv_row(y);
        for (uint32_t i = 0; i < n; ++i) ASSERT_NEAR(y[i], x[i], 4e-6) << n << " " << i;
    }
}

// The error of an element is at most half a step of its block's scale, and the scale's own rounding; of rotated rows,
// the length of the error is that of such elements.
TEST(KvRows, RowsComeBackToWithinAStep) {
    std::mt19937 random(2);
    for (const uint32_t n : kHeadSizes) {
        for (const float deviation : {1.0f, 1e-4f, 300.0f}) {
            const std::vector<float> x = random_row(random, n, deviation);
            float most = 0;
            double squares = 0;
            for (const float v : x) {
                most = std::max(most, std::abs(v));
                squares += static_cast<double>(v) * static_cast<double>(v);
            }
            const double norm = std::sqrt(squares);
            for (const DType dtype : kTypes) {
                const std::vector<float> y = through(KvLayout::of({0, 1, n, 1}, dtype), KvSide::values, x);
                double error = 0;
                for (uint32_t i = 0; i < n; ++i) {
                    error += std::pow(static_cast<double>(y[i]) - static_cast<double>(x[i]), 2);
                }
                error = std::sqrt(error / n);
                const double step = dtype == DType::Q8_0   ? most / 127.0
                                    : dtype == DType::Q4_0 ? norm / 8.0  // also for what lies beyond 7 steps
                                    : dtype == DType::F16  ? most * 0x1p-10
                                    : dtype == DType::BF16 ? most * 0x1p-7
                                                           : 0;
                const double rounding = dtype == DType::F32 ? 1e-7 : 128 * 0x1p-25;  // of the smallest scales
                ASSERT_LE(error, step * 0.6 + rounding) << dtype_info(dtype).name << " " << n;
                if (dtype != DType::F32) continue;
                ASSERT_EQ(x, y);
            }
        }
    }
}

// Blocks are GGUF's: what they hold is what the reader of model files finds in them, rotated for Q4_0.
TEST(KvRows, BlocksAreThoseOfTheFormat) {
    std::mt19937 random(3);
    for (const DType dtype : {DType::Q8_0, DType::Q4_0}) {
        const KvLayout layout = KvLayout::of({0, 1, 96, 1}, dtype);
        const std::vector<float> x = random_row(random, 96);
        std::vector<std::byte> row(layout.key_rows.row_bytes);
        write_kv_row(layout, KvSide::keys, x.data(), row.data());
        std::vector<float> stored(96), read(96);
        dequantise_row(dtype, row.data(), 96, stored.data());
        if (layout.key_rows.rotated) rotate_kv_row(stored);
        read_kv_row(layout, KvSide::keys, row.data(), read.data());
        EXPECT_EQ(stored, read);
    }
}

TEST(KvRows, ScoresOfRotatedRowsAreThoseOfTheRows) {
    std::mt19937 random(4);
    for (const uint32_t n : kHeadSizes) {
        std::vector<float> q = random_row(random, n), k = random_row(random, n);
        double plain = 0, turned = 0;
        for (uint32_t i = 0; i < n; ++i) plain += static_cast<double>(q[i]) * static_cast<double>(k[i]);
        rotate_kv_row(q);
        rotate_kv_row(k);
        for (uint32_t i = 0; i < n; ++i) turned += static_cast<double>(q[i]) * static_cast<double>(k[i]);
        EXPECT_NEAR(plain, turned, 1e-6 * n + 1e-6);
    }
}

// An outlier channel takes the steps of its whole block: what the rotation is for.
TEST(KvRows, RotationTamesOutliers) {
    std::mt19937 random(5);
    KvLayout turned = KvLayout::of({0, 1, 128, 1}, DType::Q4_0), plain = turned;
    plain.key_rows.rotated = false;
    double turned_error = 0, plain_error = 0;
    for (int i = 0; i < 50; ++i) {
        std::vector<float> x = random_row(random, 128);
        for (uint32_t at = 5; at < 128; at += 32) x[at] = 20;
        const std::vector<float> a = through(turned, KvSide::keys, x), b = through(plain, KvSide::keys, x);
        for (uint32_t d = 0; d < 128; ++d) {
            turned_error += std::pow(static_cast<double>(a[d] - x[d]), 2);
            plain_error += std::pow(static_cast<double>(b[d] - x[d]), 2);
        }
    }
    EXPECT_LT(turned_error, plain_error / 4);
}

TEST(KvRows, NaNsStayInTheirBlock) {
    const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    for (const DType dtype : kTypes) {
        const KvLayout layout = KvLayout::of({0, 1, 70, 1}, dtype);
        std::vector<float> x(70, 1.0f);
        x[40] = nan;
        const std::vector<float> y = through(layout, KvSide::keys, x);
        for (uint32_t i = 0; i < 70; ++i) {
            const bool same_block = dtype_info(dtype).quantised ? i / 32 == 1 : i == 40;
            EXPECT_EQ(std::isnan(y[i]), same_block) << dtype_info(dtype).name << " " << i;
        }
        x[40] = -infinity;
        const std::vector<float> z = through(layout, KvSide::keys, x);
        if (dtype == DType::F32 || dtype == DType::Q4_0) continue;
        EXPECT_TRUE(std::isfinite(z[40]) && z[40] < -1e4f);
    }
}

TEST(KvTypes, TextsThatMeanSomething) {
    const auto text = [](const char* from) { return KvTypes::parse(from).text(); };
    EXPECT_EQ(text("f16"), "f16");
    EXPECT_EQ(text("Q8_0"), "q8_0");
    EXPECT_EQ(text("k=q8_0"), "k=q8_0,v=f16");
    EXPECT_EQ(text("v=q4_0,k=q4_0"), "q4_0");
    EXPECT_EQ(text("f32,v=q4_0"), "k=f32,v=q4_0");
    EXPECT_EQ(text("window:q8_0"), "full:f16,window:q8_0");
    EXPECT_EQ(text("k=bf16,window:f16"), "full:k=bf16,full:v=f16,window:f16");
    EXPECT_EQ(text("window:q8_0,full:k=q8_0,full:v=q4_0"), "full:k=q8_0,full:v=q4_0,window:q8_0");
    for (const char* from : {"q8_0", "k=q8_0,v=q4_0", "window:v=q4_0", "f32,full:k=q4_0,window:v=bf16"}) {
        EXPECT_EQ(KvTypes::parse(KvTypes::parse(from).text()), KvTypes::parse(from)) << from;
    }
    const KvTypes types = KvTypes::parse("q8_0,window:k=f32");
    EXPECT_EQ(types.of({0, 1, 64, 1}), KvPair(DType::Q8_0));
    EXPECT_EQ(types.of({512, 1, 64, 1}), KvPair(DType::F32, DType::Q8_0));
}

TEST(KvTypes, EverythingElseIsRefusedWithWhatIsAllowed) {
    const std::string zero("f16\0", 4);
    for (const std::string& text : {std::string(),
                                    std::string("q2"),
                                    std::string("q4_k"),
                                    std::string("f16,"),
                                    std::string(",f16"),
                                    std::string("f16,,f16"),
                                    std::string("k="),
                                    std::string("=f16"),
                                    std::string("k=v=f16"),
                                    std::string("k:f16"),
                                    std::string("full=f16"),
                                    std::string("full:"),
                                    std::string("full:window:f16"),
                                    std::string("k=f16;v=f16"),
                                    std::string("f16 "),
                                    std::string("k = f16"),
                                    std::string("f16,f16"),
                                    std::string("k=f16,k=f16"),
                                    std::string("v=q4_0,q8_0"),
                                    std::string("window:f16,full:f16,k=f16,v=f16"),
                                    std::string("\xff\xfe"),
                                    zero,
                                    std::string(1000000, 'f'),
                                    std::string(199, ',')}) {
        try {
            KvTypes::parse(text);
            ADD_FAILURE() << text.substr(0, 50);
        } catch (const RequestError& error) {
            const std::string what = error.what();
            EXPECT_NE(what.find("q4_0"), std::string::npos) << what;
            EXPECT_LT(what.size(), 400u);
            for (const char c : what) EXPECT_TRUE(c >= ' ' && c <= '~');
        }
    }
}

}  // namespace
}  // namespace metallic::testing
