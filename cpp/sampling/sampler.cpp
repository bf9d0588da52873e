#include "sampling/sampler.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"

namespace metallic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A few numbers per token of the vocabulary, held once per thread rather than once per sequence.
struct Workspace {
    Candidates candidates;
    DryScratch dry;
    Logprobs logprobs;
};

Workspace& workspace() {
    static thread_local Workspace space;
    return space;
}

[[noreturn]] void throw_nothing_left(std::span<const float> logits) {
    const bool any = std::any_of(logits.begin(), logits.end(), [](float logit) { return logit > -kInfinity; });
    if (any) {
        throw RequestError(
            "no token is left to sample: logit_bias and the token mask ban every token that has a finite logit");
    }
    throw DeviceError("every logit is -inf: nothing can be sampled from the model's output", "sampling", "-inf");
}

bool counts_recent(const SamplingParams& params) noexcept {
    return params.repetition_penalty != 1.0;
}

bool counts_generated(const SamplingParams& params) noexcept {
    return params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
}

}  // namespace

Sampler::Sampler(SamplingParams params, int32_t n_vocab, uint64_t seed, std::shared_ptr<const DryBreakers> breakers)
    : params_(std::move(params)),
      n_vocab_(n_vocab),
      seed_(seed),
      breakers_(std::move(breakers)),
      random_(seed),
      history_(params_.repeat_last_n, counts_recent(params_), counts_generated(params_)) {
    check(params_, n_vocab_);
    if (breakers_ && breakers_->n_vocab() != n_vocab_) {
        throw RequestError("the DRY sequence breakers are made for " + std::to_string(breakers_->n_vocab()) +
                           " tokens, but the vocabulary has " + std::to_string(n_vocab_));
    }
}

const Sampled& Sampler::sample(std::span<const float> logits, std::span<const uint32_t> mask,
                               std::span<const float> raw) {
    check_inputs(logits, mask, raw);
    Workspace& space = workspace();
    Random random = random_;
    narrow(space.candidates, logits, mask, random);
    sampled_.logprob.reset();
    sampled_.top_logprobs.clear();
    if (params_.logprobs >= 0) space.logprobs.assign(raw.empty() ? logits : raw);

    sampled_.token = params_.temperature == 0.0 ? space.candidates.arg_max() : space.candidates.draw(random.uniform());
    random_ = random;
    if (params_.logprobs >= 0) {
        sampled_.logprob = space.logprobs.of(sampled_.token);
        space.logprobs.top(static_cast<size_t>(params_.logprobs), sampled_.top_logprobs);
    }
    return sampled_;
}

std::vector<TokenProbability> Sampler::distribution(std::span<const float> logits, std::span<const uint32_t> mask) {
    check_inputs(logits, mask, {});
    Candidates& candidates = workspace().candidates;
    Random random = random_;
    narrow(candidates, logits, mask, random);
    std::vector<TokenProbability> result;
    if (params_.temperature == 0.0) {
        result.push_back({candidates.arg_max(), 1.0f});
    } else {
        candidates.distribution(result);
    }
    return result;
}

void Sampler::accept(int32_t token) {
    check_token(token);
    history_.add_generated(token);
}

void Sampler::accept_prompt(std::span<const int32_t> tokens) {
    for (const int32_t token : tokens) check_token(token);
    for (const int32_t token : tokens) history_.add_prompt(token);
}

void Sampler::reset() {
    history_.clear();
    random_ = Random(seed_);
}

void Sampler::reseed(uint64_t seed) noexcept {
    seed_ = seed;
    random_ = Random(seed);
}

