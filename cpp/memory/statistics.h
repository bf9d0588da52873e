#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "memory/owners.h"

namespace metallic {

const char* tag_name(Tag tag) noexcept;

// Bytes of one purpose, as reserved: rounded up to the pool's alignment.
struct TagUse {
    uint64_t current = 0;
    uint64_t peak = 0;
    uint64_t allocations = 0;  // ever
    uint64_t live = 0;         // allocations that are not freed
    double average = 0;        // over time, since the pool was made
};

struct PoolStatistics {
    std::array<TagUse, kTags> tags;
    uint64_t heaps = 0;
    uint64_t heap_bytes = 0;     // obtained from the backend
    uint64_t heap_peak = 0;      // the most of them
    uint64_t heaps_created = 0;  // ever
    uint64_t empty_heaps = 0;    // kept for a while, see PoolOptions::grace_ns
    uint64_t mapped_bytes = 0;   // views over files: counted as weights, never as heaps
    uint64_t free_bytes = 0;     // in heaps, not handed out
    uint64_t largest_free = 0;
    uint64_t budget = 0;       // 0: none
    uint64_t budget_used = 0;  // by all pools that share it
    uint64_t elapsed_ns = 0;   // since the pool was made

    uint64_t current() const noexcept;
    // Of a pool that shares the budget, on another device. Peaks are added, which they may not have had at one time.
    PoolStatistics& operator+=(const PoolStatistics& other) noexcept;
    // 0: all free bytes are one range; towards 1: many small ones.
    double fragmentation() const noexcept;
};

// One heap. Its id is never given to another one.
struct HeapUse {
    uint64_t id = 0;
    uint64_t bytes = 0;
    uint64_t used = 0;
    uint64_t largest_free = 0;
    uint64_t allocations = 0;  // live
    Storage storage = Storage::shared;
    bool draining = false;
    std::array<uint64_t, kTags> tags{};  // used bytes of each
};

// How much of something there is and was, and how long. Times are of one monotonic clock, in nanoseconds.
class UseOverTime {
  public:
    void start(uint64_t now) noexcept { born_ = since_ = now; }
    void add(uint64_t bytes, uint64_t now) noexcept {
        advance(now);
        use_.current += bytes;
        use_.peak = use_.current > use_.peak ? use_.current : use_.peak;
        ++use_.allocations;
        ++use_.live;
    }
    void remove(uint64_t bytes, uint64_t now) noexcept {
        advance(now);
        use_.current -= bytes;
        --use_.live;
    }
    uint64_t current() const noexcept { return use_.current; }
    TagUse at(uint64_t now) const noexcept;

  private:
    void advance(uint64_t now) noexcept {
        if (now <= since_) return;
        integral_ += static_cast<double>(use_.current) * static_cast<double>(now - since_);
        since_ = now;
    }

    TagUse use_;
    double integral_ = 0;  // bytes x ns
    uint64_t born_ = 0, since_ = 0;
};

}  // namespace metallic
