#include "executor/shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace metalsim {
namespace {

constexpr size_t kBitsBytes = kPageBytes / 8;
constexpr size_t kSlabBytes = size_t{4} << 20;

size_t words_bytes(uint32_t shift) {
    return (size_t{kPageBytes} >> shift) * sizeof(uint64_t);
}

void* map(size_t bytes) {
    void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return at;
}

size_t size_class(size_t bytes) {
    if (bytes == kBitsBytes) return 0;
    return bytes == words_bytes(2) ? 1 : bytes == words_bytes(1) ? 2 : 3;
}

// The bits [first, last) of one word.
uint64_t bit_range(uint32_t first, uint32_t last) {
    const uint64_t high = last == 64 ? ~uint64_t{0} : (uint64_t{1} << last) - 1;
    return high & ~uint64_t{0} << first;
}

}  // namespace

Shadow::Shadow() : tables_(static_cast<std::atomic<Page*>*>(map(kTables * sizeof(std::atomic<Page*>)))) {}

Shadow::~Shadow() {
    for (Page* table : made_) munmap(table, kTableBytes);
    for (void* slab : slabs_) munmap(slab, kSlabBytes);
    munmap(static_cast<void*>(tables_), kTables * sizeof(std::atomic<Page*>));
}

Page* Shadow::page(uintptr_t address) {
    const uintptr_t number = address >> kPageShift;
    std::atomic<Page*>& slot = tables_[number >> kTableShift & (kTables - 1)];
    Page* table = slot.load(std::memory_order_acquire);
    if (table == nullptr) {
        const std::lock_guard guard(mutex_);
        table = slot.load(std::memory_order_relaxed);
        if (table == nullptr) {
            made_.reserve(made_.size() + 1);
            table = static_cast<Page*>(map(kTableBytes));
            made_.push_back(table);
            slot.store(table, std::memory_order_release);
        }
    }
    return &table[number & ((1u << kTableShift) - 1)];
}

// Zeroed.
void* Shadow::allocate(size_t bytes) {
    std::vector<void*>& list = free_[size_class(bytes)];
    if (!list.empty()) {
        void* const at = list.back();
        list.pop_back();
        std::memset(at, 0, bytes);
        return at;
    }
    if (slab_left_ < bytes) {
        slabs_.reserve(slabs_.size() + 1);
        slab_ = static_cast<unsigned char*>(map(kSlabBytes));
        slabs_.push_back(slab_);
        slab_left_ = kSlabBytes;
    }
    slab_left_ -= bytes;
    return slab_ + slab_left_;
}

void Shadow::release(void* at, size_t bytes) {
    free_[size_class(bytes)].push_back(at);
}

uintptr_t Shadow::words(Page& page, uint32_t offset, uint32_t bytes) {
    const uint32_t need = (offset | bytes) & 1 ? 0 : (offset | bytes) & 2 ? 1 : 2;
    const std::lock_guard guard(mutex_);
    const uintptr_t old = page.words.load(std::memory_order_acquire);
    if (old != 0 && shift_of(old) <= need) return old;
    const uint32_t shift = need;
    auto* const made = static_cast<std::atomic<uint64_t>*>(allocate(words_bytes(shift)));
    const uint32_t count = kPageBytes >> shift;
    if (old == 0) {
        const uint64_t uniform = page.uniform.load(std::memory_order_acquire);
        for (uint32_t i = 0; i < count; ++i) made[i].store(uniform, std::memory_order_release);
    } else {
        const std::atomic<uint64_t>* const coarse = words_of(old);
        const uint32_t ratio = shift_of(old) - shift;
        for (uint32_t i = 0; i < count; ++i) {
            made[i].store(coarse[i >> ratio].load(std::memory_order_acquire), std::memory_order_release);
        }
        // The coarse words stay as they are: another thread may still be about to change them.
    }
    const uintptr_t tagged = reinterpret_cast<uintptr_t>(made) | shift;
    page.words.store(tagged, std::memory_order_release);
    return tagged;
}

std::atomic<uint64_t>* Shadow::bits(Page& page) {
    if (auto* const there = bits_of(page.written.load(std::memory_order_acquire))) return there;
    const std::lock_guard guard(mutex_);
    const uintptr_t written = page.written.load(std::memory_order_relaxed);
    if (auto* const there = bits_of(written)) return there;
    auto* const made = static_cast<std::atomic<uint64_t>*>(allocate(kBitsBytes));
    if (written & Page::kAll) std::memset(static_cast<void*>(made), 0xff, kBitsBytes);
    page.written.store(reinterpret_cast<uintptr_t>(made) | written, std::memory_order_release);
    return made;
}

