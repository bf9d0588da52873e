#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "executor/group.h"
#include "executor/history.h"
#include "executor/launch.h"
#include "executor/regions.h"
#include "executor/shadow.h"

// What the executor says about a running kernel, and the checks of its accesses.
namespace metalsim {

std::string text(const MetalsimUint3& position);

// About the running thread.
void report(Group& group, Problem problem, std::string detail, const void* site = nullptr);
// A fault of the processor: in kernels that are not checked, or within memory that a check let pass.
void report_bad_address(Group& group, const void* address);
// Finds a thread that is not where the others are.
void report_barrier_divergence(Group& group, const Simdgroup* simdgroups, const void* site);

enum class Access : uint8_t { load, store, atomic };

// What the checks of all workers share.
struct Books {
    Shadow shadow;
    History history{shadow};
    Regions regions{shadow};
};

// The checks of one worker. Costs nothing until a kernel of a checked library makes its first access.
//
// Two accesses of the same bytes, one of them a write, not both atomic, need an order between them. For threads of a
// threadgroup that is a threadgroup_barrier or, within a simdgroup, a simdgroup_barrier, with the mem_flags of the
// memory in question (Metal Shading Language Specification, 6.9.1 and table 6.13). Nothing else orders memory: the
// SIMD-group and quad-group functions (6.9.2, 6.9.3) exchange values and are not specified to fence, and atomic
// operations are relaxed (6.15.4). Threadgroups of a dispatch are not ordered at all, dispatches by Executor::order().
class Checker {
  public:
    Checker(Group& group, Books& books) : group_(group), books_(books) {}

    void begin(LaunchRun& run);
    void end();
    void begin_group() {
        if (active_) start_group();
    }
    void group_barrier(uint32_t fence) {
        if (active_ && fence != 0) pass_group_barrier(fence);
    }
    void simd_barrier(uint32_t simdgroup, uint32_t fence) {
        if (active_ && fence != 0) pass_simd_barrier(simdgroup, fence);
    }

    template <Access kind>
    [[gnu::always_inline]] inline void access(uintptr_t address, uint32_t bytes, const void* site);
    // The running thread faulted: in the access that it announced last, if this launch is checked.
    void tell_misaligned();
    // Of any size.
    void range(uintptr_t address, uint64_t bytes, bool write, const void* site);

  private:
    enum Space : uint8_t { kDevice, kThreadgroup };

    // Where an address belongs, remembered by page.
    struct Translation {
        uintptr_t page = ~uintptr_t{0};
        uintptr_t low = 0, high = 0;  // of the region, or of the threadgroup variable
        Page* shadow = nullptr;       // null: nothing to remember
        bool writable = false;
        Space space = kDevice;
    };
    static constexpr uint32_t kTranslations = 256;
    static constexpr uint32_t kChunk = 256;  // segments that a worker takes at a time

    void activate();
    void start_group();
    void pass_group_barrier(uint32_t fence);
    void pass_simd_barrier(uint32_t simdgroup, uint32_t fence);
    void new_segments(uint32_t first, uint32_t count);

    void access_slowly(Access kind, uintptr_t address, uint64_t bytes, const void* site);
    void check_page(Access kind, const Translation& at, uintptr_t address, uint32_t bytes);
    // Fills `at` with the place of an access; reports and gives the threadgroup up if there is none.
    void translate(Access kind, uintptr_t address, uint64_t bytes, const void* site, Translation& at);
    bool translate_threadgroup(uintptr_t address, uint64_t bytes, const void* site, Translation& at);
    bool translate_region(Access kind, uintptr_t address, uint64_t bytes, const void* site, Translation& at);
    struct Residence {
        const RegionRecord* record = nullptr;
        bool resident = false, writable = false;
    };
    const Residence& residence(const RegionRecord& record);
    bool translate_other(Access kind, uintptr_t address, uint64_t bytes, Translation& at);
    [[noreturn]] void stray(Access kind, uintptr_t address, uint64_t bytes, const void* site);
    bool in_module(Access kind, uintptr_t address, uint64_t bytes, Translation& at);

    Actor me() const { return actor_of(segments_[group_.simdgroup->index], group_.lane); }
    // Whether the word already says what this access would make it say.
    [[gnu::always_inline]] inline bool settled(Access kind, uint64_t word, Space space) const;
    void note(Access kind, std::atomic<uint64_t>& word, const Translation& at, uintptr_t address, uint32_t bytes);
    bool ordered(Actor actor, Space space) const;
    bool mine(Actor actor) const;
    bool in_group(const Segment& segment) const { return segment.launch == launch_ && segment.group == group_.index; }
    Actor joined(Actor before, Space space) const;
    void conflict(Access kind, Actor other, bool other_writes, const Translation& at, uintptr_t address,
                  uint32_t bytes);
    void check_written(Access kind, const Translation& at, uintptr_t address, uint32_t bytes);

