#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "backend/allocator.h"
#include "backend/metal/ledger.h"
#include "backend/metal/metal_heap.h"
#include "backend/metal/transfers.h"

namespace metallic::metal {

// What a plan owns beside the arena: constants that its operations made, scratch that they share, and the logits of the
// first submission in flight, which stand for those of all in bindings.
class PlanMemory {
  public:
    PlanMemory(std::shared_ptr<Context> context, Transfers& transfers, std::shared_ptr<Allocator> allocator)
        : context_(std::move(context)),
          transfers_(transfers),
          allocator_(std::move(allocator)),
          scratch_(std::make_unique<Binding>()) {}

    Context& context() const noexcept { return *context_; }
    Transfers& transfers() const noexcept { return transfers_; }

    // Shared memory, held by the view. Throws OutOfMemory.
    std::shared_ptr<const BufferView> take(uint64_t bytes, Tag tag, std::string_view owner);
    Binding bind(const BufferView& view) const;

    Binding keep(std::span<const std::byte> data, std::string_view label);
    void reserve_scratch(uint64_t bytes) noexcept { scratch_bytes_ = std::max(scratch_bytes_, bytes); }
    void allocate_scratch();
    const Binding& scratch() const noexcept { return *scratch_; }
    void reserve_batch(uint64_t bytes) noexcept { batch_bytes_ += (bytes + 31) / 16 * 16; }
    uint64_t batch_bytes() const noexcept { return batch_bytes_; }

    void allocate_logits(uint64_t bytes);
    const Binding& logits() const noexcept { return logits_; }
    const std::shared_ptr<const BufferView>& logits_view() const noexcept { return logits_view_; }

    // For the ledger: memory that is not the plan's own.
    void borrow(const Binding& binding, std::string_view scope);
    const std::vector<Loan>& loans() const noexcept { return loans_; }

  private:
    const std::shared_ptr<Context> context_;
    Transfers& transfers_;
    const std::shared_ptr<Allocator> allocator_;
    std::vector<std::shared_ptr<const BufferView>> constants_;
    std::shared_ptr<const BufferView> scratch_view_, logits_view_;
    const std::unique_ptr<Binding> scratch_;  // where operations look for it
    Binding logits_;
    uint64_t scratch_bytes_ = 0, batch_bytes_ = 0;
    std::vector<Loan> loans_;
};

}  // namespace metallic::metal
