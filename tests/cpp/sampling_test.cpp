#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "sampling/candidates.h"
#include "sampling/dry.h"
#include "sampling/history.h"
#include "sampling/logprobs.h"
#include "sampling/random.h"
#include "sampling/sampler.h"
#include "sampling/vector_math.h"

namespace metallic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(size_t n, uint64_t seed, float spread) {
    Random random(seed);
    std::vector<float> logits(n);
    for (float& logit : logits) {
        const double radius = std::sqrt(-2.0 * std::log(random.uniform() + 1e-18));
        logit = spread * static_cast<float>(radius * std::cos(6.283185307179586 * random.uniform()));
    }
    return logits;
}

SamplingParams neutral() {
    SamplingParams params;
    params.temperature = 1.0;
    params.top_k = 0;
    params.top_p = 1.0;
    params.min_p = 0.0;
    return params;
}

std::vector<int32_t> kept(const SamplingParams& params, const std::vector<float>& logits) {
    Sampler sampler(params, static_cast<int32_t>(logits.size()), 1);
    std::vector<int32_t> ids;
    for (const TokenProbability& entry : sampler.distribution(logits)) ids.push_back(entry.token);
    return ids;
}

// Ids by descending logit, lower ids first among equals.
std::vector<int32_t> ranked(const std::vector<float>& logits) {
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
        return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    return ids;
}

TEST(Random, GivesThePublishedSequence) {
    // The output of O'Neill's pcg32-demo for seed 42, stream 54.
    Random random(42, 54);
    for (const uint32_t expected : {0xa15c02b7u, 0x7b47f409u, 0xba1d3330u, 0x83d2f293u, 0xbfa4784bu, 0xcbed606eu}) {
        EXPECT_EQ(random.next(), expected);
    }
}

TEST(Random, UniformStaysBelowOneAndFillsTheRange) {
    Random random(7);
    double sum = 0.0;
    double least = 1.0;
    double greatest = 0.0;
    for (int i = 0; i < 100000; ++i) {
        const double u = random.uniform();
        ASSERT_GE(u, 0.0);
        ASSERT_LT(u, 1.0);
        sum += u;
        least = std::min(least, u);
        greatest = std::max(greatest, u);
    }
    EXPECT_NEAR(sum / 100000, 0.5, 0.005);
    EXPECT_LT(least, 1e-3);
    EXPECT_GT(greatest, 0.999);
}

TEST(VectorMath, ExpIsWithinTwoUnitsOfTheSeventhDigit) {
    for (float x = 0.0f; x > kExpFloor; x -= 0.00137f) {
        const double expected = std::exp(static_cast<double>(x));
        ASSERT_NEAR(static_cast<double>(exp4(splat4(x))[1]) / expected, 1.0, 2e-7) << x;
    }
    EXPECT_EQ(exp4(splat4(0.0f))[0], 1.0f);
    EXPECT_EQ(exp4(splat4(-87.0f))[0], 0.0f);
    EXPECT_EQ(exp4(splat4(-kInfinity))[0], 0.0f);
    EXPECT_EQ(exp4(splat4(-std::numeric_limits<float>::max()))[0], 0.0f);
}

TEST(VectorMath, DescendingKeysOrderAllFloats) {
    const std::vector<float> falling{3e38f, 5.0f, 1e-40f, 0.0f, -1e-40f, -2.0f, -3e38f, -kInfinity};
    for (size_t i = 1; i < falling.size(); ++i) {
        EXPECT_LT(descending_key(falling[i - 1]), descending_key(falling[i])) << falling[i];
    }
    EXPECT_EQ(descending_key(0.0f), descending_key(-0.0f));
}

TEST(TokenCounts, SurvivesGrowthAndDropsZeros) {
    TokenCounts counts;
    for (int32_t token = 0; token < 5000; ++token) counts.at(token * 7).generated = static_cast<uint32_t>(token + 1);
    for (int32_t token = 0; token < 5000; ++token) ASSERT_EQ(counts.at(token * 7).generated, token + 1u);
    const size_t full = counts.entries().size();
    TokenCounts sliding;
    for (int32_t token = 0; token < 100000; ++token) {
        sliding.at(token).recent = 1;
        if (token >= 64) sliding.at(token - 64).recent = 0;
    }
    EXPECT_LE(sliding.entries().size(), 512u);
    EXPECT_GE(full, 10000u);
}

