#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

// What the checks remember of every byte of device and threadgroup memory: who accessed it last, and whether anybody
// ever wrote it. Kept by pages of the host, found by address, committed when first needed: a region costs 24 bytes per
// page of it, and 8 more per granule in pages that kernels touched.
namespace metalsim {

// Who accessed a granule: a segment (see History) and a lane of its simdgroup, or several at once. 0: nobody.
using Actor = uint32_t;
constexpr Actor kSeveral = 1u << 31;  // the low bits are a Spread; the segment is that of one of them
constexpr Actor kAtomic = 1u << 30;   // of a write
constexpr uint32_t kSegments = 1u << 25;
enum Spread : uint32_t { kLanesOfSegment = 1, kThreadsOfGroup = 2, kAnywhere = 3 };
constexpr uint32_t segment_of(Actor actor) noexcept {
    return actor >> 5 & (kSegments - 1);
}
constexpr Actor actor_of(uint32_t segment, uint32_t lane) noexcept {
    return segment << 5 | lane;
}
constexpr Actor several(uint32_t segment, Spread spread) noexcept {
    return kSeveral | segment << 5 | spread;
}

// The last write and the reads since, in one word, so that it is never seen half changed: threadgroups run at the same
// time. Two that race for a word lose one of two changes, which may hide a fault and cannot make one up. Words are
// written with release and decoded after acquire: what History says of a segment comes before its number.
constexpr uint64_t access_word(Actor write, Actor read) noexcept {
    return uint64_t{read} << 32 | write;
}
constexpr Actor write_of(uint64_t word) noexcept {
    return static_cast<Actor>(word);
}
constexpr Actor read_of(uint64_t word) noexcept {
    return static_cast<Actor>(word >> 32);
}

constexpr uint32_t kPageShift = 12;
constexpr uint32_t kPageBytes = 1u << kPageShift;

// Starts with granules of four bytes and goes to finer ones when an access asks for it, so that neighbours in one
// granule are never taken for each other. All zero: nothing known.
struct Page {
    std::atomic<uint64_t> uniform{0};   // of all granules while there are no words
    std::atomic<uintptr_t> words{0};    // std::atomic<uint64_t>*, with the granule's shift in the low bits
    std::atomic<uintptr_t> written{0};  // std::atomic<uint64_t>* to a bit per byte, or null; plus kAll: all are

    static constexpr uintptr_t kAll = 1;
};

constexpr uint32_t shift_of(uintptr_t words) noexcept {
    return words & 3;
}
inline std::atomic<uint64_t>* words_of(uintptr_t words) noexcept {
    return reinterpret_cast<std::atomic<uint64_t>*>(words & ~uintptr_t{3});
}

inline std::atomic<uint64_t>* bits_of(uintptr_t written) noexcept {
    return reinterpret_cast<std::atomic<uint64_t>*>(written & ~Page::kAll);
}

// False may also mean that the bytes lie across two words of bits, which takes a closer look.
inline bool is_written(uintptr_t written, uint32_t offset, uint32_t bytes) noexcept {
    if (written & Page::kAll) return true;
    const std::atomic<uint64_t>* const bits = bits_of(written);
    const uint32_t shift = offset % 64;
    if (bits == nullptr || shift + bytes > 64) return false;
    const uint64_t wanted = (bytes == 64 ? ~uint64_t{0} : (uint64_t{1} << bytes) - 1) << shift;
    return (bits[offset / 64].load(std::memory_order_relaxed) & wanted) == wanted;
}

class Shadow {
  public:
    Shadow();
    ~Shadow();
    Shadow(const Shadow&) = delete;
    Shadow& operator=(const Shadow&) = delete;

    Page* page(uintptr_t address);  // made if it is not there
    // The page's words, with granules that divide the offset and the size. A page of threadgroup memory is not in the
    // tables; its words come from here all the same.
    uintptr_t words(Page& page, uint32_t offset, uint32_t bytes);
    // The bits of a page that is partly written.
    std::atomic<uint64_t>* bits(Page& page);
    void set_written(Page& page, uint32_t offset, uint32_t bytes);
    void set_unwritten(Page& page, uint32_t offset, uint32_t bytes);

    void mark(uintptr_t address, uint64_t bytes, bool written);
    // Forgets all about the pages that lie wholly within, and who accessed the rest.
    void drop(uintptr_t address, uint64_t bytes);
    // Forgets who accessed what.
    void forget_accesses();
    void clear(Page& page);

  private:
    static constexpr uint32_t kTableShift = 18;    // pages in a table: a gigabyte
    static constexpr uint32_t kTables = 1u << 18;  // 48 bits of address
    static constexpr size_t kTableBytes = sizeof(Page) << kTableShift;

    void* allocate(size_t bytes);
    void release(void* at, size_t bytes);
    template <class F>
    void each_page(uintptr_t address, uint64_t bytes, bool make, F&& visit);

    std::atomic<Page*>* tables_ = nullptr;
    std::mutex mutex_;
    std::vector<Page*> made_;
    unsigned char* slab_ = nullptr;
    size_t slab_left_ = 0;
    std::vector<void*> slabs_;
    std::vector<void*> free_[4];  // by size: bits, then words of granules of 4, 2 and 1 bytes
};

}  // namespace metalsim
