#pragma once

#include <array>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "memory/heap_set.h"
#include "memory/owners.h"
#include "memory/pool.h"
#include "memory/short_mutex.h"

namespace metallic {

// What a pool and its allocations share. It lives as long as the pool and any of them.
class PoolState : public std::enable_shared_from_this<PoolState> {
  public:
    PoolState(std::shared_ptr<Backend> backend, std::shared_ptr<Budget> budget, PoolOptions options);
    ~PoolState();
    PoolState(const PoolState&) = delete;
    PoolState& operator=(const PoolState&) = delete;

    Allocation allocate(uint64_t bytes, Tag tag, std::string_view owner, Storage storage, Contents contents);
    void release(Allocation& allocation) noexcept;
    // The pool is gone. Returns what still lives, which keeps this object alive.
    std::vector<OwnerUse> close();

    void count_mapped(uint64_t bytes) noexcept;
    void uncount_mapped(uint64_t bytes) noexcept;
    uint64_t trim(uint64_t now) noexcept;
    uint64_t drop_empty_heaps() noexcept;
    bool set_draining(uint64_t heap_id, bool draining) noexcept;
    PoolStatistics statistics() const;
    uint64_t withheld(Tag tag, Storage storage, uint64_t bytes) const noexcept;
    std::vector<HeapUse> heaps() const;
    std::vector<OwnerUse> owners() const;
    uint64_t now() const noexcept;

    const std::shared_ptr<Backend> backend;
    const std::shared_ptr<Budget> budget;
    const PoolOptions options;

  private:
    bool try_allocate(const HeapSet::Request& request, Allocation& allocation);
    UseOverTime& use(Tag tag) noexcept { return uses_[static_cast<size_t>(tag)]; }

    mutable ShortMutex mutex_;
    HeapSet heaps_;
    Owners owners_;
    std::array<UseOverTime, kTags> uses_;
    const uint64_t born_;
    uint64_t mapped_bytes_ = 0;
    uint64_t live_ = 0;                // allocations
    std::shared_ptr<PoolState> self_;  // once the pool is gone, while there are any
};

}  // namespace metallic
