#include "backend/cpu/ops/sampling.h"

#include <algorithm>
#include <limits>

namespace metallic::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kBlock = 256;  // tokens that are passed over at once when none of them can be chosen
constexpr size_t kLanes = 16;

bool better(const Candidate& a, const Candidate& b) noexcept {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// The greatest of the block; +inf when one is NaN or +inf. In lanes, since a chain of comparisons is slow.
float block_max(const float* logits, size_t count) noexcept {
    float best[kLanes];
    int32_t damaged[kLanes] = {};
    std::fill(best, best + kLanes, -kInfinity);
    const auto take = [&](size_t lane, float logit) {
        best[lane] = logit > best[lane] ? logit : best[lane];
        damaged[lane] |= !(logit < kInfinity);
    };
    size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (size_t lane = 0; lane < kLanes; ++lane) take(lane, logits[i + lane]);
    }
    for (; i < count; ++i) take(i % kLanes, logits[i]);
    float greatest = -kInfinity;
    for (size_t lane = 0; lane < kLanes; ++lane) greatest = std::max(greatest, damaged[lane] ? kInfinity : best[lane]);
    return greatest;
}

// The best so far, in their order.
class Best {
  public:
    explicit Best(std::span<Candidate> places) noexcept : places_(places) {}

    // Whether a later token with this logit can still be one of them.
    bool wants(float logit) const noexcept { return logit > least_; }
    void add(Candidate candidate) noexcept {
        if (count_ < places_.size()) ++count_;
        const auto end = places_.begin() + static_cast<ptrdiff_t>(count_) - 1;
        const auto at = std::upper_bound(places_.begin(), end, candidate, better);
        std::move_backward(at, end, end + 1);
        *at = candidate;
        if (count_ == places_.size()) least_ = places_.back().logit;
    }

  private:
    std::span<Candidate> places_;
    size_t count_ = 0;
    float least_ = -kInfinity;
};

}  // namespace

void select_candidates(std::span<float> logits, const Selection& selection, std::span<Candidate> out) noexcept {
    std::fill(out.begin(), out.end(), Candidate{});
    for (const LogitEdit& edit : selection.edits) {
        float& logit = logits[static_cast<size_t>(edit.token)];
        if (logit < kInfinity) logit = edited(logit, edit);  // damage stays
    }
    const auto allowed = [&](size_t i) {
        return selection.mask.empty() || (selection.mask[i / 32] >> (i % 32) & 1) != 0;
    };
    Best best(out.first(selection.k));
    for (size_t first = 0; first < logits.size(); first += kBlock) {
        const size_t end = std::min(first + kBlock, logits.size());
        const float greatest = block_max(logits.data() + first, end - first);
        if (greatest < kInfinity && !best.wants(greatest)) continue;
        for (size_t i = first; i < end; ++i) {
            const Candidate candidate{static_cast<int32_t>(i), logits[i]};
            if (!(candidate.logit < kInfinity)) {
                out[0] = candidate;
                return;
            }
            if (best.wants(candidate.logit) && allowed(i)) best.add(candidate);
        }
    }
}

}  // namespace metallic::cpu
