#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kv/page_store.h"

namespace metallic {

// The page tables of one sequence, one per cache group, and how many of its tokens are in them. Growing takes pages and
// never copies history; a group with a window gives back the pages that no later query can see.
class Sequence {
  public:
    // `stores[g]` has the pages of cache group g; `windows[g]` its window (0: all). Both outlive the sequence.
    Sequence(Backend& backend, std::vector<PageStore*> stores, std::vector<uint32_t> windows);
    ~Sequence() { clear(); }
    Sequence(const Sequence&) = delete;
    Sequence& operator=(const Sequence&) = delete;

    uint32_t length() const noexcept { return length_; }

    // Makes room for tokens up to `length`, and makes the page of the next token this sequence's own if it is shared.
    // Throws OutOfMemory; what was taken is given back then.
    void reserve(uint32_t length);
    // The tokens up to `length` are now in the pages.
    void commit(uint32_t length);
    // Forgets the tokens from `length` on. False when a window group no longer has what a query there would see: the
    // sequence is unchanged then.
    bool truncate(uint32_t length);
    void clear();
    // A second sequence with the same history. All pages are shared; the first to write into one copies it.
    std::unique_ptr<Sequence> fork() const;

    // Set while a forward pass holds the sequence; see Model::forward.
    bool busy = false;

    PageTableView table(size_t group) const noexcept;
    size_t groups() const noexcept { return tables_.size(); }
    uint64_t pages() const noexcept;

  private:
    struct Table {
        PageStore* store;
        uint32_t window;
        uint32_t first_page = 0;
        std::vector<uint64_t> pages;
    };
    void own_last_page(Table& table);

    Backend& backend_;
    std::vector<Table> tables_;
    uint32_t length_ = 0;
};

}  // namespace metallic
