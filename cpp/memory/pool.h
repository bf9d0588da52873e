#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "memory/free_list.h"

namespace metallic {

enum class Tag : uint8_t { weights, kv, activations, staging };
inline constexpr int kTags = 4;
const char* tag_name(Tag tag) noexcept;

struct TagUse {
    uint64_t current = 0;
    uint64_t peak = 0;
    uint64_t allocations = 0;  // ever
};

struct PoolStatistics {
    std::array<TagUse, kTags> tags;
    uint64_t heaps = 0;
    uint64_t heap_bytes = 0;    // obtained from the backend
    uint64_t mapped_bytes = 0;  // views over files: counted as weights, never as heaps
    uint64_t free_bytes = 0;    // in heaps, not handed out
    uint64_t largest_free = 0;
    uint64_t budget = 0;  // 0: none

    uint64_t current() const noexcept;
    // Of another pool, for the same purposes; peaks are added, which they may not have had at one time.
    PoolStatistics& operator+=(const PoolStatistics& other) noexcept;
    // 0: all free bytes are one range; towards 1: many small ones.
    double fragmentation() const noexcept;
};

class Pool;

// A part of a heap, typed, owned by its holder and returned to the pool on destruction.
class Allocation {
  public:
    Allocation() = default;
    Allocation(Allocation&& other) noexcept { *this = std::move(other); }
    Allocation& operator=(Allocation&& other) noexcept;
    ~Allocation() { reset(); }

    void reset() noexcept;
    explicit operator bool() const noexcept { return pool_ != nullptr; }
    BufferView view() const noexcept { return view_; }
    DType dtype() const noexcept { return dtype_; }
    uint64_t elements() const noexcept { return elements_; }
    Tag tag() const noexcept { return tag_; }

  private:
    friend class Pool;
    Pool* pool_ = nullptr;
    BufferView view_;
    uint64_t reserved_ = 0;  // bytes taken from the heap
    uint64_t elements_ = 0;
    uint32_t heap_ = 0;
    DType dtype_ = DType::F32;
    Tag tag_ = Tag::activations;
};

// The sub-allocator over heaps. Small allocations share heaps of kHeapBytes, large ones get a heap of their own, which
// returns to the system when they are freed. Thread-safe.
class Pool {
  public:
    static constexpr uint64_t kAlignment = 256;
    static constexpr uint64_t kHeapBytes = uint64_t{8} << 20;

    // A budget of 0 is none. It bounds heap bytes; mapped files are not counted, since the system can drop their pages.
    Pool(std::shared_ptr<Backend> backend, uint64_t budget);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    // `elements` of `dtype` (a multiple of its block). Throws OutOfMemory naming `owner` when the budget or the backend
    // refuses; nothing changes then.
    Allocation allocate(DType dtype, uint64_t elements, Tag tag, std::string_view owner);
    Allocation allocate_bytes(uint64_t bytes, Tag tag, std::string_view owner, Storage storage = Storage::shared);
    // See Backend::check_idle: for parts of an allocation that its holder hands out again.
    void check_idle(const BufferView& range, std::string_view owner) const { backend_->check_idle(range, owner); }
    // Within this pool's device; see Backend::copy.
    void copy(BufferView from, BufferView to) { backend_->copy(from, to); }
    // Counts a zero-copy view of a file under Tag::weights.
    void count_mapped(uint64_t bytes) noexcept;

    PoolStatistics statistics() const;

  private:
    friend class Allocation;
    struct Slot {
        std::shared_ptr<Heap> heap;
        std::unique_ptr<FreeList> ranges;  // null: a heap of one allocation
    };

    uint64_t divided_heap_bytes(uint64_t needed) const noexcept;
    Allocation place(uint64_t reserved, std::string_view owner, Storage storage);
    uint32_t add_heap(uint64_t bytes, std::string_view owner, Storage storage, bool divided);
    void release(Allocation& allocation) noexcept;
    void drop(Slot& slot) noexcept;
    void drop_empty_heaps() noexcept;

    std::shared_ptr<Backend> backend_;
    mutable std::mutex mutex_;
    std::vector<Slot> heaps_;
    PoolStatistics statistics_;
};

}  // namespace metallic
