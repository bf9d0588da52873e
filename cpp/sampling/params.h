#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace metallic {

// One stage of the chain. Logit bias and the token mask come before all stages, the draw after all.
enum class SamplingStage : uint8_t {
    Penalties,
    Dry,
    TopNSigma,
    TopK,
    TypicalP,
    TopP,
    MinP,
    Xtc,
    Temperature,
};

// Null when no stage has this name: penalties, dry, top_n_sigma, top_k, typical_p, top_p, min_p, xtc, temperature.
std::optional<SamplingStage> find_sampling_stage(std::string_view name) noexcept;

// The order of llama.cpp's default sampler chain (common_params_sampling::samplers).
std::vector<SamplingStage> default_sampling_order();

// Defaults are llama.cpp's. The value in brackets switches a stage off.
struct SamplingParams {
    double temperature = 0.8;      // >= 0; 0 is greedy: the arg-max after penalties and DRY, all other stages skipped
    int32_t top_k = 40;            // [0]
    double top_p = 0.95;           // [1]
    double min_p = 0.05;           // [0]
    double typical_p = 1.0;        // [1]
    double top_n_sigma = 0.0;      // [0]
    double xtc_probability = 0.0;  // [0]
    double xtc_threshold = 0.1;    // [above 0.5]
    double repetition_penalty = 1.0;                    // [1]
    int32_t repeat_last_n = 64;                         // tokens, -1: all [0]
    double presence_penalty = 0.0;                      // [0]
    double frequency_penalty = 0.0;                     // [0]
    double dry_multiplier = 0.0;                        // [0]
    double dry_base = 1.75;                             // >= 1
    int32_t dry_allowed_length = 2;                     // >= 1
    int32_t dry_penalty_last_n = -1;                    // tokens, -1: all [0]
    int32_t logprobs = -1;                              // alternatives to report; 0: of the chosen token only; -1: none
    std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logit; -inf bans the token
    std::vector<SamplingStage> order = default_sampling_order();  // stages that are not named are not run
};

// Throws RequestError naming the field, its value and the allowed range.
void check(const SamplingParams& params, int32_t n_vocab);

}  // namespace metallic
