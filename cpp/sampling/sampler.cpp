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
    std::vector<LogitEdit> edits;
};

Workspace& workspace() {
    static thread_local Workspace space;
    return space;
}

[[noreturn]] void throw_nothing_left(bool banned) {
    if (banned) {
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
    handover_ = find_handover();
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
    std::vector<LogitEdit>& edits = workspace().edits;
    edits.clear();
    append_bias(edits);
    apply(candidates, edits);
    if (candidates.max() == -kInfinity) {
        throw_nothing_left(std::any_of(logits.begin(), logits.end(), [](float logit) { return logit > -kInfinity; }));
    }
    for (const SamplingStage stage : params_.order) run_stage(stage, candidates, random);
}

void Sampler::apply(Candidates& candidates, const std::vector<LogitEdit>& edits) const {
    for (const LogitEdit& edit : edits) candidates.edit(edit);
}

void Sampler::run_stage(SamplingStage stage, Candidates& candidates, Random& random) {
    if (stage == SamplingStage::Penalties || stage == SamplingStage::Dry) {
        std::vector<LogitEdit>& edits = workspace().edits;
        edits.clear();
        append_edits(stage, edits);
        return apply(candidates, edits);
    }
    if (params_.temperature == 0.0 || !is_active(stage)) return;  // greedy: the stages below are about chance
    switch (stage) {
        case SamplingStage::TopNSigma:
            return candidates.keep_top_n_sigma(params_.top_n_sigma);
        case SamplingStage::TopK:
            return candidates.keep_top_k(params_.top_k);
        case SamplingStage::TypicalP:
            return candidates.keep_typical(params_.typical_p);
        case SamplingStage::TopP:
            return candidates.keep_top_p(params_.top_p);
        case SamplingStage::MinP:
            return candidates.keep_min_p(params_.min_p);
        case SamplingStage::Xtc:
            if (random.uniform() < params_.xtc_probability) candidates.drop_top_choices(params_.xtc_threshold);
            return;
        case SamplingStage::Temperature:
            return candidates.divide_by(params_.temperature);
        case SamplingStage::Penalties:
        case SamplingStage::Dry:
            return;
    }
}

void Sampler::append_bias(std::vector<LogitEdit>& edits) const {
    for (const auto& [token, bias] : params_.logit_bias) {
        edits.push_back(bias == -kInfinity ? LogitEdit::ban_of(token) : LogitEdit::bias_of(token, bias));
    }
}

void Sampler::append_edits(SamplingStage stage, std::vector<LogitEdit>& edits) const {
    if (stage == SamplingStage::Penalties) append_penalties(edits);
    if (stage != SamplingStage::Dry || !is_active(stage)) return;
    append_dry(params_, breakers_.get(), history_.tokens(), n_vocab_, workspace().dry, edits);
}

// Repetition: Keskar et al. 2019 ("CTRL"), with the sign rule of Hugging Face's RepetitionPenaltyLogitsProcessor and of
// llama.cpp: once per distinct token of the window. Presence and frequency: OpenAI's definition, over generated tokens.
void Sampler::append_penalties(std::vector<LogitEdit>& edits) const {
    for (const TokenCounts::Entry& entry : history_.counts().entries()) {
        if (entry.token < 0 || (entry.recent == 0 && entry.generated == 0)) continue;
        const double less = entry.generated == 0 ? 0.0
                                                 : params_.presence_penalty +
                                                       params_.frequency_penalty * static_cast<double>(entry.generated);
        edits.push_back(
            {entry.token, LogitEdit::Kind::penalty, 0, entry.recent != 0, params_.repetition_penalty, less});
    }
}

// ---- candidates chosen elsewhere ----

// Whether the stage does anything with these parameters, at a temperature above 0.
bool Sampler::is_active(SamplingStage stage) const noexcept {
    switch (stage) {
        case SamplingStage::Penalties:
            return counts_recent(params_) || counts_generated(params_);
        case SamplingStage::Dry:
            return params_.dry_multiplier != 0.0 && params_.dry_penalty_last_n != 0;
        case SamplingStage::TopNSigma:
            return params_.top_n_sigma > 0.0;
        case SamplingStage::TopK:
            return params_.top_k > 0;
        case SamplingStage::TypicalP:
            return params_.typical_p < 1.0;
        case SamplingStage::TopP:
            return params_.top_p < 1.0;
        case SamplingStage::MinP:
            return params_.min_p > 0.0;
        case SamplingStage::Xtc:
            // Above a half at most one token can reach the threshold.
            return params_.xtc_probability > 0.0 && params_.xtc_threshold <= 0.5;
        case SamplingStage::Temperature:
            return params_.temperature != 1.0;
    }
    return true;
}

Sampler::Handover Sampler::find_handover() const noexcept {
    if (params_.logprobs >= 0) return {};
    if (params_.temperature == 0.0) return {1, params_.order.size()};
    bool divided = false;  // edits of divided logits are not edits of the model's
    for (size_t i = 0; i < params_.order.size(); ++i) {
        const SamplingStage stage = params_.order[i];
        if (!is_active(stage)) continue;
        if (stage == SamplingStage::TopK) {
            const uint32_t k = static_cast<uint32_t>(params_.top_k);
            return k <= kMostCandidates ? Handover{k, i + 1} : Handover{};
        }
        const bool edits = stage == SamplingStage::Penalties || stage == SamplingStage::Dry;
        if (stage != SamplingStage::Temperature && (!edits || divided)) return {};
        divided |= stage == SamplingStage::Temperature;
    }
    return {};
}

uint32_t Sampler::select(std::vector<LogitEdit>& edits) const {
    edits.clear();
    if (handover_.k == 0) return 0;
    append_bias(edits);
    for (size_t i = 0; i < handover_.stages; ++i) append_edits(params_.order[i], edits);
    std::stable_sort(edits.begin(), edits.end(),
                     [](const LogitEdit& a, const LogitEdit& b) { return a.token < b.token; });
    return handover_.k;
}

// Those that are there.
std::span<const Candidate> Sampler::check_candidates(std::span<const Candidate> candidates) const {
    if (handover_.k == 0) throw RequestError("the next token can only be drawn from all logits");
    if (candidates.size() != handover_.k) {
        throw RequestError("expected " + std::to_string(handover_.k) + " candidates, got " +
                           std::to_string(candidates.size()));
    }
    const auto end = std::find_if(candidates.begin(), candidates.end(), [](const Candidate& c) { return c.token < 0; });
    const std::span<const Candidate> found = candidates.first(static_cast<size_t>(end - candidates.begin()));
    if (!found.empty() && !(found[0].logit < kInfinity)) return found.first(1);  // the damage is told from it
    for (size_t i = 0; i < found.size(); ++i) {
        check_token(found[i].token);
        const bool follows = i == 0 || found[i].logit < found[i - 1].logit ||
                             (found[i].logit == found[i - 1].logit && found[i].token > found[i - 1].token);
        if (!follows || !(found[i].logit > -kInfinity)) throw RequestError("candidates that are not in their order");
    }
    return found;
}

const Sampled& Sampler::sample_candidates(std::span<const Candidate> all, bool masked) {
    const std::span<const Candidate> chosen = check_candidates(all);
    if (chosen.empty()) {
        const auto bans = [](const auto& bias) { return bias.second == -kInfinity; };
        throw_nothing_left(masked || std::any_of(params_.logit_bias.begin(), params_.logit_bias.end(), bans));
    }
    Candidates& candidates = workspace().candidates;
    candidates.assign_chosen(chosen);
    Random random = random_;
    for (size_t i = 0; i < params_.order.size(); ++i) {
        const SamplingStage stage = params_.order[i];
        if (i >= handover_.stages || stage == SamplingStage::Temperature) run_stage(stage, candidates, random);
    }
    sampled_.logprob.reset();
    sampled_.top_logprobs.clear();
    sampled_.token = params_.temperature == 0.0 ? candidates.arg_max() : candidates.draw(random.uniform());
    random_ = random;
    return sampled_;
}

}  // namespace metallic
