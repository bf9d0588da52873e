#include "backend/metal/plan_memory.h"

#include <algorithm>
#include <cstring>

#include "backend/metal/errors.h"
#include "core/error.h"

namespace metallic::metal {

std::shared_ptr<const BufferView> PlanMemory::take(uint64_t bytes, Tag tag, std::string_view owner) {
    return allocator_->allocate(bytes, Storage::shared, tag, owner, Contents::undefined);
}

Binding PlanMemory::bind(const BufferView& view) const {
    MetalHeap* const heap = metal_heap(view, *context_);
    if (!heap) throw Error("an allocator of another device");
    heap->settle();
    return heap->bind(view.offset, view.bytes);
}

Binding PlanMemory::keep(std::span<const std::byte> data, std::string_view label) {
    const AutoreleasePool pool;
    constants_.push_back(take(std::max<uint64_t>(data.size(), 1), Tag::weights, "plan/constants"));
    const BufferView& view = *constants_.back();
    if (!data.empty()) std::memcpy(view.host(), data.data(), data.size());
    const Binding kept = bind(view);
    [kept.buffer addDebugMarker:to_ns_string(label).get() range:NSMakeRange(kept.offset, kept.bytes)];
    return kept.at(0, data.size());
}

void PlanMemory::allocate_scratch() {
    if (scratch_bytes_ == 0) return;
    scratch_view_ =
        allocator_->allocate(scratch_bytes_, Storage::exclusive, Tag::activations, "plan/scratch", Contents::undefined);
    *scratch_ = bind(*scratch_view_);
}

void PlanMemory::allocate_logits(uint64_t bytes) {
    logits_view_ = take(bytes, Tag::activations, "plan/logits");
    logits_ = bind(*logits_view_);
}

void PlanMemory::borrow(const Binding& binding, std::string_view scope) {
    if (!context_->ledger().kept()) return;
    const uint64_t begin = [binding.buffer gpuAddress] + binding.offset;
    loans_.push_back({begin, begin + binding.bytes, std::string(scope)});
}

}  // namespace metallic::metal
