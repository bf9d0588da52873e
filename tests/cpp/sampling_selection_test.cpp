#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "backend/batch_check.h"
#include "backend/cpu/ops/sampling.h"
#include "core/error.h"
#include "sampling/sampler.h"

// Drawing from candidates that a device chose gives the token that drawing from all logits gives, and leaves the same
// state: the CPU backend's choice and the sampler's other half against the whole chain.
namespace metallic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// By definition: every edit in double, then all tokens in order.
std::vector<Candidate> chosen_by_definition(std::vector<float> logits, const Selection& selection) {
    std::vector<Candidate> all;
    for (size_t i = 0; i < logits.size(); ++i) {
        if (!(logits[i] < kInfinity)) return {{static_cast<int32_t>(i), logits[i]}};
        double logit = static_cast<double>(logits[i]);
        for (const LogitEdit& edit : selection.edits) {
            if (edit.token != static_cast<int32_t>(i) || logit == -std::numeric_limits<double>::infinity()) continue;
            if (edit.kind == LogitEdit::Kind::ban) {
                logit = -std::numeric_limits<double>::infinity();
                continue;
            }
            if (edit.kind == LogitEdit::Kind::bias) logit += static_cast<double>(edit.bias);
            if (edit.kind == LogitEdit::Kind::penalty) {
                if (edit.repeated) logit = logit > 0 ? logit / edit.repetition : logit * edit.repetition;
                logit -= edit.less;
            }
            const double most = std::numeric_limits<float>::max();
            logit = static_cast<double>(static_cast<float>(std::min(std::max(logit, -most), most)));
        }
        const bool allowed = selection.mask.empty() || (selection.mask[i / 32] >> (i % 32) & 1) != 0;
        if (allowed && std::isfinite(logit)) all.push_back({static_cast<int32_t>(i), static_cast<float>(logit)});
    }
    std::stable_sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
    all.resize(selection.k);
    return all;
}

// A chain, logits and a mask, all of them random: many ties, bans and switched-off stages among them.
class RandomCase {
  public:
    explicit RandomCase(uint32_t seed) : random_(seed) {
        static constexpr int32_t kVocabularies[] = {1, 2, 31, 64, 300, 1000, 5003};
        vocabulary = one_of(kVocabularies);
        set_params();
        const float spread = chance(0.1) ? 1e37f : static_cast<float>(0.1 + 8 * unit());
        const bool coarse = chance(0.3);
        logits.resize(static_cast<size_t>(vocabulary));
        for (float& logit : logits) {
            logit = spread * static_cast<float>(2 * unit() - 1);
            if (coarse) logit = std::round(logit / spread * 4);
            if (chance(0.02)) logit = -kInfinity;
            if (chance(0.02)) logit = chance(0.5) ? 0.0f : -0.0f;
        }
        if (chance(0.1)) std::fill(logits.begin(), logits.end(), chance(0.8) ? 1.5f : -kInfinity);
        if (chance(0.4)) {
            const double allowed = chance(0.1) ? 0.0 : chance(0.5) ? 0.03 : 0.7;
            mask.resize(logits.size() / 32 + 1);
            for (size_t i = 0; i < logits.size(); ++i) mask[i / 32] |= uint32_t{chance(allowed)} << (i % 32);
        }
        for (int i = 0; i < 60; ++i) prompt.push_back(token(12));
    }

    int32_t token(int32_t few) {
        return static_cast<int32_t>(random_() % static_cast<uint32_t>(std::min(few, vocabulary)));
    }
    double unit() { return std::uniform_real_distribution<double>(0.0, 1.0)(random_); }
    bool chance(double probability) { return unit() < probability; }
    template <class T, size_t N>
    T one_of(const T (&values)[N]) {
        return values[random_() % N];
    }

    SamplingParams params;
    int32_t vocabulary = 0;
    std::vector<float> logits;
    std::vector<uint32_t> mask;
    std::vector<int32_t> prompt;

