#include "memory/heap_set.h"

#include <algorithm>

#include "core/error.h"
#include "memory/pool.h"

namespace metallic {
namespace {

constexpr uint64_t kLargest = Pool::kHeapBytes / 2;  // of allocations that share a heap

}  // namespace

HeapSet::HeapSet(Backend& backend, Budget& budget, uint64_t grace_ns)
    : backend_(backend),
      budget_(budget),
      grace_ns_(grace_ns),
      arenas_{Arena{Tlsf(Pool::kAlignment)}, Arena{Tlsf(Pool::kAlignment)}, Arena{Tlsf(Pool::kAlignment)},
              Arena{Tlsf(Pool::kAlignment)}} {}

HeapSet::~HeapSet() {
    budget_.give(bytes_);
}

HeapSet::Arena& HeapSet::arena_of(const Request& request) noexcept {
    return arenas_[(request.storage == Storage::exclusive ? 2 : 0) + (request.tag == Tag::kv ? 1 : 0)];
}

bool HeapSet::take(const Request& request, Place& place) {
    if (request.bytes > kLargest) return take_whole(request, place);
    if (const auto block = arena_of(request).blocks.take(request.bytes)) {
        enter(request, *block, place);
        return true;
    }
    return grow(request, place);
}

void HeapSet::count(Slot& slot, const Request& request) noexcept {
    empty_ -= slot.used == 0;
    slot.used += request.bytes;
    slot.tags[static_cast<size_t>(request.tag)] += request.bytes;
    ++slot.allocations;
}

// Memory that was in use must be idle; the ledger of a debug build knows.
void HeapSet::enter(const Request& request, const Tlsf::Block& block, Place& place) {
    Slot& slot = slots_[block.region];
    place.heap = block.region;
    place.node = block.node;
    place.id = slot.id;
    place.view = {slot.heap.get(), block.offset, request.bytes};
    place.zero = block.fresh && slot.zero;
    if (!block.fresh) {
        try {
            backend_.check_idle(place.view, request.owner);
        } catch (...) {
            arenas_[slot.arena].blocks.give(block.node);
            throw;
        }
    }
    count(slot, request);
}

// A heap more; where the budget is used up, whatever is free in any heap will do. Slabs of keys and values are alike: a
// heap of whole ones has no rest that the budget counts and nobody can use.
bool HeapSet::grow(const Request& request, Place& place) {
    Arena& arena = arena_of(request);
    const uint64_t growth = std::max(std::clamp(arena.bytes, Pool::kFirstHeapBytes, Pool::kHeapBytes), request.bytes);
    const uint64_t step = request.tag == Tag::kv ? request.bytes : Pool::kAlignment;
    const auto own = static_cast<uint32_t>(&arena - arenas_.data());
    add_heap(request, growth / step * step, step, own);
    for (const uint32_t index : {own, own ^ 1}) {
        const auto block = arenas_[index].blocks.take_any(request.bytes);
        if (!block) continue;
        enter(request, *block, place);
        return true;
    }
    return false;
}

void HeapSet::enter_whole(const Request& request, uint32_t index, Place& place) {
    Slot& slot = slots_[index];
    place = {index, 0, slot.id, {slot.heap.get(), 0, request.bytes}, !slot.touched && slot.zero};
    if (slot.touched) backend_.check_idle(place.view, request.owner);
    slot.touched = true;
    count(slot, request);
}

// An empty heap that is little larger will do.
bool HeapSet::take_whole(const Request& request, Place& place) {
    uint32_t best = kWhole;
    for (uint32_t i = 0; empty_ > 0 && i < slots_.size(); ++i) {
        const Slot& slot = slots_[i];
        if (!slot.heap || slot.arena != kWhole || slot.used || slot.draining) continue;
        if (slot.heap->storage() != request.storage) continue;
        const uint64_t bytes = slot.heap->bytes();
        if (bytes < request.bytes || bytes - request.bytes > request.bytes / 8) continue;
        if (best == kWhole || bytes < slots_[best].heap->bytes()) best = i;
    }
    if (best == kWhole) {
        const auto added = add_heap(request, request.bytes, Pool::kAlignment, kWhole);
        if (!added) return false;
        best = *added;
    }
    enter_whole(request, best, place);
    return true;
}

uint32_t HeapSet::free_slot() {
    const auto hole = std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return !slot.heap; });
    if (hole != slots_.end()) return static_cast<uint32_t>(hole - slots_.begin());
    slots_.emplace_back();
    return static_cast<uint32_t>(slots_.size() - 1);
}

// What the device refuses it may have once empty heaps are gone, or where the heap need not be larger than asked for.
std::shared_ptr<Heap> HeapSet::create(const Request& request, uint64_t& granted) {
    const bool whole = request.bytes > kLargest;
    const Contents contents = whole ? request.contents : Contents::undefined;
    try {
        return backend_.create_heap(granted, request.storage, request.owner, contents);
    } catch (const OutOfMemory&) {
        if (drop_empty() == 0 && granted == request.bytes) throw;
    }
    budget_.give(granted - request.bytes);
    granted = request.bytes;
    return backend_.create_heap(granted, request.storage, request.owner, contents);
}

