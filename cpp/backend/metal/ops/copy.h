#pragma once

#include <memory>

#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/preparation.h"

namespace metallic::metal {

std::unique_ptr<Operation> prepare(const SelectStep& step, Preparation& preparation);

// Converts floats between F32 and F16 or BF16, rounding to nearest even.
class Cast {
  public:
    // One of the two is F32.
    Cast(DType from, DType to, Preparation& preparation);
    void encode(Encoder& encoder, const Binding& from, const Binding& to, uint32_t count) const;

  private:
    id<MTLComputePipelineState> pipeline_ = nil;
};

// Copies whole pages of a cache group.
class PageMoves {
  public:
    PageMoves(uint32_t group, Preparation& preparation);
    // `addresses` holds the source and the target of each move. No page is both a source and a target.
    void encode(Encoder& encoder, const Binding& addresses, uint32_t moves) const;

  private:
    const uint32_t group_;
    uint32_t layers_ = 0, page_quads_ = 0;
    id<MTLComputePipelineState> pipeline_ = nil;
};

}  // namespace metallic::metal
