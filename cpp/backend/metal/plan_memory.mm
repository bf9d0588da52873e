#include "backend/metal/plan_memory.h"

#include <algorithm>
#include <cstring>

#include "backend/metal/errors.h"

namespace metallic::metal {

Binding PlanMemory::keep(std::span<const std::byte> data, std::string_view label) {
    const AutoreleasePool pool;
    const uint64_t bytes = (std::max<uint64_t>(data.size(), 1) + 255) / 256 * 256;
    if (constants_.empty() || constants_.back()->bytes() - constants_used_ < bytes) {
        constants_.push_back(allocate_heap(context_, std::max(bytes, kChunkBytes), Storage::shared, "metal/constants",
                                           Contents::undefined));
        constants_used_ = 0;
    }
    MetalHeap& heap = *constants_.back();
    if (!data.empty()) std::memcpy(heap.host() + constants_used_, data.data(), data.size());
    const Binding kept = heap.bind(constants_used_, data.size());
    [kept.buffer addDebugMarker:to_ns_string(label).get() range:NSMakeRange(kept.offset, bytes)];
    constants_used_ += bytes;
    return kept;
}

void PlanMemory::allocate_scratch() {
    if (scratch_bytes_ == 0) return;
    scratch_heap_ = allocate_heap(context_, scratch_bytes_, Storage::exclusive, "metal/scratch", Contents::undefined);
    *scratch_ = scratch_heap_->bind(0, scratch_bytes_);
}

void PlanMemory::allocate_logits(uint64_t bytes) {
    logits_heap_ = allocate_heap(context_, bytes, Storage::shared, "metal/logits", Contents::undefined);
    logits_ = logits_heap_->bind(0, bytes);
}

void PlanMemory::borrow(const Binding& binding, std::string_view scope) {
    if (!context_->ledger().kept()) return;
    const uint64_t begin = [binding.buffer gpuAddress] + binding.offset;
    loans_.push_back({begin, begin + binding.bytes, std::string(scope)});
}

}  // namespace metallic::metal
