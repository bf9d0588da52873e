#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace metallic {

// Two-level segregated fit over offsets (M. Masmano, I. Ripoll, A. Crespo, J. Real: "TLSF: a New Dynamic Memory
// Allocator for Real-Time Systems", ECRTS 2004). It manages regions, such as heaps, that need not be readable: all
// bookkeeping is outside of them. Sizes and offsets are whole granules.
//
// Free blocks lie in classes: sizes under 32 granules exactly, larger ones in 32 equal steps between powers of two. Two
// levels of bitmaps say which classes have blocks.
//
// Bounds
//  - Time: take and give are O(1), whatever the number of blocks and regions: two bitmap look-ups, at most kProbes
//    looks into a list, one split, at most two merges. Descriptors are recycled: once there were as many blocks as
//    there will be, nothing is allocated. Until then take grows an array, amortised O(1); give never allocates or
//    throws.
//  - Fit: take succeeds if any open region has a free block of 33/32 of the wanted size; for less than 32 granules, of
//    the size itself. What it splits is of the wanted class or the smallest that has a block above it, so a block that
//    is split is never larger than need be by more than its class is wide (1/32). take_any looks at all of the class
//    and finds every block that is large enough: O(blocks of one class).
//  - Internal fragmentation: the rest of a split is always given back, so a block wastes less than one granule.
//  - External fragmentation: free neighbours are always merged. For sizes between m and M granules every allocator that
//    does not move blocks can be driven to use about log2(M/m)/2 times the bytes in use (J. M. Robson 1971); the worst
//    case of best fit, which a good fit comes near, is worse (Robson 1977). The answer to it is to move blocks, not
//    here.
class Tlsf {
  public:
    static constexpr uint32_t kProbes = 4;
    static constexpr uint64_t kMostGranules = uint64_t{1} << 31;  // of a region

    explicit Tlsf(uint64_t granule);

    struct Block {
        uint32_t node = 0;    // what give wants
        uint32_t region = 0;  // the number that the region was added with
        uint64_t offset = 0;
        bool fresh = false;  // no byte of it was ever taken before
    };
    struct RegionUse {
        uint64_t used = 0, largest_free = 0, blocks = 0;  // blocks: taken
    };

    // A region of whole granules, free; `number` comes back with its blocks. Returns the region's node, which stands
    // for it until it is removed. Throws Error for a region that is too large.
    uint32_t add_region(uint64_t bytes, uint32_t number);
    // All of it must be free.
    void remove_region(uint32_t region) noexcept;
    // Blocks of a closed region are not handed out; those that were may be given back.
    void set_closed(uint32_t region, bool closed) noexcept;

    // `bytes` at least 1, rounded up to granules.
    std::optional<Block> take(uint64_t bytes) { return place(bytes, kProbes); }
    std::optional<Block> take_any(uint64_t bytes) { return place(bytes, ~uint32_t{0}); }
    void give(uint32_t node) noexcept;

    uint64_t free_bytes() const noexcept { return free_ * granule_; }
    // Of open regions. O(blocks of the highest class).
    uint64_t largest() const noexcept;
    // O(blocks of the region).
    RegionUse region_use(uint32_t region) const noexcept;

  private:
    // A descriptor that is no block: it counts as taken, and what is written to it means nothing.
    static constexpr uint32_t kNone = 0;
    static constexpr uint32_t kStepBits = 5;
    static constexpr uint32_t kSteps = 1u << kStepBits;  // second-level classes of a first-level one
    static constexpr uint32_t kLevels = 28;              // sizes under 32, then under 64, 128, ..., 2^32
    enum class State : uint8_t { taken, free, free_in_closed };

    // A block, or an unused descriptor. The first block of a region keeps the region's descriptor for good.
    struct alignas(32) Node {
        uint32_t offset = 0, size = 0;            // granules
        uint32_t before = kNone, after = kNone;   // neighbours in the region
        uint32_t previous = kNone, next = kNone;  // in the list of the class
        uint32_t region = kNone;                  // the first block of its region
        uint16_t list = 0;                        // its class, where it is free
        State state = State::taken;
    };
    struct Region {
        uint32_t number = 0;
        uint32_t fresh_from = 0;  // granules from here on were never taken
        bool closed = false;
    };

    // level x kSteps + step
    static uint32_t class_of(uint32_t granules) noexcept;
    std::optional<Block> place(uint64_t bytes, uint32_t probes);
    uint32_t find(uint32_t granules, uint32_t probes) const noexcept;
    uint32_t new_node();
    void link(uint32_t node) noexcept;
    void unlink(uint32_t node) noexcept;
    void release_node(uint32_t node) noexcept;
    // Joins a free block with the one after it, which is free too and in no list.
    void absorb_next(uint32_t node) noexcept;

    const uint64_t granule_;
    uint64_t free_ = 0;  // granules
    // Above the last level one that always has a class, whose list is empty: a search ends there.
    uint32_t levels_ = 1u << kLevels;
    std::array<uint32_t, kLevels + 1> steps_{};
    std::array<uint32_t, kLevels * kSteps + 1> heads_{};
    std::vector<Node> nodes_;
    std::vector<Region> regions_;  // by the region's node
    uint32_t unused_ = kNone;      // descriptors, linked by next
};

}  // namespace metallic