TEST(History, WindowForgetsOldTokens) {
    History history(3, true, true);
    for (const int32_t token : {5, 5, 6}) history.add_prompt(token);
    for (const int32_t token : {7, 7}) history.add_generated(token);
    uint32_t recent[8] = {};
    uint32_t generated[8] = {};
    for (const TokenCounts::Entry& entry : history.counts().entries()) {
        if (entry.token < 0) continue;
        recent[entry.token] = entry.recent;
        generated[entry.token] = entry.generated;
    }
    EXPECT_EQ(recent[5], 0u);
    EXPECT_EQ(recent[6], 1u);
    EXPECT_EQ(recent[7], 2u);
    EXPECT_EQ(generated[6], 0u);
    EXPECT_EQ(generated[7], 2u);
}

TEST(Truncation, TopKEqualsASort) {
    for (const size_t n : {1u, 63u, 64u, 65u, 1000u, 5000u}) {
        std::vector<float> logits = random_logits(n, n, 4.0f);
        for (size_t i = 0; i < n; i += 3) logits[i] = std::round(logits[i]);  // ties
        const std::vector<int32_t> order = ranked(logits);
        for (const size_t k : {size_t{1}, size_t{2}, size_t{40}, n / 2 + 1, n, n + 1}) {
            SamplingParams params = neutral();
            params.top_k = static_cast<int32_t>(k);
            std::vector<int32_t> expected(order.begin(), order.begin() + static_cast<ptrdiff_t>(std::min(k, n)));
            std::sort(expected.begin(), expected.end());
            EXPECT_EQ(kept(params, logits), expected) << "n " << n << ", k " << k;
        }
    }
}

TEST(Truncation, TopPKeepsTheShortestHead) {
    for (const float spread : {0.1f, 1.0f, 6.0f}) {
        const std::vector<float> logits = random_logits(3000, 11, spread);
        const std::vector<int32_t> order = ranked(logits);
        double total = 0.0;
        for (const float logit : logits) total += std::exp(static_cast<double>(logit));
        for (const double p : {0.05, 0.5, 0.95, 0.999}) {
            SamplingParams params = neutral();
            params.top_p = p;
            const std::vector<int32_t> ids = kept(params, logits);
            double head = 0.0;
            double last = 0.0;
            for (size_t i = 0; i < ids.size(); ++i) {
                last = std::exp(static_cast<double>(logits[static_cast<size_t>(order[i])])) / total;
                head += last;
            }
            EXPECT_GE(head, p - 1e-6);
            EXPECT_LT(head - last, p + 1e-6);
            std::vector<int32_t> expected(order.begin(), order.begin() + static_cast<ptrdiff_t>(ids.size()));
            std::sort(expected.begin(), expected.end());
            EXPECT_EQ(ids, expected);
        }
    }
}

TEST(Truncation, EveryStageKeepsATokenOfExtremeLogits) {
    const float big = std::numeric_limits<float>::max();
    const std::vector<std::vector<float>> cases{{big, -big},          {-big, -big, -big}, {big, big, -kInfinity},
                                                {1e30f, 1e30f, 0.0f}, {-kInfinity, 0.0f}, {1e-40f, 0.0f}};
    for (const std::vector<float>& logits : cases) {
        SamplingParams params;
        params.typical_p = 0.2;
        params.top_n_sigma = 0.5;
        params.xtc_probability = 1.0;
        params.xtc_threshold = 0.0;
        for (const double temperature : {0.0, 1e-310, 1.0, 1e300}) {
            params.temperature = temperature;
            params.order = default_sampling_order();
            for (size_t turn = 0; turn < params.order.size(); ++turn) {
                std::rotate(params.order.begin(), params.order.begin() + 1, params.order.end());
                Sampler sampler(params, static_cast<int32_t>(logits.size()), turn);
                const int32_t token = sampler.sample(logits).token;
                ASSERT_GE(token, 0);
                ASSERT_LT(static_cast<size_t>(token), logits.size());
                EXPECT_GT(logits[static_cast<size_t>(token)], -kInfinity);
            }
        }
    }
}

TEST(Candidates, DrawReachesBothEndsAndSkipsBannedTokens) {
    std::vector<float> logits(200, 0.0f);
    logits[0] = logits[199] = -kInfinity;
    Candidates candidates;
    candidates.assign(logits);
    EXPECT_EQ(candidates.draw(0.0), 1);
    EXPECT_EQ(candidates.draw(std::nextafter(1.0, 0.0)), 198);
    EXPECT_EQ(candidates.draw(0.5), 100);
}

TEST(Logprobs, AreNormalisedAndRanked) {
    std::vector<float> logits = random_logits(1001, 3, 5.0f);
    logits[70] = logits[900] = 40.0f;
    Logprobs logprobs;
    logprobs.assign(logits);
    double total = 0.0;
    for (int32_t token = 0; token < 1001; ++token) total += std::exp(static_cast<double>(logprobs.of(token)));
    EXPECT_NEAR(total, 1.0, 1e-5);
    const std::vector<int32_t> order = ranked(logits);
    for (const size_t n : {size_t{0}, size_t{1}, size_t{10}, size_t{1001}, size_t{2000}}) {
        std::vector<TokenLogprob> top;
        logprobs.top(n, top);
        ASSERT_EQ(top.size(), std::min<size_t>(n, 1001));
        for (size_t i = 0; i < top.size(); ++i) ASSERT_EQ(top[i].token, order[i]) << i;
    }
}