void Sampler::check_inputs(std::span<const float> logits, std::span<const uint32_t> mask,
                           std::span<const float> raw) const {
    const size_t n = static_cast<size_t>(n_vocab_);
    if (logits.size() != n || (!raw.empty() && raw.size() != n)) {
        const size_t got = logits.size() != n ? logits.size() : raw.size();
        throw RequestError("expected " + std::to_string(n) + " logits, one per token, got " + std::to_string(got));
    }
    if (!mask.empty() && mask.size() < (n + 31) / 32) {
        throw RequestError("the token mask has " + std::to_string(mask.size()) + " words of 32 bits, but " +
                           std::to_string(n) + " tokens need " + std::to_string((n + 31) / 32));
    }
}

void Sampler::check_token(int32_t token) const {
    if (token >= 0 && token < n_vocab_) return;
    throw RequestError("token " + std::to_string(token) + " is out of range: ids run from 0 to " +
                       std::to_string(n_vocab_ - 1));
}

void Sampler::narrow(Candidates& candidates, std::span<const float> logits, std::span<const uint32_t> mask,
                     Random& random) {
    candidates.assign(logits);
    if (!mask.empty()) candidates.restrict_to(mask);
    for (const auto& [token, bias] : params_.logit_bias) {
        if (bias == -kInfinity) {
            candidates.ban(token);
        } else {
            candidates.edit(token, [bias = bias](float logit) { return static_cast<double>(logit) + bias; });
        }
    }
    if (candidates.max() == -kInfinity) throw_nothing_left(logits);
    for (const SamplingStage stage : params_.order) run_stage(stage, candidates, random);
}

void Sampler::run_stage(SamplingStage stage, Candidates& candidates, Random& random) {
    if (stage == SamplingStage::Penalties) return apply_penalties(candidates);
    if (stage == SamplingStage::Dry) {
        if (params_.dry_multiplier == 0.0 || params_.dry_penalty_last_n == 0) return;
        return apply_dry(params_, breakers_.get(), history_.tokens(), n_vocab_, workspace().dry, candidates);
    }
    if (params_.temperature == 0.0) return;  // greedy: the stages below are about chance
    switch (stage) {
        case SamplingStage::TopNSigma:
            return candidates.keep_top_n_sigma(params_.top_n_sigma);
        case SamplingStage::TopK:
            if (params_.top_k > 0) candidates.keep_top_k(params_.top_k);
            return;
        case SamplingStage::TypicalP:
            return candidates.keep_typical(params_.typical_p);
        case SamplingStage::TopP:
            return candidates.keep_top_p(params_.top_p);
        case SamplingStage::MinP:
            return candidates.keep_min_p(params_.min_p);
        case SamplingStage::Xtc:
            // Above a half at most one token can reach the threshold.
            if (params_.xtc_probability <= 0.0 || params_.xtc_threshold > 0.5) return;
            if (random.uniform() < params_.xtc_probability) candidates.drop_top_choices(params_.xtc_threshold);
            return;
        case SamplingStage::Temperature:
            return candidates.divide_by(params_.temperature);
        case SamplingStage::Penalties:
        case SamplingStage::Dry:
            return;
    }
}

// Repetition: Keskar et al. 2019 ("CTRL"), with the sign rule of Hugging Face's RepetitionPenaltyLogitsProcessor and of
// llama.cpp: once per distinct token of the window. Presence and frequency: OpenAI's definition, over generated tokens.
void Sampler::apply_penalties(Candidates& candidates) const {
    const double repetition = params_.repetition_penalty;
    for (const TokenCounts::Entry& entry : history_.counts().entries()) {
        if (entry.token < 0 || (entry.recent == 0 && entry.generated == 0)) continue;
        const bool repeated = entry.recent != 0;
        const double less = entry.generated == 0 ? 0.0
                                                 : params_.presence_penalty +
                                                       params_.frequency_penalty * static_cast<double>(entry.generated);
        candidates.edit(entry.token, [=](float logit) {
            double changed = static_cast<double>(logit);
            if (repeated) changed = changed <= 0.0 ? changed * repetition : changed / repetition;
            return changed - less;
        });
    }
}

}  // namespace metallic