  private:
    void set_params() {
        static constexpr int32_t kTopK[] = {0, 1, 2, 5, 40, 255, 256, 257, 5003, 100000};
        params.temperature = chance(0.25) ? 0.0 : chance(0.2) ? 1.0 : 0.05 + 2 * unit();
        params.top_k = one_of(kTopK);
        params.top_p = chance(0.5) ? 1.0 : unit();
        params.min_p = chance(0.5) ? 0.0 : 0.3 * unit();
        params.typical_p = chance(0.7) ? 1.0 : unit();
        params.top_n_sigma = chance(0.8) ? 0.0 : 2 * unit();
        params.xtc_probability = chance(0.7) ? 0.0 : unit();
        params.xtc_threshold = 0.6 * unit();
        params.repetition_penalty = chance(0.5) ? 1.0 : 0.5 + unit();
        params.repeat_last_n = chance(0.3) ? -1 : static_cast<int32_t>(100 * unit());
        params.presence_penalty = chance(0.5) ? 0.0 : 2 * unit() - 1;
        params.frequency_penalty = chance(0.5) ? 0.0 : 2 * unit() - 1;
        params.dry_multiplier = chance(0.5) ? 0.0 : chance(0.1) ? 1e300 : unit();
        params.dry_base = chance(0.2) ? 1e200 : 1.0 + unit();
        params.logprobs = chance(0.05) ? 1 : -1;
        for (int i = chance(0.5) ? 0 : 10; i > 0; --i) {
            const float bias = chance(0.3) ? -kInfinity : static_cast<float>(20 * unit() - 10);
            params.logit_bias.emplace_back(token(40), bias);
        }
        if (chance(0.4)) std::shuffle(params.order.begin(), params.order.end(), random_);
        if (chance(0.2)) params.order.resize(random_() % (params.order.size() + 1));
    }

    std::mt19937 random_;
};

struct Outcome {
    int32_t token = -1;
    std::string error;
};

template <class Draw>
Outcome outcome_of(const Draw& draw) {
    try {
        return {draw(), {}};
    } catch (const DeviceError& error) {
        return {-1, std::string("DeviceError: ") + error.what()};
    } catch (const RequestError& error) {
        return {-1, std::string("RequestError: ") + error.what()};
    }
}

// How a device serves a sampler.
std::vector<Candidate> served(const Sampler& sampler, std::vector<float> logits, const std::vector<uint32_t>& mask) {
    std::vector<LogitEdit> edits;
    const Selection selection{sampler.select(edits), edits, mask};
    check_selections({&selection, 1}, static_cast<uint32_t>(logits.size()));
    std::vector<Candidate> out(selection.k);
    cpu::select_candidates(logits, selection, out);
    return out;
}

bool none_is_finite(const std::vector<float>& logits) {
    return std::all_of(logits.begin(), logits.end(), [](float logit) { return logit == -kInfinity; });
}

TEST(SamplingSelection, CandidatesGiveTheTokensOfTheWholeChain) {
    int served_cases = 0, tokens = 0, errors = 0;
    for (uint32_t seed = 0; seed < 4000; ++seed) {
        RandomCase c(seed);
        Sampler whole(c.params, c.vocabulary, seed);
        Sampler split(c.params, c.vocabulary, seed);
        for (Sampler* const sampler : {&whole, &split}) sampler->accept_prompt(c.prompt);
        std::vector<LogitEdit> edits;
        if (split.select(edits) == 0) continue;
        ++served_cases;
        for (int step = 0; step < 12; ++step) {
            std::vector<float> logits = c.logits;
            std::rotate(logits.begin(), logits.begin() + step % c.vocabulary, logits.end());
            if (c.chance(0.01)) logits[static_cast<size_t>(c.token(c.vocabulary))] = c.chance(0.5) ? NAN : kInfinity;
            const Outcome wanted = outcome_of([&] { return whole.sample(logits, c.mask).token; });
            const std::vector<Candidate> candidates = served(split, logits, c.mask);
            const Outcome got = outcome_of([&] { return split.sample_candidates(candidates, !c.mask.empty()).token; });
            ASSERT_EQ(got.token, wanted.token) << "seed " << seed << ", step " << step << ": " << got.error;
            // Where something is banned, nothing says whether the model gave a finite logit.
            if (!none_is_finite(logits)) {
                ASSERT_EQ(got.error, wanted.error) << "seed " << seed << ", step " << step;
            }
            ASSERT_EQ(got.error.empty(), wanted.error.empty());
            if (wanted.token < 0) {
                ++errors;
                continue;
            }
            ++tokens;
            whole.accept(wanted.token);
            split.accept(got.token);
        }
        // The same random numbers have been used: both go on alike from all logits.
        std::vector<float> plain(static_cast<size_t>(c.vocabulary), 0.0f);
        const Outcome next = outcome_of([&] { return split.sample(plain).token; });
        ASSERT_EQ(next.token, outcome_of([&] { return whole.sample(plain).token; }).token) << "seed " << seed;
    }
    EXPECT_GT(served_cases, 1000);
    EXPECT_GT(tokens, 10000);
    EXPECT_GT(errors, 100);
}