std::optional<uint32_t> HeapSet::add_heap(const Request& request, uint64_t most, uint64_t step, uint32_t arena) {
    uint64_t granted = budget_.take(request.bytes, most, step);
    if (!granted && drop_empty() > 0) granted = budget_.take(request.bytes, most, step);
    if (!granted) return std::nullopt;
    uint32_t index = 0;
    std::shared_ptr<Heap> heap;
    uint32_t region = 0;
    try {
        heap = create(request, granted);
        index = free_slot();
        if (arena != kWhole) region = arenas_[arena].blocks.add_region(granted, index);
    } catch (...) {
        budget_.give(granted);
        throw;
    }
    Slot& slot = slots_[index];
    slot = Slot{};
    slot.heap = std::move(heap);
    slot.zero = slot.heap->made_zero();
    slot.id = next_id_++;
    slot.arena = arena;
    slot.region = region;
    if (arena != kWhole) arenas_[arena].bytes += granted;
    bytes_ += granted;
    peak_ = std::max(peak_, bytes_);
    ++heaps_;
    ++created_;
    ++empty_;  // until it is entered
    return index;
}

void HeapSet::give(uint32_t heap, uint32_t node, uint64_t bytes, Tag tag, uint64_t now) noexcept {
    Slot& slot = slots_[heap];
    if (slot.arena != kWhole) arenas_[slot.arena].blocks.give(node);
    slot.used -= bytes;
    slot.tags[static_cast<size_t>(tag)] -= bytes;
    --slot.allocations;
    if (slot.used) return;
    ++empty_;
    if (slot.draining || grace_ns_ == 0) {
        drop(slot);
        return;
    }
    slot.empty_since = now;
    expiry_ = std::min(expiry_, end_of_grace(slot));
}

uint64_t HeapSet::end_of_grace(const Slot& slot) const noexcept {
    return grace_ns_ < kNever - slot.empty_since ? slot.empty_since + grace_ns_ : kNever;
}

// Of an empty heap.
void HeapSet::drop(Slot& slot) noexcept {
    const uint64_t bytes = slot.heap->bytes();
    if (slot.arena != kWhole) {
        arenas_[slot.arena].blocks.remove_region(slot.region);
        arenas_[slot.arena].bytes -= bytes;
    }
    --heaps_;
    --empty_;
    bytes_ -= bytes;
    budget_.give(bytes);
    slot = Slot{};
}

uint64_t HeapSet::drop_expired(uint64_t now) noexcept {
    const uint64_t before = bytes_;
    expiry_ = kNever;
    for (Slot& slot : slots_) {
        if (!slot.heap || slot.used) continue;
        const uint64_t end = end_of_grace(slot);
        if (now >= end) {
            drop(slot);
        } else {
            expiry_ = std::min(expiry_, end);
        }
    }
    return before - bytes_;
}

uint64_t HeapSet::drop_empty() noexcept {
    if (empty_ == 0) return 0;
    const uint64_t before = bytes_;
    for (Slot& slot : slots_) {
        if (slot.heap && slot.used == 0) drop(slot);
    }
    expiry_ = kNever;
    return before - bytes_;
}

bool HeapSet::set_draining(uint64_t id, bool draining, uint64_t now) noexcept {
    const auto found =
        std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return slot.heap && slot.id == id; });
    if (found == slots_.end()) return false;
    if (draining && found->used == 0) {
        drop(*found);
        return true;
    }
    found->draining = draining;
    if (found->arena != kWhole) arenas_[found->arena].blocks.set_closed(found->region, draining);
    found->empty_since = now;
    return true;
}

uint64_t HeapSet::withheld(Tag tag, Storage storage, uint64_t bytes) const noexcept {
    uint64_t sum = 0;
    for (const Slot& slot : slots_) {
        const uint64_t others = slot.used - slot.tags[static_cast<size_t>(tag)];
        if (!slot.heap || others == 0) continue;
        const bool shared = slot.arena != kWhole && slot.heap->storage() == storage;
        sum += shared ? others + (slot.heap->bytes() - others) % bytes : slot.heap->bytes();
    }
    return sum;
}

void HeapSet::report(PoolStatistics& statistics) const noexcept {
    statistics.heaps = heaps_;
    statistics.heap_bytes = bytes_;
    statistics.heap_peak = peak_;
    statistics.heaps_created = created_;
    statistics.empty_heaps = empty_;
    for (const Arena& arena : arenas_) {
        statistics.free_bytes += arena.blocks.free_bytes();
        statistics.largest_free = std::max(statistics.largest_free, arena.blocks.largest());
    }
    for (const Slot& slot : slots_) {
        if (!slot.heap || slot.arena != kWhole) continue;
        statistics.free_bytes += slot.heap->bytes() - slot.used;
        if (!slot.used) statistics.largest_free = std::max(statistics.largest_free, slot.heap->bytes());
    }
}

std::vector<HeapUse> HeapSet::uses() const {
    std::vector<HeapUse> result;
    for (const Slot& slot : slots_) {
        if (!slot.heap) continue;
        HeapUse use;
        use.id = slot.id;
        use.bytes = slot.heap->bytes();
        use.used = slot.used;
        use.allocations = slot.allocations;
        use.storage = slot.heap->storage();
        use.draining = slot.draining;
        use.tags = slot.tags;
        use.largest_free = slot.arena == kWhole ? (slot.used ? 0 : use.bytes)
                                                : arenas_[slot.arena].blocks.region_use(slot.region).largest_free;
        result.push_back(use);
    }
    std::sort(result.begin(), result.end(), [](const HeapUse& a, const HeapUse& b) { return a.id < b.id; });
    return result;
}

}  // namespace metallic
