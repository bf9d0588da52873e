#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "kv/page_store.h"

namespace metallic {

// The tokens of one sequence, and the page tables that hold their keys and values, one per cache group. Growing takes
// pages and never copies history; a group with a window gives back the pages that no later query can see.
//
// A sequence may lose its pages and stay whole: `save` moves them to host memory, from where `restore` brings back the
// same bytes; `drop` forgets them, and whoever runs the sequence computes its tokens from cached() to length() again.
class Sequence {
  public:
    // `stores[g]` has the pages of cache group g; `windows[g]` its window (0: all). They outlive the sequence.
    Sequence(std::vector<PageStore*> stores, std::vector<uint32_t> windows);
    ~Sequence() { clear(); }
    Sequence(const Sequence&) = delete;
    Sequence& operator=(const Sequence&) = delete;

    uint32_t length() const noexcept { return static_cast<uint32_t>(tokens_.size()); }
    std::span<const int32_t> tokens() const noexcept { return tokens_; }
    // Tokens whose keys and values there are; fewer than length() after `drop`.
    uint32_t cached() const noexcept { return cached_; }
    // All pages of the cached tokens are where kernels can read them.
    bool resident() const noexcept { return saved_pages_ == 0; }

    // Makes room for tokens up to `length`, and makes the page of the next token this sequence's own if it is shared.
    // Only where resident. Throws OutOfMemory; what was taken is given back then.
    void reserve(uint32_t length);
    // Takes pages for tokens up to `length` now, but no more than a window holds, so that growing up to there needs
    // none. Throws OutOfMemory as `reserve` does.
    void reserve_ahead(uint32_t length);
    // The next `count` cached tokens are in the pages: those that had been dropped, then `tokens`, which are new.
    void commit(uint32_t count, std::span<const int32_t> tokens);
    // Forgets the tokens from `length` on. False when a window group no longer has what a query there would see: the
    // sequence is unchanged then.
    bool truncate(uint32_t length);
    // Takes `count` tokens from `first` on out of the middle. Those behind them lose their keys and values, which
    // depend on where a token is and on what came before it: they are computed again when the sequence is run.
    void forget(uint32_t first, uint32_t count);
    void clear() noexcept;
    // A second sequence with the same history. All pages are shared; the first to write into one copies it. A copy of a
    // sequence that is not resident has the tokens and no pages.
    std::unique_ptr<Sequence> fork() const;

    // What `save` or `drop` would give back: the bytes of pages that nobody shares.
    uint64_t own_bytes() const noexcept;
    // Moves the pages that nobody shares to host memory, or, with `shared`, all: what others share becomes a copy of
    // its own. They go as they are or, where `packed` has a layout for each group, in that of smaller types: what comes
    // back is rounded then. Returns the bytes given back; also where it throws, every page is either here or there.
    uint64_t save(bool shared = false, std::span<const KvLayout> packed = {});
    // Takes pages for what was saved. Throws OutOfMemory; pages that came back until then stay.
    uint64_t restore();
    // Gives all pages back and forgets what was in them. Returns the bytes given back.
    uint64_t drop() noexcept;
    // Host memory that saved pages take.
    uint64_t saved_bytes() const noexcept { return saved_bytes_; }

    // Puts new addresses where pages moved.
    void relocate(size_t group, const std::unordered_map<uint64_t, uint64_t>& moved) noexcept;

    PageTableView table(size_t group) const noexcept;
    size_t groups() const noexcept { return tables_.size(); }
    uint64_t pages() const noexcept;

    // ---- of those who run it, see KvCache ----

    // Throws RequestError while a forward pass holds it.
    void check_idle() const;

    bool busy = false;           // a forward pass holds it
    bool in_flight = false;      // the batch that is running reads its pages
    bool rope_extended = false;  // which RoPE tables its tokens were computed with
    uint64_t age = 0;            // order of admission: of two sequences the one with the smaller age is served first
    uint64_t claim = 0;          // bytes that its generation was admitted for; 0: none
    uint64_t last_used_ns = 0;

  private:
    struct Saved {
        std::unique_ptr<std::byte[]> bytes;
        KvLayout layout;
    };
    struct Table {
        PageStore* store;
        uint32_t window;
        uint32_t first_page = 0;
        size_t held = 0;              // pages before growing
        std::vector<uint64_t> pages;  // 0: saved
        std::vector<Saved> saved;     // empty, or one per page
    };
    void grow(Table& table, uint32_t pages);
    template <typename Wanted>
    void grow_all(Wanted wanted);
    void own_last_page(Table& table);
    void pop_page(Table& table) noexcept;

    std::vector<Table> tables_;
    std::vector<int32_t> tokens_;
    uint32_t cached_ = 0;
    uint64_t saved_pages_ = 0, saved_bytes_ = 0;
};

}  // namespace metallic
