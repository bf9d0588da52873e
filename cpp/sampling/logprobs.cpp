#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "core/error.h"
#include "sampling/vector_math.h"

namespace metallic {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

void Logprobs::assign(std::span<const float> logits) {
    logits_ = logits;
    const size_t whole = logits.size() / kRun;
    const size_t runs = round_up_to_run(logits.size()) / kRun;
    run_maxima_.resize(runs);
    padding_.assign(kRun, -kInfinity);
    std::copy(logits.begin() + static_cast<ptrdiff_t>(whole * kRun), logits.end(), padding_.begin());
    const auto run_at = [&](size_t run) { return run < whole ? logits.data() + run * kRun : padding_.data(); };

    float max = -kInfinity;
    for (size_t run = 0; run < runs; ++run) {
        if (!run_below_infinity(run_at(run))) {
            throw DeviceError("a logit is NaN or +inf: the model's output is damaged", "sampling", "NaN or +inf");
        }
        run_maxima_[run] = run_max(run_at(run));
        max = std::max(max, run_maxima_[run]);
    }
    if (max == -kInfinity) throw DeviceError("every logit is -inf: the model's output is damaged", "sampling", "-inf");
    double total = 0.0;
    for (size_t run = 0; run < runs; ++run) total += run_mass(run_at(run), max, 1.0f);
    normaliser_ = static_cast<double>(max) + std::log(total);
}

float Logprobs::of(int32_t token) const noexcept {
    return static_cast<float>(static_cast<double>(logits_[static_cast<size_t>(token)]) - normaliser_);
}

void Logprobs::top(size_t n, std::vector<TokenLogprob>& out) {
    out.clear();
    n = std::min(n, logits_.size());
    if (n == 0) return;
    float least = -kInfinity;  // a lower bound of the n-th greatest: n runs have a maximum of at least this
    if (n <= run_maxima_.size()) {
        sorted_maxima_.assign(run_maxima_.begin(), run_maxima_.end());
        const auto nth = sorted_maxima_.begin() + static_cast<ptrdiff_t>(n) - 1;
        std::nth_element(sorted_maxima_.begin(), nth, sorted_maxima_.end(), std::greater<float>());
        least = *nth;
    }
    const auto better = [](const TokenLogprob& a, const TokenLogprob& b) {
        return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
    };
    for (size_t run = 0; run < run_maxima_.size();
         ++run) {  // `out` is a heap of the best so far, the worst of them first
        if (run_maxima_[run] < least) continue;
        const size_t end = std::min(logits_.size(), (run + 1) * kRun);
        for (size_t i = run * kRun; i < end; ++i) {
            if (logits_[i] < least || (out.size() == n && logits_[i] <= out.front().logprob)) continue;
            if (out.size() == n) {
                std::pop_heap(out.begin(), out.end(), better);
                out.pop_back();
            }
            out.push_back({static_cast<int32_t>(i), logits_[i]});
            std::push_heap(out.begin(), out.end(), better);
        }
    }
    std::sort_heap(out.begin(), out.end(), better);
    for (TokenLogprob& entry : out) entry.logprob = of(entry.token);
}

}  // namespace metallic
