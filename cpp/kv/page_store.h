#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/kv_layout.h"
#include "memory/pool.h"

namespace metallic {

// The pages of one cache group. Pages come in slabs from the pool; a slab whose pages are all free goes back. A page
// has a reference count, so that sequences with an equal prefix can share it. Not thread-safe: the engine's lock covers
// it.
class PageStore {
  public:
    PageStore(Pool& pool, const KvLayout& layout, std::string owner);

    const KvLayout& layout() const noexcept { return layout_; }

    // The address of a page with one reference. Throws OutOfMemory; nothing changes then.
    uint64_t take();
    void share(uint64_t page);
    void give(uint64_t page);
    uint32_t references(uint64_t page) const { return slabs_[find(page)].references[slot(page)]; }
    BufferView view(uint64_t page) const;
    void copy(uint64_t from, uint64_t to) { pool_.copy(view(from), view(to)); }

    uint64_t pages_in_use() const noexcept { return in_use_; }
    uint64_t pages_held() const noexcept { return held_; }  // in slabs, in use or not

  private:
    struct Slab {
        Allocation memory;
        uint64_t base = 0;
        std::vector<uint32_t> references;  // per page; 0 = free
        std::vector<uint32_t> free;
    };
    size_t find(uint64_t page) const;
    uint32_t slot(uint64_t page) const;

    Pool& pool_;
    KvLayout layout_;
    uint64_t stride_;
    uint32_t pages_per_slab_;
    std::string owner_;
    std::vector<Slab> slabs_;  // sorted by base
    size_t open_ = 0;          // where the last free page was found
    uint64_t in_use_ = 0;
    uint64_t held_ = 0;
};

}  // namespace metallic
