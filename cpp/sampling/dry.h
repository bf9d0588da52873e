#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/selection.h"
#include "sampling/params.h"

namespace metallic {

// The token sequences across which DRY does not look for repeats. Immutable, so that many samplers may share one.
class DryBreakers {
  public:
    // Throws RequestError for an empty sequence or an id outside 0 <= id < n_vocab.
    DryBreakers(int32_t n_vocab, const std::vector<std::vector<int32_t>>& sequences);

    int32_t n_vocab() const noexcept { return n_vocab_; }
    // Whether the token alone is a breaker.
    bool contains(int32_t token) const noexcept { return bit(single_, token); }
    // How many tokens at the end of `window` follow its last breaker; all of them when it has none.
    size_t tokens_after_last(std::span<const int32_t> window) const noexcept;

  private:
    struct Tail {
        int32_t head;
        uint32_t begin;
        uint32_t size;
    };
    static bool bit(const std::vector<uint64_t>& bits, int32_t token) noexcept {
        return bits[static_cast<size_t>(token) / 64] >> (static_cast<size_t>(token) % 64) & 1;
    }
    // The length of the longest breaker whose first token is `window[at]`; 0 for none.
    size_t match(std::span<const int32_t> window, size_t at) const noexcept;

    int32_t n_vocab_;
    std::vector<uint64_t> heads_;
    std::vector<uint64_t> single_;
    std::vector<Tail> tails_;  // ascending heads
    std::vector<int32_t> tail_tokens_;
};

// Buffers that DRY reuses from call to call.
struct DryScratch {
    std::vector<int32_t> match_lengths;
    std::vector<int32_t> longest;  // per token of the vocabulary; zero between calls
    std::vector<int32_t> touched;
};

// DRY, "don't repeat yourself" (P. E. Weidmann, text-generation-webui #5637; the multi-token breakers and the clamp as
// in llama.cpp's llama_sampler_dry): a token that would lengthen a repeat of n >= allowed_length tokens at the end of
// the window to n + 1 loses multiplier * base^(n - allowed_length). Repeats do not reach across a breaker, and a token
// that is a breaker by itself is never penalised. Appends one edit for each penalised token.
void append_dry(const SamplingParams& params, const DryBreakers* breakers, std::span<const int32_t> history,
                int32_t n_vocab, DryScratch& scratch, std::vector<LogitEdit>& edits);

}  // namespace metallic
