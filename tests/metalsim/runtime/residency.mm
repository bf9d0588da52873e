#include <algorithm>

#include "runtime/events.h"
#include "runtime/memory.h"
#include "runtime/objects.h"

// Residency sets: what is added or removed counts from the next commit on.

using metalsim::AllocationState;
using metalsim::ResidencyState;

namespace metalsim {

std::shared_ptr<const Resident> ResidencyState::get() {
    const std::lock_guard lock(mutex);
    return committed;
}

}  // namespace metalsim

namespace {

bool contains(const ResidencyState& set, id<MTLAllocation> allocation) {
    return std::any_of(set.pending.begin(), set.pending.end(),
                       [&](const auto& held) { return held.get() == allocation; });
}

}  // namespace

@implementation MetalsimResidencySet
- (id<MTLDevice>)device {
    return metalsim::state<ResidencyState>(self).device;
}
- (NSString*)label {
    return metalsim::state<ResidencyState>(self).label.get();
}
- (uint64_t)allocatedSize {
    uint64_t bytes = 0;
    for (const auto& entry : metalsim::state<ResidencyState>(self).get()->entries) bytes += entry.bytes;
    return bytes;
}
- (void)requestResidency {
}
- (void)endResidency {
}
- (void)addAllocation:(id<MTLAllocation>)allocation {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    const std::lock_guard lock(set.mutex);
    if (!contains(set, allocation)) set.pending.emplace_back(allocation);
}
- (void)addAllocations:(const id<MTLAllocation>[])allocations count:(NSUInteger)count {
    for (NSUInteger i = 0; i < count; ++i) [self addAllocation:allocations[i]];
}
- (void)removeAllocation:(id<MTLAllocation>)allocation {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    std::vector<metalsim::Ref<id<MTLAllocation>>> gone;  // released outside of the lock
    const std::lock_guard lock(set.mutex);
    for (auto& held : set.pending) {
        if (held.get() == allocation) std::swap(gone.emplace_back(), held);
    }
    std::erase_if(set.pending, [](const auto& held) { return !held; });
}
- (void)removeAllocations:(const id<MTLAllocation>[])allocations count:(NSUInteger)count {
    for (NSUInteger i = 0; i < count; ++i) [self removeAllocation:allocations[i]];
}
- (void)removeAllAllocations {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    std::vector<metalsim::Ref<id<MTLAllocation>>> gone;
    const std::lock_guard lock(set.mutex);
    gone.swap(set.pending);
}
- (BOOL)containsAllocation:(id<MTLAllocation>)anAllocation {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    const std::lock_guard lock(set.mutex);
    return contains(set, anAllocation);
}
- (NSArray<id<MTLAllocation>>*)allAllocations {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    const std::lock_guard lock(set.mutex);
    std::vector<id> all;
    for (const auto& held : set.pending) all.push_back(held.get());
    return [NSArray arrayWithObjects:all.data() count:all.size()];
}
- (NSUInteger)allocationCount {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    const std::lock_guard lock(set.mutex);
    return set.pending.size();
}
- (void)commit {
    ResidencyState& set = metalsim::state<ResidencyState>(self);
    auto now = std::make_shared<metalsim::Resident>();
    std::shared_ptr<const metalsim::Resident> before;
    const std::lock_guard lock(set.mutex);
    for (const auto& held : set.pending) {
        const AllocationState& of = metalsim::state<AllocationState>(held.get());
        now->entries.push_back({of.region, of.bytes, held});
    }
    before = std::exchange(set.committed, std::move(now));
}
@end
