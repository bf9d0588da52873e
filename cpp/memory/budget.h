#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <vector>

namespace metallic {

// A limit on bytes that several pools share, such as one for each backend. Thread-safe.
class Budget {
  public:
    // 0 is no limit: bytes are counted all the same.
    explicit Budget(uint64_t limit) noexcept : limit_(limit) {}
    Budget(const Budget&) = delete;
    Budget& operator=(const Budget&) = delete;

    uint64_t limit() const noexcept { return limit_.load(std::memory_order_relaxed); }
    uint64_t used() const noexcept { return used_.load(std::memory_order_relaxed); }
    // ~0 where there is no limit.
    uint64_t available() const noexcept;
    // A limit below what is used takes nothing away; it refuses what comes.
    void set_limit(uint64_t bytes) noexcept { limit_.store(bytes, std::memory_order_relaxed); }

    // As much as there is between `least` and `most`, in steps of `step`; 0 when there is not even `least`.
    uint64_t take(uint64_t least, uint64_t most, uint64_t step) noexcept;
    void give(uint64_t bytes) noexcept { used_.fetch_sub(bytes, std::memory_order_relaxed); }

    // Pools that can give back what they hold and do not use. `reclaim` returns what came back; it is called with no
    // lock of a pool held.
    using Reclaimer = std::function<uint64_t()>;
    void join(const void* who, Reclaimer reclaimer);
    void leave(const void* who) noexcept;
    uint64_t reclaim();

  private:
    std::atomic<uint64_t> limit_, used_{0};
    std::mutex mutex_;
    struct Member {
        const void* who;
        Reclaimer reclaimer;
    };
    std::vector<Member> members_;
};

}  // namespace metallic
