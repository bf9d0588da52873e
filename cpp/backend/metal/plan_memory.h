#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "backend/metal/ledger.h"
#include "backend/metal/metal_heap.h"
#include "backend/metal/transfers.h"

namespace metallic::metal {

// What a plan owns beside the arena: constants that its operations made, scratch that they share, and the logits of the
// first submission in flight, which stand for those of all in bindings.
class PlanMemory {
  public:
    PlanMemory(std::shared_ptr<Context> context, Transfers& transfers)
        : context_(std::move(context)), transfers_(transfers), scratch_(std::make_unique<Binding>()) {}

    Context& context() const noexcept { return *context_; }
    Transfers& transfers() const noexcept { return transfers_; }

    Binding keep(std::span<const std::byte> data, std::string_view label);
    void reserve_scratch(uint64_t bytes) noexcept { scratch_bytes_ = std::max(scratch_bytes_, bytes); }
    void allocate_scratch();
    const Binding& scratch() const noexcept { return *scratch_; }
    void reserve_batch(uint64_t bytes) noexcept { batch_bytes_ += (bytes + 31) / 16 * 16; }
    uint64_t batch_bytes() const noexcept { return batch_bytes_; }

    void allocate_logits(uint64_t bytes);
    const Binding& logits() const noexcept { return logits_; }
    const std::shared_ptr<MetalHeap>& logits_heap() const noexcept { return logits_heap_; }

    // For the ledger: memory that is not the plan's own.
    void borrow(const Binding& binding, std::string_view scope);
    const std::vector<Loan>& loans() const noexcept { return loans_; }

  private:
    static constexpr uint64_t kChunkBytes = uint64_t{256} << 10;

    const std::shared_ptr<Context> context_;
    Transfers& transfers_;
    std::vector<std::shared_ptr<MetalHeap>> constants_;
    uint64_t constants_used_ = 0;  // of the last
    std::shared_ptr<MetalHeap> scratch_heap_, logits_heap_;
    const std::unique_ptr<Binding> scratch_;  // where operations look for it
    Binding logits_;
    uint64_t scratch_bytes_ = 0, batch_bytes_ = 0;
    std::vector<Loan> loans_;
};

}  // namespace metallic::metal
