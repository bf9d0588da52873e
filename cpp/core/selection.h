#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>

// The first stages of sampling as a device can do them, so that a few candidates come back instead of a vocabulary of
// logits: the sampler says what is wanted, a backend serves it, the sampler goes on from there.
namespace metallic {

// One change of one logit, done in double precision and rounded to a finite float. A logit of -inf stays.
struct LogitEdit {
    enum class Kind : uint8_t { ban, bias, penalty };
    int32_t token = 0;
    Kind kind = Kind::ban;
    float bias = 0;           // bias: logit + bias
    bool repeated = false;    // penalty: first, if repeated, logit * repetition up to 0, logit / repetition above;
    double repetition = 1.0;  // positive
    double less = 0.0;        // then - less

    static LogitEdit ban_of(int32_t token) noexcept { return {token, Kind::ban, 0, false, 1.0, 0.0}; }
    static LogitEdit bias_of(int32_t token, float bias) noexcept { return {token, Kind::bias, bias, false, 1.0, 0.0}; }
};

// The logit after the edit.
inline float edited(float logit, const LogitEdit& edit) noexcept {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr double kGreatest = std::numeric_limits<float>::max();
    if (edit.kind == LogitEdit::Kind::ban || logit == -kInfinity) return -kInfinity;
    double changed = static_cast<double>(logit);
    if (edit.kind == LogitEdit::Kind::bias) {
        changed += static_cast<double>(edit.bias);
    } else {
        if (edit.repeated) changed = changed <= 0.0 ? changed * edit.repetition : changed / edit.repetition;
        changed -= edit.less;
    }
    return static_cast<float>(std::clamp(changed, -kGreatest, kGreatest));
}

// What is wanted of one row of logits.
struct Selection {
    uint32_t k = 1;                    // candidates, 1 to kMostCandidates
    std::span<const LogitEdit> edits;  // ascending tokens; those of one token in the order in which they apply
    std::span<const uint32_t> mask;    // token i is allowed by bit i % 32 of word i / 32; empty: all are
};
inline constexpr uint32_t kMostCandidates = 256;

// Descending logits, ascending tokens among equals. Where the row has fewer tokens above -inf, the rest have token -1.
// If a logit of the model is NaN or +inf, the first candidate is the first such token, with its logit: the output is
// damaged and nothing may be sampled from it.
struct Candidate {
    int32_t token = -1;
    float logit = -std::numeric_limits<float>::infinity();
};

// Candidates per row where several rows are served together: the greatest k.
inline uint32_t candidate_stride(std::span<const Selection> selections) noexcept {
    uint32_t most = 0;
    for (const Selection& selection : selections) most = std::max(most, selection.k);
    return most;
}

}  // namespace metallic
