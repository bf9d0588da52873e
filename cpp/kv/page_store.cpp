#include "kv/page_store.h"

#include <algorithm>

namespace metallic {
namespace {

constexpr uint64_t kSlabBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxPagesPerSlab = 8;

}  // namespace

PageStore::PageStore(Pool& pool, const KvLayout& layout, std::string owner)
    : pool_(pool),
      layout_(layout),
      stride_((layout.page_bytes + Pool::kAlignment - 1) / Pool::kAlignment * Pool::kAlignment),
      pages_per_slab_(static_cast<uint32_t>(
          std::clamp<uint64_t>(kSlabBytes / std::max<uint64_t>(stride_, 1), 1, kMaxPagesPerSlab))),
      owner_(std::move(owner)) {}

size_t PageStore::find(uint64_t page) const {
    const auto after = std::upper_bound(slabs_.begin(), slabs_.end(), page,
                                        [](uint64_t address, const Slab& slab) { return address < slab.base; });
    return static_cast<size_t>(after - slabs_.begin()) - 1;
}

uint32_t PageStore::slot(uint64_t page) const {
    return static_cast<uint32_t>((page - slabs_[find(page)].base) / stride_);
}

uint64_t PageStore::take() {
    if (open_ >= slabs_.size() || slabs_[open_].free.empty()) {
        const auto found =
            std::find_if(slabs_.begin(), slabs_.end(), [](const Slab& slab) { return !slab.free.empty(); });
        open_ = static_cast<size_t>(found - slabs_.begin());
    }
    if (open_ == slabs_.size()) {
        Slab slab;
        slab.memory = pool_.allocate_bytes(stride_ * pages_per_slab_, Tag::kv, owner_);
        slab.base = slab.memory.view().address();
        slab.references.assign(pages_per_slab_, 0);
        for (uint32_t i = pages_per_slab_; i-- > 0;) slab.free.push_back(i);
        const auto at = std::upper_bound(slabs_.begin(), slabs_.end(), slab.base,
                                         [](uint64_t base, const Slab& other) { return base < other.base; });
        open_ = static_cast<size_t>(at - slabs_.begin());
        slabs_.insert(at, std::move(slab));
        held_ += pages_per_slab_;
    }
    Slab& slab = slabs_[open_];
    const uint32_t index = slab.free.back();
    BufferView page = slab.memory.view();
    page.offset += index * stride_;
    page.bytes = layout_.page_bytes;
    pool_.check_idle(page, owner_);
    slab.free.pop_back();
    slab.references[index] = 1;
    ++in_use_;
    return slab.base + index * stride_;
}

void PageStore::share(uint64_t page) {
    ++slabs_[find(page)].references[slot(page)];
}

void PageStore::give(uint64_t page) {
    const size_t at = find(page);
    Slab& slab = slabs_[at];
    const uint32_t index = slot(page);
    if (--slab.references[index] != 0) return;
    slab.free.push_back(index);
    --in_use_;
    if (slab.free.size() == pages_per_slab_) {
        held_ -= pages_per_slab_;
        slabs_.erase(slabs_.begin() + static_cast<std::ptrdiff_t>(at));
    }
}

BufferView PageStore::view(uint64_t page) const {
    const Slab& slab = slabs_[find(page)];
    BufferView view = slab.memory.view();
    view.offset += page - slab.base;
    view.bytes = layout_.page_bytes;
    return view;
}

}  // namespace metallic
