#pragma once

#include <cstdint>
#include <span>

#include "backend/metal/ops/preparation.h"

// The first stages of sampling on the device, so that a few candidates come back instead of a vocabulary of logits. The
// results are bitwise those of the host's chain (Candidates in sampling/candidates.h).
namespace metallic::metal {

// One change of one logit, done in double precision and rounded to a finite float, as the sampler's stages do it. A
// logit of -inf stays.
struct LogitEdit {
    enum class Kind : uint8_t { ban, bias, penalty };
    int32_t token = 0;
    Kind kind = Kind::ban;
    float bias = 0;           // bias: logit + bias
    bool repeated = false;    // penalty: first, if repeated, logit * repetition up to 0, logit / repetition above;
    double repetition = 1.0;  // positive
    double less = 0.0;        // then - less
};

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
    int32_t token;
    float logit;
};

class TopK {
  public:
    TopK(uint32_t vocabulary, uint32_t max_rows, Preparation& preparation);

    // Throws RequestError for what `encode` could not serve; `encode` relies on it.
    void check(std::span<const Selection> selections) const;
    // Candidates per row of such a batch: the greatest k.
    static uint32_t stride(std::span<const Selection> selections) noexcept;
    // Batch memory that `encode` takes for it.
    static uint64_t batch_bytes(std::span<const Selection> selections) noexcept;
    // logits: F32 [rows, vocabulary], changed by the edits; candidates: Candidate [rows, stride(selections)].
    void encode(Encoder& encoder, BatchMemory& memory, const Binding& logits, std::span<const Selection> selections,
                const Binding& candidates) const;

  private:
    // Kernels by round: of a first round, of one in between, and of the last.
    struct Rounds {
        id<MTLComputePipelineState> first = nil, middle = nil, last = nil;
    };
    struct Slab;

    Rounds rounds(const char* kernel, Preparation& preparation) const;
    void encode_edits(Encoder& encoder, BatchMemory& memory, const Binding& logits,
                      std::span<const Selection> selections) const;
    void encode_slab(Encoder& encoder, const Slab& slab) const;

    const uint32_t vocabulary_;
    uint32_t slab_rows_ = 0;  // rows that are worked on at a time, which bounds the scratch
    id<MTLComputePipelineState> edit_ = nil;
    Rounds top_, best_;
    const Binding* scratch_ = nullptr;
};

}  // namespace metallic::metal
