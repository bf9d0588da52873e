#pragma once

#include <cstdint>
#include <span>

#include "backend/metal/ops/preparation.h"
#include "core/selection.h"

// Candidates of rows of logits; see core/selection.h. The results are bitwise those of the host's chain (Candidates in
// sampling/candidates.h).
namespace metallic::metal {

class TopK {
  public:
    TopK(uint32_t vocabulary, uint32_t max_rows, Preparation& preparation);

    // Batch memory that `encode` takes.
    static uint64_t batch_bytes(std::span<const Selection> selections) noexcept;
    // logits: F32 [rows, vocabulary], changed by the edits; candidates: Candidate [rows, candidate_stride(selections)].
    // Relies on what check_selections checks.
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
    uint64_t scratch_bytes_ = 0;  // which bounds the rows that are worked on at a time
    id<MTLComputePipelineState> edit_ = nil;
    Rounds top_, best_;
    const Binding* scratch_ = nullptr;
};

}  // namespace metallic::metal
