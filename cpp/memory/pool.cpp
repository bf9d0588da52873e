#include "memory/pool.h"

#include <algorithm>

#include "core/error.h"

namespace metallic {

const char* tag_name(Tag tag) noexcept {
    static constexpr const char* kNames[kTags] = {"weights", "kv", "activations", "staging"};
    return kNames[static_cast<int>(tag)];
}

uint64_t PoolStatistics::current() const noexcept {
    uint64_t sum = 0;
    for (const TagUse& use : tags) sum += use.current;
    return sum;
}

PoolStatistics& PoolStatistics::operator+=(const PoolStatistics& other) noexcept {
    for (size_t i = 0; i < tags.size(); ++i) {
        tags[i].current += other.tags[i].current;
        tags[i].peak += other.tags[i].peak;
        tags[i].allocations += other.tags[i].allocations;
    }
    heaps += other.heaps;
    heap_bytes += other.heap_bytes;
    mapped_bytes += other.mapped_bytes;
    free_bytes += other.free_bytes;
    largest_free = std::max(largest_free, other.largest_free);
    return *this;
}

double PoolStatistics::fragmentation() const noexcept {
    return free_bytes == 0 ? 0.0 : 1.0 - static_cast<double>(largest_free) / static_cast<double>(free_bytes);
}

Allocation& Allocation::operator=(Allocation&& other) noexcept {
    if (this == &other) return *this;
    reset();
    pool_ = std::exchange(other.pool_, nullptr);
    view_ = std::exchange(other.view_, {});
    reserved_ = other.reserved_;
    elements_ = other.elements_;
    heap_ = other.heap_;
    dtype_ = other.dtype_;
    tag_ = other.tag_;
    return *this;
}

void Allocation::reset() noexcept {
    if (!pool_) return;
    pool_->release(*this);
    pool_ = nullptr;
    view_ = {};
}

Pool::Pool(std::shared_ptr<Backend> backend, uint64_t budget) : backend_(std::move(backend)) {
    statistics_.budget = budget;
}

Pool::~Pool() = default;

Allocation Pool::allocate(DType dtype, uint64_t elements, Tag tag, std::string_view owner) {
    const DTypeInfo& info = dtype_info(dtype);
    if (elements % info.block_elements != 0)
        throw Error("allocation of part of a " + std::string(info.name) + " block");
    Allocation allocation = allocate_bytes(elements / info.block_elements * info.block_bytes, tag, owner);
    allocation.dtype_ = dtype;
    allocation.elements_ = elements;
    return allocation;
}

Allocation Pool::allocate_bytes(uint64_t bytes, Tag tag, std::string_view owner, Storage storage) {
    const uint64_t reserved = std::max<uint64_t>(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (reserved < bytes) throw OutOfMemory("an allocation of impossible size", bytes, 0, std::string(owner));
    const std::lock_guard lock(mutex_);
    Allocation allocation = place(reserved, owner, storage);
    allocation.pool_ = this;
    allocation.view_.bytes = bytes;
    allocation.reserved_ = reserved;
    allocation.elements_ = bytes;
    allocation.tag_ = tag;
    TagUse& use = statistics_.tags[static_cast<int>(tag)];
    use.current += reserved;
    use.peak = std::max(use.peak, use.current);
    ++use.allocations;
    return allocation;
}

// A part of a heap that others share, or a heap of its own for a large one.
Allocation Pool::place(uint64_t reserved, std::string_view owner, Storage storage) {
    Allocation allocation;
    const auto set = [&](uint32_t heap, uint64_t offset) {
        allocation.heap_ = heap;
        allocation.view_ = {heaps_[heap].heap.get(), offset, reserved};
    };
    if (reserved > kHeapBytes / 2) {
        set(add_heap(reserved, owner, storage, false), 0);
        return allocation;
    }
    for (uint32_t i = 0; i < heaps_.size(); ++i) {
        Slot& slot = heaps_[i];
        if (!slot.heap || !slot.ranges || slot.heap->storage() != storage) continue;
        const auto offset = slot.ranges->take(reserved);
        if (!offset) continue;
        set(i, *offset);
        try {
            backend_->check_idle(allocation.view_, owner);
        } catch (...) {
            slot.ranges->give(*offset, reserved);
            throw;
        }
        return allocation;
    }
    const uint32_t added = add_heap(divided_heap_bytes(reserved), owner, storage, true);
    set(added, *heaps_[added].ranges->take(reserved));
    return allocation;
}

// A full heap, or what the budget leaves of one.
uint64_t Pool::divided_heap_bytes(uint64_t needed) const noexcept {
    if (statistics_.budget == 0) return kHeapBytes;
    const uint64_t used = statistics_.heap_bytes;
    const uint64_t left = used < statistics_.budget ? statistics_.budget - used : 0;
    return std::clamp(left / kAlignment * kAlignment, needed, kHeapBytes);
}

uint32_t Pool::add_heap(uint64_t bytes, std::string_view owner, Storage storage, bool divided) {
    const uint64_t budget = statistics_.budget;
    if (budget && (bytes > budget || statistics_.heap_bytes > budget - bytes)) drop_empty_heaps();
    const uint64_t used = statistics_.heap_bytes;
    if (budget && (bytes > budget || used > budget - bytes)) {
        const uint64_t available = used < budget ? budget - used : 0;
        throw OutOfMemory("the memory budget of " + std::to_string(budget) + " bytes is used up", bytes, available,
                          std::string(owner));
    }
    Slot slot{backend_->create_heap(bytes, storage, owner), divided ? std::make_unique<FreeList>(bytes) : nullptr};
    statistics_.heap_bytes += bytes;
    ++statistics_.heaps;
    const auto hole = std::find_if(heaps_.begin(), heaps_.end(), [](const Slot& s) { return !s.heap; });
    if (hole == heaps_.end()) {
        heaps_.push_back(std::move(slot));
        return static_cast<uint32_t>(heaps_.size() - 1);
    }
    *hole = std::move(slot);
    return static_cast<uint32_t>(hole - heaps_.begin());
}

void Pool::release(Allocation& allocation) noexcept {
    const std::lock_guard lock(mutex_);
    statistics_.tags[static_cast<int>(allocation.tag_)].current -= allocation.reserved_;
    Slot& slot = heaps_[allocation.heap_];
    if (slot.ranges) {
        slot.ranges->give(allocation.view_.offset, allocation.reserved_);
        if (slot.ranges->free_bytes() < slot.heap->bytes()) return;
        // One empty heap is kept, so that a run after a run allocates nothing.
        const auto empty = std::count_if(heaps_.begin(), heaps_.end(), [](const Slot& s) {
            return s.heap && s.ranges && s.ranges->free_bytes() == s.heap->bytes();
        });
        if (empty <= 1) return;
    }
    drop(slot);
}

void Pool::drop(Slot& slot) noexcept {
    statistics_.heap_bytes -= slot.heap->bytes();
    --statistics_.heaps;
    slot = Slot{};
}

void Pool::drop_empty_heaps() noexcept {
    for (Slot& slot : heaps_) {
        if (slot.heap && slot.ranges && slot.ranges->free_bytes() == slot.heap->bytes()) drop(slot);
    }
}

void Pool::count_mapped(uint64_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    TagUse& use = statistics_.tags[static_cast<int>(Tag::weights)];
    use.current += bytes;
    use.peak = std::max(use.peak, use.current);
    ++use.allocations;
    statistics_.mapped_bytes += bytes;
}

PoolStatistics Pool::statistics() const {
    const std::lock_guard lock(mutex_);
    PoolStatistics result = statistics_;
    for (const Slot& slot : heaps_) {
        if (!slot.ranges) continue;
        result.free_bytes += slot.ranges->free_bytes();
        result.largest_free = std::max(result.largest_free, slot.ranges->largest());
    }
    return result;
}

}  // namespace metallic
