#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "memory/budget.h"
#include "memory/place.h"
#include "memory/statistics.h"
#include "memory/tlsf.h"

namespace metallic {

// The heaps of one pool and what is free in them. Not thread-safe: the pool's lock covers it.
class HeapSet {
  public:
    HeapSet(Backend& backend, Budget& budget, uint64_t grace_ns);
    ~HeapSet();
    HeapSet(const HeapSet&) = delete;
    HeapSet& operator=(const HeapSet&) = delete;

    struct Request {
        uint64_t bytes;  // whole alignments
        Tag tag;
        Storage storage;
        Contents contents;
        std::string_view owner;
    };
    // False where the budget leaves too little. Throws OutOfMemory where the device refuses.
    bool take(const Request& request, Place& place);
    void give(uint32_t heap, uint32_t node, uint64_t bytes, Tag tag, uint64_t now) noexcept;

    // Gives back heaps that were empty for the grace period; cheap when there are none.
    void expire(uint64_t now) noexcept {
        if (now >= expiry_) drop_expired(now);
    }
    uint64_t drop_expired(uint64_t now) noexcept;
    uint64_t drop_empty() noexcept;
    bool set_draining(uint64_t id, bool draining, uint64_t now) noexcept;

    // See Pool::withheld_bytes.
    uint64_t withheld(Tag tag, Storage storage, uint64_t bytes) const noexcept;
    void report(PoolStatistics& statistics) const noexcept;
    std::vector<HeapUse> uses() const;

  private:
    static constexpr uint64_t kNever = ~uint64_t{0};
    static constexpr uint32_t kWhole = ~uint32_t{0};

    struct Slot {
        std::shared_ptr<Heap> heap;
        uint64_t id = 0;
        uint64_t used = 0;
        uint64_t allocations = 0;
        std::array<uint64_t, kTags> tags{};
        uint64_t empty_since = 0;
        uint32_t arena = kWhole;  // that divides it; kWhole: it holds one allocation
        uint32_t region = 0;      // of the arena
        bool draining = false;
        bool zero = false;     // it was made of zeros
        bool touched = false;  // of a whole heap: it was handed out before
    };
    // Heaps of one storage that are divided.
    struct Arena {
        Tlsf blocks;
        uint64_t bytes = 0;
    };

    Arena& arena_of(const Request& request) noexcept;
    bool grow(const Request& request, Place& place);
    bool take_whole(const Request& request, Place& place);
    void enter(const Request& request, const Tlsf::Block& block, Place& place);
    void enter_whole(const Request& request, uint32_t index, Place& place);
    void count(Slot& slot, const Request& request) noexcept;
    // Of at most `most` bytes, and whole `step`s of them.
    std::optional<uint32_t> add_heap(const Request& request, uint64_t most, uint64_t step, uint32_t arena);
    std::shared_ptr<Heap> create(const Request& request, uint64_t& granted);
    uint32_t free_slot();
    void drop(Slot& slot) noexcept;
    uint64_t end_of_grace(const Slot& slot) const noexcept;

    Backend& backend_;
    Budget& budget_;
    const uint64_t grace_ns_;
    std::array<Arena, 4> arenas_;  // by storage and whether they are of keys and values
    std::vector<Slot> slots_;
    uint64_t next_id_ = 1;
    uint64_t expiry_ = kNever;  // no empty heap is to be given back earlier
    uint64_t heaps_ = 0, bytes_ = 0, peak_ = 0, created_ = 0, empty_ = 0;
};

}  // namespace metallic
