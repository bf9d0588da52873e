#include "sampling/params.h"

#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"

namespace metallic {
namespace {

constexpr std::array<std::string_view, 9> kStageNames{"penalties", "dry",   "top_n_sigma", "top_k",      "typical_p",
                                                      "top_p",     "min_p", "xtc",         "temperature"};
constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check_range(const char* field, double value, double low, double high, const char* range) {
    if (value >= low && value <= high && std::isfinite(value)) return;  // a NaN fails both comparisons
    throw RequestError(std::string(field) + " = " + std::to_string(value) + " is out of range: must be " + range);
}

void check_bias(const SamplingParams& params, int32_t n_vocab) {
    for (const auto& [token, bias] : params.logit_bias) {
        if (token < 0 || token >= n_vocab) {
            throw RequestError("logit_bias names token " + std::to_string(token) + ", but ids run from 0 to " +
                               std::to_string(n_vocab - 1));
        }
        if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity()) {
            throw RequestError("logit_bias of token " + std::to_string(token) + " is " + std::to_string(bias) +
                               ": must be a finite number, or -inf to ban the token");
        }
    }
}

}  // namespace

std::optional<SamplingStage> find_sampling_stage(std::string_view name) noexcept {
    for (size_t i = 0; i < kStageNames.size(); ++i) {
        if (kStageNames[i] == name) return static_cast<SamplingStage>(i);
    }
    return std::nullopt;
}

std::vector<SamplingStage> default_sampling_order() {
    std::vector<SamplingStage> order;
    order.reserve(kStageNames.size());
    for (size_t i = 0; i < kStageNames.size(); ++i) order.push_back(static_cast<SamplingStage>(i));
    return order;
}

void check(const SamplingParams& params, int32_t n_vocab) {
    if (n_vocab < 1)
        throw RequestError("n_vocab = " + std::to_string(n_vocab) + " is out of range: must be at least 1");
    check_range("temperature", params.temperature, 0.0, kInfinity, "finite and at least 0");
    check_range("top_k", params.top_k, 0.0, kInfinity, "at least 0");
    check_range("top_p", params.top_p, 0.0, 1.0, "from 0 to 1");
    check_range("min_p", params.min_p, 0.0, 1.0, "from 0 to 1");
    check_range("typical_p", params.typical_p, 0.0, 1.0, "from 0 to 1");
    check_range("top_n_sigma", params.top_n_sigma, 0.0, kInfinity, "finite and at least 0");
    check_range("xtc_probability", params.xtc_probability, 0.0, 1.0, "from 0 to 1");
    check_range("xtc_threshold", params.xtc_threshold, 0.0, 1.0, "from 0 to 1");
    check_range("repetition_penalty", params.repetition_penalty, 1e-3, 1e3, "from 0.001 to 1000");
    check_range("repeat_last_n", params.repeat_last_n, -1.0, kInfinity, "at least -1");
    check_range("presence_penalty", params.presence_penalty, -2.0, 2.0, "from -2 to 2");
    check_range("frequency_penalty", params.frequency_penalty, -2.0, 2.0, "from -2 to 2");
    check_range("dry_multiplier", params.dry_multiplier, 0.0, kInfinity, "finite and at least 0");
    check_range("dry_base", params.dry_base, 1.0, kInfinity, "finite and at least 1");
    check_range("dry_allowed_length", params.dry_allowed_length, 1.0, kInfinity, "at least 1");
    check_range("dry_penalty_last_n", params.dry_penalty_last_n, -1.0, kInfinity, "at least -1");
    check_range("logprobs", params.logprobs, -1.0, n_vocab, "from -1 to the size of the vocabulary");
    check_bias(params, n_vocab);
    uint32_t seen = 0;
    for (const SamplingStage stage : params.order) {
        const uint32_t bit = 1u << static_cast<uint32_t>(stage);
        if (seen & bit) {
            throw RequestError("order names the stage '" + std::string(kStageNames[static_cast<size_t>(stage)]) +
                               "' twice");
        }
        seen |= bit;
    }
}

}  // namespace metallic