TEST(DryBreakers, FindsTheLastOne) {
    const DryBreakers breakers(10, {{9}, {1, 2, 3}, {1, 2}});
    const auto after = [&](std::vector<int32_t> window) { return breakers.tokens_after_last(window); };
    EXPECT_EQ(after({}), 0u);
    EXPECT_EQ(after({4, 5}), 2u);
    EXPECT_EQ(after({9, 4, 5}), 2u);
    EXPECT_EQ(after({4, 9}), 0u);
    EXPECT_EQ(after({1, 2, 4, 4}), 2u);
    EXPECT_EQ(after({1, 2, 3, 4}), 1u);
    EXPECT_EQ(after({4, 4, 1}), 3u);
    EXPECT_TRUE(breakers.contains(9));
    EXPECT_FALSE(breakers.contains(1));
    EXPECT_THROW(DryBreakers(10, {{}}), RequestError);
    EXPECT_THROW(DryBreakers(10, {{3, 10}}), RequestError);
}

TEST(Sampler, CopyForksTheState) {
    const std::vector<float> logits = random_logits(1000, 5, 1.0f);
    SamplingParams params;
    params.repetition_penalty = 1.3;
    Sampler first(params, 1000, 99);
    const auto step = [&](Sampler& sampler) {
        const int32_t token = sampler.sample(logits).token;
        sampler.accept(token);
        return token;
    };
    for (int i = 0; i < 5; ++i) step(first);
    Sampler second = first;
    for (int i = 0; i < 20; ++i) EXPECT_EQ(step(first), step(second));
    second.reseed(100);
    int same = 0;
    for (int i = 0; i < 20; ++i) same += step(first) == step(second);
    EXPECT_LT(same, 10);
}

TEST(Sampler, FaultsLeaveItAsItWas) {
    const std::vector<float> good = random_logits(300, 5, 1.0f);
    std::vector<float> bad = good;
    bad[150] = std::nanf("");
    Sampler faulted({}, 300, 4);
    Sampler untouched({}, 300, 4);
    const std::vector<uint32_t> nothing(10, 0);
    EXPECT_THROW(faulted.sample(bad), DeviceError);
    EXPECT_THROW(faulted.sample(good, nothing), RequestError);
    EXPECT_THROW(faulted.sample(std::span(good).first(299)), RequestError);
    EXPECT_THROW(faulted.sample(good, std::span(nothing).first(9)), RequestError);
    EXPECT_THROW(faulted.accept(300), RequestError);
    EXPECT_THROW(faulted.accept_prompt(std::vector<int32_t>{1, -1}), RequestError);
    EXPECT_TRUE(faulted.history().empty());
    for (int i = 0; i < 10; ++i) EXPECT_EQ(faulted.sample(good).token, untouched.sample(good).token);
}

TEST(Sampler, RawLogitsAreChecked) {
    SamplingParams params;
    params.logprobs = 0;
    Sampler sampler(params, 3, 1);
    const std::vector<float> logits{0.0f, 1.0f, 2.0f};
    const std::vector<float> raw{0.0f, std::nanf(""), 2.0f};
    EXPECT_THROW(sampler.sample(logits, {}, raw), DeviceError);
}

TEST(Sampler, BadParametersAreRefused) {
    const auto refused = [](auto change) {
        SamplingParams params;
        change(params);
        EXPECT_THROW(Sampler(params, 100, 1), RequestError);
    };
    refused([](SamplingParams& p) { p.temperature = -1.0; });
    refused([](SamplingParams& p) { p.temperature = std::nan(""); });
    refused([](SamplingParams& p) { p.top_p = 1.5; });
    refused([](SamplingParams& p) { p.top_k = -1; });
    refused([](SamplingParams& p) { p.repetition_penalty = 0.0; });
    refused([](SamplingParams& p) { p.logit_bias = {{100, 1.0f}}; });
    refused([](SamplingParams& p) { p.logit_bias = {{1, kInfinity}}; });
    refused([](SamplingParams& p) { p.order = {SamplingStage::TopK, SamplingStage::TopK}; });
    EXPECT_THROW(Sampler({}, 0, 1), RequestError);
    EXPECT_THROW(Sampler({}, 100, 1, std::make_shared<const DryBreakers>(99, std::vector<std::vector<int32_t>>{})),
                 RequestError);
}

}  // namespace
}  // namespace metallic