    const void* identity(const Translation& at) const;
    // False when the like of it was said before in this launch, by this worker.
    bool news(Problem problem, uintptr_t place, const void* site);
    void tell(Problem problem, Space space, uintptr_t address, uint64_t bytes, std::string detail, const void* site);

    Group& group_;
    Books& books_;
    bool active_ = false;
    bool tracking_ = false;  // segments are left
    uintptr_t last_ = 0;     // address that was checked last
    uint32_t last_bytes_ = 0;
    LaunchRun* run_ = nullptr;
    uint64_t order_ = 0;
    uint32_t launch_ = 0;
    uint32_t era_ = 0;
    std::shared_ptr<const RegionMap> map_;

    std::array<uint32_t, kSimdgroups> segments_{};  // now, of each simdgroup
    // By space. Segments below `floor_` are ordered before all threads of the threadgroup; of the threadgroup's own
    // segments also those below `group_floor_`, and of a simdgroup's own those below `simd_floor_` for that simdgroup.
    std::array<uint32_t, 2> floor_{}, group_floor_{};
    std::array<std::array<uint32_t, kSimdgroups>, 2> simd_floor_{};
    uint32_t chunk_next_ = 0, chunk_end_ = 0;

    std::array<Translation, kTranslations> translations_{};
    std::array<Residence, 64> residences_{};
    std::unique_ptr<Page[]> arena_pages_;
    struct Told {
        Problem problem = Problem::api;
        uintptr_t place = 0;
        const void* site = nullptr;
    };
    std::array<Told, 32> told_{};
    uint32_t told_count_ = 0;
    // Of the library that the kernel is in.
    struct LoadedSegment {
        uintptr_t low = 0, high = 0;
        bool writable = false;
    };
    std::vector<LoadedSegment> module_;
    MetalsimKernel module_of_ = nullptr;
};

bool Checker::settled(Access kind, uint64_t word, Space space) const {
    const Actor self = me();
    const Actor read = read_of(word);
    const Actor write = write_of(word);
    if (kind == Access::store) return write == self && read == 0;
    if (kind == Access::atomic) return write == (self | kAtomic) && read == 0;
    if (read == self) return true;
    if (!(read & kSeveral)) return false;
    // Read by many, this thread's kind among them, and not written since: a writer would have seen a conflict.
    const uint32_t number = segment_of(read);
    switch (read & 31) {
        case kLanesOfSegment:
            return number == segment_of(self);
        case kThreadsOfGroup:
            return space == kThreadgroup && number >= floor_[kThreadgroup];
        default:
            return number >= floor_[kDevice] && segment_of(write) < floor_[kDevice];
    }
}

template <Access kind>
void Checker::access(uintptr_t address, uint32_t bytes, const void* site) {
    const Fiber& fiber = *group_.fiber;
    if (address - reinterpret_cast<uintptr_t>(fiber.stack) < fiber.stack_bytes) return;
    const Translation& at = translations_[address >> kPageShift & (kTranslations - 1)];
    const auto offset = static_cast<uint32_t>(address & (kPageBytes - 1));
    if (at.page != address >> kPageShift || address < at.low || address + bytes > at.high ||
        offset + bytes > kPageBytes || (kind != Access::load && !at.writable) || group_.combining) {
        return access_slowly(kind, address, bytes, site);
    }
    last_ = address;
    last_bytes_ = bytes;
    if (at.shadow == nullptr) return;
    const uintptr_t written = at.shadow->written.load(std::memory_order_acquire);
    const uintptr_t words = at.shadow->words.load(std::memory_order_acquire);
    const uint32_t mask = (1u << shift_of(words)) - 1;
    if (!is_written(written, offset, bytes) || words == 0 || ((offset | bytes) & mask) != 0 || !tracking_) {
        return check_page(kind, at, address, bytes);
    }
    std::atomic<uint64_t>* word = words_of(words) + (offset >> shift_of(words));
    for (uint32_t left = bytes >> shift_of(words); left != 0; --left, ++word) {
        if (!settled(kind, word->load(std::memory_order_relaxed), at.space)) note(kind, *word, at, address, bytes);
    }
}

}  // namespace metalsim
