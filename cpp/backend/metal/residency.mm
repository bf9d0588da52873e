#include "backend/metal/residency.h"

#include <algorithm>

namespace metallic::metal {

Residency::Residency([[maybe_unused]] id<MTLDevice> device, [[maybe_unused]] id<MTLCommandQueue> queue) {
#ifdef METALLIC_RESIDENCY_SETS
    if (__builtin_available(macOS 15.0, *)) {
        if (![device respondsToSelector:@selector(newResidencySetWithDescriptor:error:)]) return;
        const auto descriptor = Ref<MTLResidencySetDescriptor*>::adopt([[MTLResidencySetDescriptor alloc] init]);
        [descriptor.get() setLabel:@"metallic"];
        NSError* error = nil;
        set_ = Ref<id>::adopt([device newResidencySetWithDescriptor:descriptor.get() error:&error]);
        if (set_) [queue addResidencySet:set_.get()];
    }
#endif
}

void Residency::add([[maybe_unused]] id<MTLHeap> heap, id<MTLBuffer> whole) {
    const std::lock_guard lock(mutex_);
#ifdef METALLIC_RESIDENCY_SETS
    if (__builtin_available(macOS 15.0, *)) {
        if (set_) {
            [set_.get() addAllocation:heap];
            changed_ = true;
            return;
        }
    }
#endif
    named_.push_back(whole);
}

void Residency::forget(id<MTLBuffer> whole) {
    const std::lock_guard lock(mutex_);
    std::erase(named_, whole);
}

void Residency::remove([[maybe_unused]] id<MTLHeap> heap) {
#ifdef METALLIC_RESIDENCY_SETS
    const std::lock_guard lock(mutex_);
    if (__builtin_available(macOS 15.0, *)) {
        if (set_) [set_.get() removeAllocation:heap];
        changed_ = true;
    }
#endif
}

void Residency::add([[maybe_unused]] id<MTLBuffer> buffer) {
#ifdef METALLIC_RESIDENCY_SETS
    const std::lock_guard lock(mutex_);
    if (__builtin_available(macOS 15.0, *)) {
        if (set_) [set_.get() addAllocation:buffer];
        changed_ = true;
    }
#endif
}

void Residency::remove([[maybe_unused]] id<MTLBuffer> buffer) {
#ifdef METALLIC_RESIDENCY_SETS
    const std::lock_guard lock(mutex_);
    if (__builtin_available(macOS 15.0, *)) {
        if (set_) [set_.get() removeAllocation:buffer];
        changed_ = true;
    }
#endif
}

void Residency::commit() {
#ifdef METALLIC_RESIDENCY_SETS
    const std::lock_guard lock(mutex_);
    if (__builtin_available(macOS 15.0, *)) {
        if (set_ && changed_) [set_.get() commit];
        changed_ = false;
    }
#endif
}

void Residency::use_in(id<MTLComputeCommandEncoder> encoder) const {
    const std::lock_guard lock(mutex_);
    if (named_.empty()) return;
    [encoder useResources:named_.data() count:named_.size() usage:MTLResourceUsageRead | MTLResourceUsageWrite];
}

}  // namespace metallic::metal