TEST(SamplingSelection, TheCpuChoosesByDefinition) {
    for (uint32_t seed = 0; seed < 1500; ++seed) {
        RandomCase c(seed);
        std::vector<LogitEdit> edits;
        for (int i = 0; i < 40; ++i) {
            LogitEdit edit;
            edit.token = c.token(100);
            edit.kind = static_cast<LogitEdit::Kind>(c.chance(0.1) ? 0 : c.chance(0.5) ? 1 : 2);
            edit.bias = static_cast<float>(6 * c.unit() - 3);
            edit.repeated = c.chance(0.5);
            edit.repetition = 0.5 + c.unit();
            edit.less = c.chance(0.05) ? 1e300 : c.unit();
            edits.push_back(edit);
        }
        std::stable_sort(edits.begin(), edits.end(),
                         [](const LogitEdit& a, const LogitEdit& b) { return a.token < b.token; });
        if (c.chance(0.1)) c.logits[static_cast<size_t>(c.token(c.vocabulary))] = c.chance(0.5) ? -NAN : kInfinity;
        const uint32_t ks[] = {1, 2, 17, 256};
        const Selection selection{c.one_of(ks), edits, c.mask};
        const std::vector<Candidate> wanted = chosen_by_definition(c.logits, selection);
        std::vector<float> logits = c.logits;
        std::vector<Candidate> got(selection.k + 3);
        cpu::select_candidates(logits, selection, got);
        for (size_t i = 0; i < (wanted[0].logit < kInfinity ? wanted.size() : 1); ++i) {
            ASSERT_EQ(got[i].token, wanted[i].token) << "seed " << seed << ", " << i;
            ASSERT_EQ(std::memcmp(&got[i].logit, &wanted[i].logit, sizeof(float)), 0) << "seed " << seed << ", " << i;
        }
        EXPECT_EQ(got[selection.k].token, -1) << "nothing beyond those that were wanted";
    }
}

// To the last bit of every probability, which later stages and the draw go by.
TEST(SamplingSelection, ChosenCandidatesAreTheListThatTopKLeaves) {
    for (uint32_t seed = 0; seed < 1500; ++seed) {
        RandomCase c(seed);
        const uint32_t ks[] = {2, 17, 64, 100, 256};
        const Selection selection{c.one_of(ks), {}, c.mask};
        std::vector<Candidate> chosen = chosen_by_definition(c.logits, selection);
        std::erase_if(chosen, [](const Candidate& candidate) { return candidate.token < 0; });
        if (chosen.empty()) continue;
        Candidates whole, split;
        whole.assign(c.logits);
        if (!c.mask.empty()) whole.restrict_to(c.mask);
        whole.keep_top_k(static_cast<int32_t>(selection.k));
        split.assign_chosen(chosen);
        ASSERT_EQ(split.size(), whole.size()) << "seed " << seed;
        std::vector<TokenProbability> wanted, got;
        whole.distribution(wanted);
        split.distribution(got);
        ASSERT_EQ(got.size(), wanted.size());
        for (size_t i = 0; i < got.size(); ++i) {
            ASSERT_EQ(got[i].token, wanted[i].token) << "seed " << seed;
            ASSERT_EQ(got[i].probability, wanted[i].probability) << "seed " << seed;
        }
    }
}

