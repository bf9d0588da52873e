#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/kv_layout.h"
#include "memory/pool.h"

namespace metallic {

// A page that moved; see PageStore::compact.
struct PageMove {
    uint64_t from = 0, to = 0;
};

// The pages of one cache group. Pages come in slabs from the pool; a slab whose pages are all free goes back. Slabs
// grow with what is held, so that at most one page in 64 (and less than a slab) is held and free while a store only
// grows. A page has a reference count, so that sequences with an equal prefix can share it. Not thread-safe: the
// cache's lock covers it.
class PageStore {
  public:
    PageStore(Pool& pool, Backend& backend, const KvLayout& layout, std::string owner);

    const KvLayout& layout() const noexcept { return layout_; }
    const std::string& owner() const noexcept { return owner_; }
    Backend& backend() const noexcept { return backend_; }

    // The address of a page with one reference. Throws OutOfMemory; nothing changes then.
    uint64_t take();
    void share(uint64_t page) { ++slab_of(page).references[slot(page)]; }
    void give(uint64_t page);
    uint32_t references(uint64_t page) const { return slab_of(page).references[slot(page)]; }
    BufferView view(uint64_t page) const;
    // Copies the bytes of a page to another of this store.
    void copy(uint64_t from, uint64_t to);

    // Moves pages so that their slabs, those of the least used heaps first, go back to the pool. The caller then puts
    // the new addresses where the old ones were. Appends to `moves`, also those made before a copy failed.
    void compact(std::vector<PageMove>& moves);

    uint64_t pages_in_use() const noexcept { return in_use_; }
    uint64_t pages_held() const noexcept { return held_; }  // in slabs, in use or not
    uint64_t pages_copied() const noexcept { return copied_; }
    // What a page takes from the pool.
    uint64_t page_stride() const noexcept { return stride_; }
    static uint64_t stride_of(uint64_t page_bytes) noexcept;
    Storage storage() const noexcept;
    // How many pages of so many bytes a store holds that has only grown, once so many are in use.
    static uint64_t held_pages(uint64_t page_bytes, uint64_t pages) noexcept;

  private:
    struct Slab {
        Allocation memory;
        uint64_t base = 0;
        std::vector<uint32_t> references;  // per page; 0 = free
        std::vector<uint32_t> free;
        uint32_t open_at = 0;  // where open_ lists it, if it has free pages
    };
    using SlabId = uint32_t;

    SlabId id_of(uint64_t page) const;
    Slab& slab_of(uint64_t page) { return slabs_[id_of(page)]; }
    const Slab& slab_of(uint64_t page) const { return slabs_[id_of(page)]; }
    uint32_t slot(uint64_t page) const { return static_cast<uint32_t>((page - slab_of(page).base) / stride_); }
    static uint64_t slab_pages(uint64_t stride, uint64_t held) noexcept;
    void add_slab();
    void add_slab(uint64_t pages);
    void drop_slab(SlabId id);
    void open(SlabId id);
    void shut(SlabId id);
    std::vector<SlabId> emptiest_first() const;
    void empty_slab(SlabId id, std::vector<PageMove>& moves);

    Pool& pool_;
    Backend& backend_;
    KvLayout layout_;
    uint64_t stride_;
    std::string owner_;
    std::vector<Slab> slabs_;  // by id; holes are reused
    std::vector<SlabId> holes_;
    std::vector<SlabId> by_base_;  // ascending
    std::vector<SlabId> open_;     // those with free pages; the last one serves
    mutable SlabId last_ = 0;      // where the last page was found
    uint64_t in_use_ = 0;
    uint64_t held_ = 0;
    uint64_t copied_ = 0;
};

}  // namespace metallic