void Shadow::set_written(Page& page, uint32_t offset, uint32_t bytes) {
    if (page.written.load(std::memory_order_relaxed) & Page::kAll) return;
    if (bytes == kPageBytes) {
        page.written.fetch_or(Page::kAll, std::memory_order_release);
        return;
    }
    std::atomic<uint64_t>* const all = bits(page);
    bool full = true;
    for (uint32_t at = offset; at < offset + bytes;) {
        const uint32_t end = std::min(offset + bytes, (at / 64 + 1) * 64);
        const uint64_t more = bit_range(at % 64, end - at / 64 * 64);
        full = (all[at / 64].fetch_or(more, std::memory_order_relaxed) | more) == ~uint64_t{0};
        at = end;
    }
    // Most pages are filled from one end to the other: looked at as a whole once in 64 bytes.
    for (uint32_t i = 0; full && i < kPageBytes / 64; ++i) {
        full = all[i].load(std::memory_order_relaxed) == ~uint64_t{0};
    }
    if (full) page.written.fetch_or(Page::kAll, std::memory_order_release);
}

void Shadow::set_unwritten(Page& page, uint32_t offset, uint32_t bytes) {
    const uintptr_t written = page.written.load(std::memory_order_relaxed);
    if (written == 0) return;
    if (bytes == kPageBytes) {
        std::atomic<uint64_t>* const all = bits_of(written);
        for (uint32_t i = 0; all != nullptr && i < kPageBytes / 64; ++i) all[i].store(0, std::memory_order_relaxed);
        page.written.store(written & ~Page::kAll, std::memory_order_release);
        return;
    }
    std::atomic<uint64_t>* const all = bits(page);
    if (written & Page::kAll) {
        for (uint32_t i = 0; i < kPageBytes / 64; ++i) all[i].store(~uint64_t{0}, std::memory_order_relaxed);
    }
    for (uint32_t at = offset; at < offset + bytes;) {
        const uint32_t end = std::min(offset + bytes, (at / 64 + 1) * 64);
        all[at / 64].fetch_and(~bit_range(at % 64, end - at / 64 * 64), std::memory_order_relaxed);
        at = end;
    }
    page.written.fetch_and(~Page::kAll, std::memory_order_release);
}

template <class F>
void Shadow::each_page(uintptr_t address, uint64_t bytes, bool make, F&& visit) {
    const uintptr_t end = address + bytes;
    while (address < end) {
        const auto offset = static_cast<uint32_t>(address & (kPageBytes - 1));
        const auto size = static_cast<uint32_t>(std::min<uint64_t>(kPageBytes - offset, end - address));
        const uintptr_t table = address >> (kPageShift + kTableShift);
        if (!make && tables_[table & (kTables - 1)].load(std::memory_order_acquire) == nullptr) {
            const uintptr_t next = (table + 1) << (kPageShift + kTableShift);
            if (next >= end) return;
            address = next;
            continue;
        }
        visit(*page(address), offset, size);
        address += size;
    }
}

void Shadow::mark(uintptr_t address, uint64_t bytes, bool written) {
    each_page(address, bytes, written, [&](Page& page, uint32_t offset, uint32_t size) {
        if (written) {
            set_written(page, offset, size);
        } else {
            set_unwritten(page, offset, size);
        }
    });
}

void Shadow::clear(Page& page) {
    page.uniform.store(0, std::memory_order_relaxed);
    const uintptr_t words = page.words.load(std::memory_order_acquire);
    if (words == 0) return;
    const uint32_t count = kPageBytes >> shift_of(words);
    for (uint32_t i = 0; i < count; ++i) words_of(words)[i].store(0, std::memory_order_relaxed);
}

void Shadow::drop(uintptr_t address, uint64_t bytes) {
    each_page(address, bytes, false, [&](Page& page, uint32_t, uint32_t size) {
        if (size != kPageBytes) return clear(page);
        const std::lock_guard guard(mutex_);
        page.uniform.store(0, std::memory_order_relaxed);
        const uintptr_t words = page.words.exchange(0);
        if (words != 0) release(words_of(words), words_bytes(shift_of(words)));
        const uintptr_t written = page.written.exchange(0);
        if (bits_of(written) != nullptr) release(bits_of(written), kBitsBytes);
    });
}

void Shadow::forget_accesses() {
    std::vector<Page*> tables;
    {
        const std::lock_guard guard(mutex_);
        tables = made_;
    }
    for (Page* table : tables) {
        for (uint32_t i = 0; i < 1u << kTableShift; ++i) {
            if (table[i].uniform.load(std::memory_order_relaxed) != 0 || table[i].words.load() != 0) clear(table[i]);
        }
    }
}

}  // namespace metalsim
