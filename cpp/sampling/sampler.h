#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "sampling/candidates.h"
#include "sampling/dry.h"
#include "sampling/history.h"
#include "sampling/logprobs.h"
#include "sampling/params.h"
#include "sampling/random.h"

namespace metallic {

struct Sampled {
    int32_t token = -1;
    std::optional<float> logprob;            // of `token`; empty unless asked for
    std::vector<TokenLogprob> top_logprobs;  // most probable first
};

// Chooses the tokens of one sequence. A copy continues from the same state, so a sequence may fork. The large buffers
// belong to the calling thread and are shared by its samplers; one sampler must not be used by two threads at once.
class Sampler {
  public:
    // Throws RequestError for parameters out of range, or breakers made for another vocabulary.
    Sampler(SamplingParams params, int32_t n_vocab, uint64_t seed,
            std::shared_ptr<const DryBreakers> breakers = nullptr);

    // Draws a token from `logits` (n_vocab of them). `mask`, if not empty, allows the tokens whose bit (i % 32 of word
    // i / 32) is set. Log-probabilities are those of `raw`, or of `logits` when it is empty, before every stage. The
    // token is not accepted yet. The result is good until the next call.
    // Throws RequestError when sizes differ or every token is banned, DeviceError when a logit is NaN or +inf or all
    // are -inf; the sampler's state is then unchanged.
    const Sampled& sample(std::span<const float> logits, std::span<const uint32_t> mask = {},
                          std::span<const float> raw = {});

    // For a device that chooses candidates: how many of a row of logits `sample_candidates` needs to draw the next
    // token, at most kMostCandidates, and the edits that come before the choice, in the order that Selection asks for.
    // 0 where only all logits will do: log-probabilities are asked for, or a stage that needs them comes before top-k.
    uint32_t select(std::vector<LogitEdit>& edits) const;
    // The token that `sample` would draw from the row of logits that the candidates were chosen from, after which the
    // state is the same too. `masked` says whether a mask restricted the choice. Throws as `sample` does, but where
    // tokens are banned it is a RequestError that none is left, even if the model gave none either; RequestError for
    // candidates that cannot be the answer to `select`.
    const Sampled& sample_candidates(std::span<const Candidate> candidates, bool masked = false);

    // The probabilities that `sample` would draw from, ascending ids; the state is unchanged.
    std::vector<TokenProbability> distribution(std::span<const float> logits, std::span<const uint32_t> mask = {});

    // Appends a generated token to the history.
    void accept(int32_t token);
    // Appends prompt tokens: the repetition penalty and DRY see them, presence and frequency penalties do not.
    void accept_prompt(std::span<const int32_t> tokens);
    // Forgets the history and starts the random sequence again.
    void reset();
    // Starts another random sequence; the history stays.
    void reseed(uint64_t seed) noexcept;

    std::span<const int32_t> history() const noexcept { return history_.tokens(); }
    int32_t n_vocab() const noexcept { return n_vocab_; }
    uint64_t seed() const noexcept { return seed_; }

  private:
    void check_inputs(std::span<const float> logits, std::span<const uint32_t> mask, std::span<const float> raw) const;
    void check_token(int32_t token) const;
    // Runs everything up to the draw.
    void narrow(Candidates& candidates, std::span<const float> logits, std::span<const uint32_t> mask, Random& random);
    void run_stage(SamplingStage stage, Candidates& candidates, Random& random);
    void apply(Candidates& candidates, const std::vector<LogitEdit>& edits) const;
    void append_bias(std::vector<LogitEdit>& edits) const;
    // What a stage does to the logits of single tokens.
    void append_edits(SamplingStage stage, std::vector<LogitEdit>& edits) const;
    void append_penalties(std::vector<LogitEdit>& edits) const;
    bool is_active(SamplingStage stage) const noexcept;
    // Where a device hands over: it does the edits of the first `stages` of the order, and chooses k; 0: it cannot.
    struct Handover {
        uint32_t k = 0;
        size_t stages = 0;
    };
    Handover find_handover() const noexcept;
    std::span<const Candidate> check_candidates(std::span<const Candidate> candidates) const;

    SamplingParams params_;
    int32_t n_vocab_;
    uint64_t seed_;
    std::shared_ptr<const DryBreakers> breakers_;
    Handover handover_;
    Random random_;
    History history_;
    Sampled sampled_;
};

}  // namespace metallic
