#include "kv/page_store.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "core/error.h"

namespace metallic {
namespace {

constexpr uint64_t kMaxSlabBytes = uint64_t{4} << 20;
constexpr uint64_t kMaxSlabPages = 64;
constexpr uint64_t kHeldPerSlabPage = 64;  // a new slab has one page for so many that are held

// Room for one more, so that adding it cannot throw.
template <typename T>
void make_room(std::vector<T>& items) {
    if (items.size() == items.capacity()) items.reserve(2 * items.size() + 8);
}

}  // namespace

PageStore::PageStore(Pool& pool, Backend& backend, const KvLayout& layout, std::string owner)
    : pool_(pool),
      backend_(backend),
      layout_(layout),
      stride_(stride_of(layout.page_bytes)),
      owner_(std::move(owner)) {}

PageStore::SlabId PageStore::id_of(uint64_t page) const {
    const auto holds = [&](const Slab& slab) { return page - slab.base < slab.references.size() * stride_; };
    if (last_ < slabs_.size() && slabs_[last_].base && holds(slabs_[last_])) return last_;
    const auto after = std::upper_bound(by_base_.begin(), by_base_.end(), page,
                                        [&](uint64_t address, SlabId id) { return address < slabs_[id].base; });
    return last_ = *(after - 1);
}

uint64_t PageStore::stride_of(uint64_t page_bytes) noexcept {
    return (page_bytes + Pool::kAlignment - 1) / Pool::kAlignment * Pool::kAlignment;
}

// Of the next slab, where so many pages are held.
uint64_t PageStore::slab_pages(uint64_t stride, uint64_t held) noexcept {
    const uint64_t fit = std::max<uint64_t>(kMaxSlabBytes / std::max<uint64_t>(stride, 1), 1);
    return std::clamp<uint64_t>(held / kHeldPerSlabPage, 1, std::min(fit, kMaxSlabPages));
}

uint64_t PageStore::held_pages(uint64_t page_bytes, uint64_t pages) noexcept {
    uint64_t held = 0;
    while (held < pages) held += slab_pages(stride_of(page_bytes), held);
    return held;
}

void PageStore::open(SlabId id) {
    slabs_[id].open_at = static_cast<uint32_t>(open_.size());
    open_.push_back(id);
}

void PageStore::shut(SlabId id) {
    const uint32_t at = slabs_[id].open_at;
    open_[at] = open_.back();
    slabs_[open_[at]].open_at = at;
    open_.pop_back();
}

// Where memory is unified, storage of the device alone would be no faster, and could not share heaps.
Storage PageStore::storage() const noexcept {
    return backend_.device().unified_memory ? Storage::shared : Storage::exclusive;
}

void PageStore::add_slab() {
    const uint64_t pages = slab_pages(stride_, held_);
    try {
        add_slab(pages);
    } catch (const OutOfMemory&) {
        if (pages == 1) throw;
        add_slab(1);
    }
}

void PageStore::add_slab(uint64_t pages) {
    Slab slab;
    // All that can throw comes before anything changes.
    slab.references.assign(pages, 0);
    slab.free.reserve(pages);
    make_room(slabs_);
    make_room(by_base_);
    open_.reserve(slabs_.capacity());
    holes_.reserve(slabs_.capacity());
    slab.memory = pool_.allocate_bytes(stride_ * pages, Tag::kv, owner_, storage());
    slab.base = slab.memory.view().address();
    for (uint64_t i = pages; i-- > 0;) slab.free.push_back(static_cast<uint32_t>(i));
    SlabId id = static_cast<SlabId>(slabs_.size());
    const uint64_t base = slab.base;
    if (holes_.empty()) {
        slabs_.push_back(std::move(slab));
    } else {
        id = holes_.back();
        holes_.pop_back();
        slabs_[id] = std::move(slab);
    }
    by_base_.insert(std::upper_bound(by_base_.begin(), by_base_.end(), base,
                                     [&](uint64_t address, SlabId other) { return address < slabs_[other].base; }),
                    id);
    open(id);
    held_ += pages;
}

void PageStore::drop_slab(SlabId id) {
    shut(id);
    held_ -= slabs_[id].references.size();
    by_base_.erase(std::find(by_base_.begin(), by_base_.end(), id));
    slabs_[id] = Slab{};
    holes_.push_back(id);
}

uint64_t PageStore::take() {
    if (open_.empty()) add_slab();
    const SlabId id = open_.back();
    Slab& slab = slabs_[id];
    const uint32_t index = slab.free.back();
    const uint64_t page = slab.base + index * stride_;
    BufferView bytes = slab.memory.view();
    bytes.offset += index * stride_;
    bytes.bytes = layout_.page_bytes;
    pool_.check_idle(bytes, owner_);
    slab.free.pop_back();
    slab.references[index] = 1;
    ++in_use_;
    if (slab.free.empty()) shut(id);
    return page;
}

void PageStore::give(uint64_t page) {
    const SlabId id = id_of(page);
    Slab& slab = slabs_[id];
    const uint32_t index = static_cast<uint32_t>((page - slab.base) / stride_);
    if (--slab.references[index] != 0) return;
    if (slab.free.empty()) open(id);
    slab.free.push_back(index);
    --in_use_;
    if (slab.free.size() == slab.references.size()) drop_slab(id);
}

BufferView PageStore::view(uint64_t page) const {
    const Slab& slab = slab_of(page);
    BufferView view = slab.memory.view();
    view.offset += page - slab.base;
    view.bytes = layout_.page_bytes;
    return view;
}

void PageStore::copy(uint64_t from, uint64_t to) {
    backend_.copy(view(from), view(to));
    ++copied_;
}

// ---- compaction -----------------------------------------------------------------------------------------------------

// Slabs by the pages in use in their heap, then by their own; those at the end are worth keeping.
std::vector<PageStore::SlabId> PageStore::emptiest_first() const {
    std::map<uint64_t, uint64_t> used_in_heap;
    const auto used = [&](SlabId id) { return slabs_[id].references.size() - slabs_[id].free.size(); };
    for (const SlabId id : by_base_) used_in_heap[slabs_[id].memory.heap_id()] += used(id);
    std::vector<SlabId> order = by_base_;
    std::stable_sort(order.begin(), order.end(), [&](SlabId a, SlabId b) {
        const uint64_t heap_a = slabs_[a].memory.heap_id(), heap_b = slabs_[b].memory.heap_id();
        if (heap_a != heap_b) {
            const uint64_t in_a = used_in_heap[heap_a], in_b = used_in_heap[heap_b];
            return in_a != in_b ? in_a < in_b : heap_a < heap_b;
        }
        return used(a) < used(b);
    });
    return order;
}

// Moves all pages of a slab, which is not open, to others that are and have the room.
void PageStore::empty_slab(SlabId id, std::vector<PageMove>& moves) {
    for (uint32_t i = 0; i < slabs_[id].references.size(); ++i) {
        const uint32_t references = slabs_[id].references[i];
        if (references == 0) continue;
        const uint64_t from = slabs_[id].base + i * stride_;
        make_room(moves);
        const uint64_t to = take();
        try {
            copy(from, to);
        } catch (...) {
            give(to);
            throw;
        }
        slab_of(to).references[slot(to)] = references;
        slabs_[id].references[i] = 0;
        slabs_[id].free.push_back(i);
        --in_use_;
        moves.push_back({from, to});
    }
}

void PageStore::compact(std::vector<PageMove>& moves) {
    const std::vector<SlabId> order = emptiest_first();
    // The fullest serve first: the last of `open_` serves.
    std::vector<SlabId> targets;
    for (const SlabId id : order) {
        if (!slabs_[id].free.empty()) targets.push_back(id);
    }
    for (const SlabId id : targets) shut(id);
    for (const SlabId id : targets) open(id);

    for (const SlabId id : order) {
        const Slab& slab = slabs_[id];
        if (slab.free.empty()) continue;
        const uint64_t elsewhere = held_ - in_use_ - slab.free.size();
        if (slab.references.size() - slab.free.size() > elsewhere) break;
        shut(id);
        try {
            empty_slab(id, moves);
        } catch (...) {
            open(id);
            throw;
        }
        open(id);
        drop_slab(id);
    }
}

}  // namespace metallic
