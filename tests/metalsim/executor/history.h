#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "executor/executor.h"
#include "executor/shadow.h"

// Whose accesses the shadow remembers, and which of them are ordered.
namespace metalsim {

// A piece of the life of one simdgroup between two barriers. Numbers grow, so that what a barrier puts behind it is
// what has a smaller number.
struct Segment {
    uint32_t launch = 0;
    uint32_t simdgroup = 0;
    uint64_t group = 0;  // index of the threadgroup
};

// What a report says of the other party.
struct Party {
    std::string kernel;  // empty: a blit
    std::string scope;
    uint64_t order = 0;
    Size3 threads_per_threadgroup;
    Size3 groups;
    MetalsimUint3 grid{};

    MetalsimUint3 thread(uint64_t group, uint32_t index) const noexcept;  // in the grid
};

class History {
  public:
    static constexpr uint32_t kFirst = 1;
    // Beyond this many the accesses are forgotten, as soon as nothing runs.
    static constexpr uint32_t kEnough = 1u << 23;

    explicit History(Shadow& shadow);
    ~History();
    History(const History&) = delete;
    History& operator=(const History&) = delete;

    struct Entry {
        uint32_t launch = 0;
        uint32_t era = 0;
    };
    // A launch whose accesses will be remembered, until leave().
    Entry enter(Party party);
    void leave();

    // The first of `count` numbers in a row; 0 when there are none left.
    uint32_t take(uint32_t count) noexcept;
    Segment& segment(uint32_t number) noexcept { return segments_[number]; }
    uint64_t order_of(uint32_t launch) const noexcept { return orders_[launch]; }
    Party party(uint32_t launch);

    uint64_t order() noexcept;  // what was entered before is ordered before what comes
    uint64_t now() const noexcept { return order_.load(std::memory_order_acquire); }
    // Segments below are ordered before launches of `order`; others may be.
    uint32_t floor(uint64_t order);

  private:
    static constexpr uint32_t kLaunches = 1u << 17;

    Shadow& shadow_;
    Segment* segments_ = nullptr;
    uint64_t* orders_ = nullptr;
    std::atomic<uint32_t> next_{kFirst};
    std::atomic<uint64_t> order_{1};
    std::mutex mutex_;
    uint64_t floor_order_ = 1;  // the order that floor_ belongs to
    uint32_t floor_ = kFirst;
    uint32_t running_ = 0;
    uint32_t era_ = 1;
    std::vector<Party> parties_;
};

}  // namespace metalsim
