#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kv/page_store.h"
#include "kv/sequence.h"
#include "memory/memory_log.h"

namespace metallic {

// Where the pages of one cache group come from.
struct KvGroup {
    Pool* pool = nullptr;
    Backend* backend = nullptr;
    CacheGroup group;
    KvLayout layout;
    std::string owner;
};

// What becomes of the pages of a sequence that has to make room.
enum class Eviction : uint8_t {
    save,       // they wait in host memory: the same bytes come back
    compress,   // they wait in host memory in a smaller type, where they have a larger one: what comes back is rounded
    recompute,  // they are dropped: the tokens are computed again
};

// All sequences of a model and the pages that they take, and who has to give way when there are too few. Not
// thread-safe: whoever calls holds mutex(). No call but destroy may be made for a sequence that is in flight.
class KvCache {
  public:
    // A generation that was not run for so long may lose its pages as an idle sequence may: its consumer is slow.
    static constexpr uint64_t kStalledNs = 250'000'000;

    // `packed`: what is compressed, and has more bits, is kept in: Q8_0 or Q4_0.
    KvCache(std::vector<KvGroup> groups, uint32_t batch_tokens, Eviction eviction, MemoryLog& log,
            DType packed = DType::Q8_0);

    // Another pool, that has none of the pages and takes from the same budget.
    void count_also(const Pool& pool);

    std::mutex& mutex() const noexcept { return mutex_; }

    std::unique_ptr<Sequence> create();
    std::unique_ptr<Sequence> fork(const Sequence& sequence);
    void destroy(Sequence* sequence) noexcept;
    // The sequence is the youngest from now on.
    void renew_age(Sequence& sequence) noexcept { sequence.age = ++ages_; }

    // Gets ready to append `count` tokens to what is cached: all pages are resident, with room for them. Makes room
    // where it must: idle sequences lose their pages, the least recently used first; pages are moved together; and,
    // where `preempts`, sequences that are younger than this one lose theirs, the youngest first, or those of `pass`,
    // the forward pass that this one is part of.
    enum class Room : uint8_t {
        made,
        wait,  // older sequences have the memory
        skip,  // not without preempting others
    };
    // Throws OutOfMemory when nobody else has anything to give.
    Room prepare(Sequence& sequence, uint32_t count, std::span<Sequence* const> pass, bool preempts);

    // Takes the pages for tokens up to `length` now, see Sequence::reserve_ahead; saved ones come back first. Idle
    // sequences make room for that, running ones do not. Throws OutOfMemory.
    void reserve(Sequence& sequence, uint32_t length);

    // Gives the sequence's pages up as its eviction says; returns the bytes given back. `save` leaves pages that others
    // share where they are, unless `shared` says otherwise.
    uint64_t evict(Sequence& sequence, std::string_view reason, bool shared = false);
    // Evicts idle sequences, the least recently used first, until `bytes` were given back; returns what was.
    uint64_t evict_idle(uint64_t bytes, std::string_view reason);
    // Evicts those that give way to `needy`, one of `pass`: idle and younger ones, none that is in flight. Returns the
    // bytes given back.
    uint64_t evict_for(const Sequence& needy, std::span<Sequence* const> pass, std::string_view reason);
    // Evicts all sequences, those that run included. Only where nothing is in flight. Returns the bytes given back.
    uint64_t evict_all(std::string_view reason);
    // Moves pages together and gives back the heaps that become empty. Only where nothing is in flight. Returns the
    // bytes moved.
    uint64_t compact(std::string_view reason);

    // The most bytes of pages that a sequence of so many tokens takes at a time.
    uint64_t bytes_for(uint64_t tokens) const noexcept;
    // What one token takes in all groups, without regard to windows.
    uint64_t bytes_per_token() const noexcept;
    // The most bytes that pages may take: the budget, less what pages cannot have, in whole pages.
    uint64_t capacity() const;
    // Bytes of heaps that pages cannot have, see Pool::withheld_bytes.
    uint64_t other_bytes() const;
    // So many of them count also while there are fewer: weights were given up that will be taken back, and no
    // generation is let in on their room. 0: none.
    void expect_others(uint64_t bytes) noexcept { expected_others_ = bytes; }
    // Bytes that generations that are running were admitted for, or take by now, but for `except`.
    uint64_t claimed(const Sequence* except) const noexcept;

    std::span<const KvGroup> groups() const noexcept { return groups_; }
    const PageStore& store(size_t group) const noexcept { return *stores_[group]; }
    uint64_t saved_bytes() const noexcept;
    uint64_t pages_copied() const noexcept;

  private:
    // The bytes of the largest kind of page, in this pool or (null) in all.
    uint64_t largest_page(const Pool* pool) const noexcept;
    bool active(const Sequence& sequence, uint64_t now) const noexcept;
    bool idle(const Sequence& sequence, uint64_t now) const noexcept;
    bool gives_way(const Sequence& sequence, const Sequence& needy, std::span<Sequence* const> pass) const noexcept;
    uint64_t drop(Sequence& sequence, std::string_view reason) noexcept;
    void make_resident(Sequence& sequence);
    bool must_wait(const Sequence& sequence, uint32_t count, std::span<Sequence* const> pass) const;
    bool relieve(Sequence& needy, std::span<Sequence* const> pass, bool preempts);
    Sequence* idle_victim(const Sequence* needy) const noexcept;
    Sequence* younger_victim(const Sequence& needy, std::span<Sequence* const> pass) const noexcept;
    template <typename Willing>
    Sequence* sharing_victim(Willing willing) const;
    Sequence* idle_sharing_victim(const Sequence* needy) const;
    bool others_have_pages(const Sequence& needy, std::span<Sequence* const> pass) const noexcept;

    mutable std::mutex mutex_;
    std::vector<KvGroup> groups_;
    const uint32_t batch_tokens_;
    const Eviction eviction_;
    MemoryLog& log_;
    std::vector<const Pool*> pools_;  // each once
    std::vector<KvLayout> packed_;    // by group, if evicted pages are compressed
    std::vector<std::unique_ptr<PageStore>> stores_;
    std::vector<Sequence*> sequences_;
    uint64_t ages_ = 0;
    uint64_t expected_others_ = 0;
};

}  // namespace metallic