TEST(SamplingSelection, APenaltyBeyondAllNumbersIsTheGreatest) {
    SamplingParams params;
    params.temperature = 0;
    params.dry_multiplier = 1e300;
    params.dry_base = 1e300;
    Sampler sampler(params, 3, 1);
    sampler.accept_prompt(std::vector<int32_t>{0, 1, 0, 1, 0, 1, 0});
    const std::vector<float> logits{-3.3e38f, 3.3e38f, -3.2e38f};
    EXPECT_EQ(sampler.sample(logits).token, 2);
    EXPECT_EQ(sampler.sample_candidates(served(sampler, logits, {})).token, 2);
}

uint32_t k_of(const SamplingParams& params) {
    std::vector<LogitEdit> edits;
    return Sampler(params, 1000, 1).select(edits);
}

TEST(SamplingSelection, KnowsWhenAllLogitsAreNeeded) {
    SamplingParams params;  // penalties, dry, top_n_sigma, top_k, ...
    EXPECT_EQ(k_of(params), 40u);
    params.top_k = 256;
    EXPECT_EQ(k_of(params), 256u);
    params.top_k = 257;
    EXPECT_EQ(k_of(params), 0u);
    params.top_k = 0;
    EXPECT_EQ(k_of(params), 0u);
    params.temperature = 0;
    EXPECT_EQ(k_of(params), 1u);
    params.logprobs = 0;
    EXPECT_EQ(k_of(params), 0u);
    params = {};
    params.top_n_sigma = 1;
    EXPECT_EQ(k_of(params), 0u);
    params = {};
    params.order = {SamplingStage::Temperature, SamplingStage::TopK};
    EXPECT_EQ(k_of(params), 40u);
    params.order = {SamplingStage::Temperature, SamplingStage::Penalties, SamplingStage::TopK};
    EXPECT_EQ(k_of(params), 40u) << "there are no penalties";
    params.repetition_penalty = 1.1;
    EXPECT_EQ(k_of(params), 0u);
    params.order = {SamplingStage::TopP, SamplingStage::TopK};
    EXPECT_EQ(k_of(params), 0u);
    params.order = {SamplingStage::TopP};
    EXPECT_EQ(k_of(params), 0u);
}

TEST(SamplingSelection, AnswersToAnotherQuestionAreRefused) {
    SamplingParams params;
    params.top_k = 3;
    Sampler sampler(params, 100, 1);
    const Sampler before = sampler;
    const std::vector<std::vector<Candidate>> bad{
        {},
        {{1, 3.0f}, {2, 2.0f}},
        {{1, 3.0f}, {2, 2.0f}, {3, 1.0f}, {4, 0.0f}},
        {{1, 3.0f}, {100, 2.0f}, {3, 1.0f}},
        {{1, 3.0f}, {2, 4.0f}, {3, 1.0f}},
        {{1, 3.0f}, {2, 2.0f}, {1, 2.0f}},
        {{1, 3.0f}, {1, 3.0f}, {3, 1.0f}},
        {{1, 3.0f}, {2, NAN}, {3, 1.0f}},
        {{1, 3.0f}, {2, 2.0f}, {3, -kInfinity}},
    };
    for (const std::vector<Candidate>& candidates : bad) {
        EXPECT_THROW(sampler.sample_candidates(candidates), RequestError);
    }
    EXPECT_THROW(sampler.sample_candidates(std::vector<Candidate>{{7, NAN}, {}, {}}), DeviceError);
    EXPECT_THROW(sampler.sample_candidates(std::vector<Candidate>(3)), DeviceError);
    EXPECT_THROW(sampler.sample_candidates(std::vector<Candidate>(3), true), RequestError);
    params.top_k = 0;
    EXPECT_THROW(Sampler(params, 100, 1).sample_candidates(bad[1]), RequestError);
    const std::vector<Candidate> good{{1, 3.0f}, {2, 2.9f}, {9, 2.9f}};
    Sampler untouched = before;
    for (int i = 0; i < 20; ++i) {
        EXPECT_EQ(sampler.sample_candidates(good).token, untouched.sample_candidates(good).token);
    }
}

}  // namespace
}  // namespace metallic
