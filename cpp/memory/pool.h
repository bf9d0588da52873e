#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/allocator.h"
#include "backend/backend.h"
#include "memory/budget.h"
#include "memory/place.h"
#include "memory/statistics.h"

namespace metallic {

class Pool;
class PoolState;

// A part of a heap, typed, owned by its holder and returned to the pool on destruction. It may outlive the pool: its
// memory lives as long as it does.
class Allocation {
  public:
    Allocation() = default;
    Allocation(Allocation&& other) noexcept { take(other); }
    Allocation& operator=(Allocation&& other) noexcept {
        if (this == &other) return *this;
        reset();
        take(other);
        return *this;
    }
    ~Allocation() { reset(); }

    void reset() noexcept {
        if (pool_) release();
    }
    explicit operator bool() const noexcept { return pool_ != nullptr; }
    BufferView view() const noexcept { return place_.view; }
    DType dtype() const noexcept { return dtype_; }
    uint64_t elements() const noexcept { return elements_; }
    Tag tag() const noexcept { return tag_; }
    // Of HeapUse; 0 where nothing is allocated.
    uint64_t heap_id() const noexcept { return place_.id; }
    // Whether all bytes were zero when it was handed out.
    bool zeroed() const noexcept { return place_.zero; }

  private:
    friend class Pool;
    friend class PoolState;
    void release() noexcept;
    void take(Allocation& other) noexcept;

    PoolState* pool_ = nullptr;
    Place place_;
    uint64_t reserved_ = 0;  // bytes taken from the heap
    uint64_t elements_ = 0;
    uint32_t owner_ = 0;
    DType dtype_ = DType::F32;
    Tag tag_ = Tag::activations;
};

struct PoolOptions {
    // How long an empty heap is kept, so that a run after a run allocates nothing. 0: not at all.
    uint64_t grace_ns = 1'000'000'000;
    // Monotonic nanoseconds, asked for by any thread. None: the system's clock, coarse where it has such a one (Linux:
    // 1 to 10 ms).
    std::function<uint64_t()> clock;
    // Told what is left when the pool is destroyed before its allocations. None: see take_leak_reports.
    std::function<void(std::span<const OwnerUse>)> on_leak;
};

// What pools left behind that had nobody to tell, since the last call; the newest few.
std::vector<std::vector<OwnerUse>> take_leak_reports();

// The sub-allocator over heaps, see Tlsf for its bounds. Its backend's transfers use it too while it lives.
// Thread-safe.
//
// Small allocations share heaps. Keys and values, which can be moved, share none with others as long as the budget
// allows that. The first heap has kFirstHeapBytes (or what is asked for); each next one as many bytes as there are
// already, up to kHeapBytes: a small model takes little, and n bytes take O(log n) heaps until heaps have full size.
// Allocations of more than kHeapBytes / 2 get a heap each. A heap that is empty is kept for PoolOptions::grace_ns and
// then given back: by the next operation, by trim, or at once when the budget, shared pools included, or the device
// needs its bytes.
class Pool {
  public:
    static constexpr uint64_t kAlignment = 256;
    static constexpr uint64_t kFirstHeapBytes = uint64_t{256} << 10;
    static constexpr uint64_t kHeapBytes = uint64_t{8} << 20;

    // A budget bounds heap bytes; mapped files are not counted, since the system can drop their pages. 0 is none.
    Pool(std::shared_ptr<Backend> backend, uint64_t budget_bytes, PoolOptions options = {});
    Pool(std::shared_ptr<Backend> backend, std::shared_ptr<Budget> budget, PoolOptions options = {});
    // Reports allocations that still live, by owner; they stay usable.
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // What an allocation of so many bytes takes of a heap, and counts for; at most the largest whole alignment.
    static constexpr uint64_t reserved_bytes(uint64_t bytes) noexcept {
        constexpr uint64_t kMost = ~uint64_t{0} / kAlignment * kAlignment;
        return bytes == 0 ? kAlignment : bytes > kMost ? kMost : (bytes + kAlignment - 1) / kAlignment * kAlignment;
    }

    // `elements` of `dtype` (a multiple of its block). Throws OutOfMemory naming `owner` when the budget or the backend
    // refuses; nothing changes then.
    Allocation allocate(DType dtype, uint64_t elements, Tag tag, std::string_view owner,
                        Storage storage = Storage::shared, Contents contents = Contents::undefined);
    // Zeroed bytes are filled only where they may hold something: not where a heap that was made of zeros is used for
    // the first time.
    Allocation allocate_bytes(uint64_t bytes, Tag tag, std::string_view owner, Storage storage = Storage::shared,
                              Contents contents = Contents::undefined);
    // For plans: counts what they take. It may outlive the pool, as allocations may.
    const std::shared_ptr<Allocator>& allocator() const noexcept { return allocator_; }
    // See Backend::check_idle: for parts of an allocation that its holder hands out again.
    void check_idle(const BufferView& range, std::string_view owner) const;
    // Counts a zero-copy view of a file under Tag::weights, or no longer.
    void count_mapped(uint64_t bytes) noexcept;
    void uncount_mapped(uint64_t bytes) noexcept;

    // Gives back the heaps that have been empty for the grace period; returns their bytes. `now` is of the pool's
    // clock.
    uint64_t trim(uint64_t now) noexcept;
    uint64_t trim() noexcept;
    // All empty heaps, at once.
    uint64_t drop_empty_heaps() noexcept;
    // Nothing more is allocated in a heap that is draining, so that it can be emptied by moving what is in it. False
    // where there is no such heap.
    bool set_draining(uint64_t heap_id, bool draining) noexcept;

    const std::shared_ptr<Budget>& budget() const noexcept;
    PoolStatistics statistics() const;
    // Bytes of heaps that allocations of `bytes` each, of this tag and storage, cannot have however many of their kind
    // go: what others have there, and the rests that are too small. At least 1 byte each.
    uint64_t withheld_bytes(Tag tag, Storage storage, uint64_t bytes) const noexcept;
    // In order of ids. O(allocations).
    std::vector<HeapUse> heaps() const;
    // The live allocations by owner, most bytes first.
    std::vector<OwnerUse> leaks() const;

  private:
    const std::shared_ptr<PoolState> state_;
    const std::shared_ptr<Allocator> allocator_;
};

}  // namespace metallic
