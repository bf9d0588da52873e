#include "sampling/dry.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"

namespace metallic {
namespace {

// base^exponent for base >= 1; by squaring, since std::pow is not the same everywhere. Overflow gives infinity.
double integer_power(double base, int32_t exponent) noexcept {
    double result = 1.0;
    for (; exponent > 0; exponent >>= 1) {
        if (exponent & 1) result *= base;
        base *= base;
    }
    return result;
}

// lengths[k]: how many tokens before and at position n - 1 - k equal those at the end of the window. This is the
// Z-function (Gusfield, "Algorithms on Strings, Trees and Sequences", 1.4) of the window read backwards: linear time.
void match_suffixes(std::span<const int32_t> window, std::vector<int32_t>& lengths) {
    const size_t n = window.size();
    const auto backwards = [&](size_t i) { return window[n - 1 - i]; };
    lengths.resize(n);
    size_t left = 0;
    size_t right = 0;  // window positions left <= i < right are known to repeat the start
    for (size_t k = 1; k < n; ++k) {
        size_t length = 0;
        if (k < right) length = std::min(right - k, static_cast<size_t>(lengths[k - left]));
        while (k + length < n && backwards(length) == backwards(k + length)) ++length;
        if (k + length > right) {
            left = k;
            right = k + length;
        }
        lengths[k] = static_cast<int32_t>(length);
    }
}

std::span<const int32_t> last(std::span<const int32_t> tokens, int32_t n) noexcept {
    if (n < 0 || static_cast<size_t>(n) >= tokens.size()) return tokens;
    return tokens.last(static_cast<size_t>(n));
}

}  // namespace

DryBreakers::DryBreakers(int32_t n_vocab, const std::vector<std::vector<int32_t>>& sequences) : n_vocab_(n_vocab) {
    if (n_vocab < 1)
        throw RequestError("n_vocab = " + std::to_string(n_vocab) + " is out of range: must be at least 1");
    const size_t words = static_cast<size_t>(n_vocab) / 64 + 1;
    heads_.assign(words, 0);
    single_.assign(words, 0);
    for (const std::vector<int32_t>& sequence : sequences) {
        if (sequence.empty()) throw RequestError("a DRY sequence breaker is empty: it must hold at least one token");
        for (const int32_t token : sequence) {
            if (token >= 0 && token < n_vocab) continue;
            throw RequestError("a DRY sequence breaker names token " + std::to_string(token) +
                               ", but ids run from 0 to " + std::to_string(n_vocab - 1));
        }
        const size_t head = static_cast<size_t>(sequence[0]);
        heads_[head / 64] |= uint64_t{1} << head % 64;
        if (sequence.size() == 1) {
            single_[head / 64] |= uint64_t{1} << head % 64;
            continue;
        }
        tails_.push_back(
            {sequence[0], static_cast<uint32_t>(tail_tokens_.size()), static_cast<uint32_t>(sequence.size() - 1)});
        tail_tokens_.insert(tail_tokens_.end(), sequence.begin() + 1, sequence.end());
    }
    std::sort(tails_.begin(), tails_.end(), [](const Tail& a, const Tail& b) { return a.head < b.head; });
}

size_t DryBreakers::match(std::span<const int32_t> window, size_t at) const noexcept {
    const int32_t head = window[at];
    if (!bit(heads_, head)) return 0;
    size_t longest = bit(single_, head) ? 1 : 0;
    const auto before = [](const Tail& tail, int32_t token) { return tail.head < token; };
    auto tail = std::lower_bound(tails_.begin(), tails_.end(), head, before);
    for (; tail != tails_.end() && tail->head == head; ++tail) {
        if (at + tail->size >= window.size()) continue;
        const auto first = tail_tokens_.begin() + tail->begin;
        if (std::equal(first, first + tail->size, window.begin() + static_cast<ptrdiff_t>(at) + 1)) {
            longest = std::max(longest, static_cast<size_t>(tail->size) + 1);
        }
    }
    return longest;
}

size_t DryBreakers::tokens_after_last(std::span<const int32_t> window) const noexcept {
    for (size_t after = 0; after < window.size(); ++after) {
        const size_t at = window.size() - 1 - after;
        const size_t length = match(window, at);
        if (length) return after + 1 - length;
    }
    return window.size();
}

void append_dry(const SamplingParams& params, const DryBreakers* breakers, std::span<const int32_t> history,
                int32_t n_vocab, DryScratch& scratch, std::vector<LogitEdit>& edits) {
    constexpr double kMost = 1e39;  // takes any float to the least one
    const std::span<const int32_t> window = last(history, params.dry_penalty_last_n);
    const size_t limit = breakers ? breakers->tokens_after_last(window) : window.size();
    if (limit < static_cast<size_t>(params.dry_allowed_length)) return;

    match_suffixes(window, scratch.match_lengths);
    if (scratch.longest.size() < static_cast<size_t>(n_vocab)) scratch.longest.resize(static_cast<size_t>(n_vocab), 0);
    for (size_t k = 1; k < window.size(); ++k) {
        const int32_t length = std::min(scratch.match_lengths[k], static_cast<int32_t>(limit));
        if (length < params.dry_allowed_length) continue;
        const int32_t next = window[window.size() - k];  // what followed the earlier occurrence
        int32_t& longest = scratch.longest[static_cast<size_t>(next)];
        if (longest == 0) scratch.touched.push_back(next);
        longest = std::max(longest, length);
    }
    for (const int32_t token : scratch.touched) {
        int32_t& longest = scratch.longest[static_cast<size_t>(token)];
        if (!breakers || !breakers->contains(token)) {
            const double penalty =
                params.dry_multiplier * integer_power(params.dry_base, longest - params.dry_allowed_length);
            edits.push_back({token, LogitEdit::Kind::penalty, 0, false, 1.0, std::min(penalty, kMost)});
        }
        longest = 0;
    }
    scratch.touched.clear();
}

}  // namespace metallic
