#include "runtime/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>

#include "runtime/objects.h"

namespace metalsim {
namespace {

// Address space that released ranges may hold, and their number.
constexpr uint64_t kQuarantineBytes = uint64_t{64} << 30;
constexpr size_t kQuarantineRanges = 4096;

struct Quarantine {
    struct Range {
        std::byte* base;
        uint64_t bytes;
        Memory::Id region;
    };
    std::mutex mutex;
    std::deque<Range> ranges;
    uint64_t bytes = 0;
};

Quarantine& quarantine() {
    static Quarantine* const shared = new Quarantine;
    return *shared;
}

}  // namespace

uint64_t page_bytes() noexcept {
    static const auto bytes = static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
    return bytes;
}

bool is_mapped(const std::byte* base, uint64_t bytes) noexcept {
    std::array<unsigned char, 256> resident{};
    const uint64_t step = resident.size() * page_bytes();
    for (uint64_t at = 0; at < bytes; at += step) {
        auto* const page = const_cast<std::byte*>(base + at);
        if (mincore(page, std::min(step, bytes - at), resident.data()) != 0 && errno == ENOMEM) return false;
    }
    return true;
}

std::byte* map_pages(uint64_t bytes) {
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return base != MAP_FAILED ? static_cast<std::byte*>(base) : nullptr;
}

void retire_pages(std::byte* base, uint64_t bytes, Memory::Id region) {
    executor().memory().release(region);
    madvise(base, bytes, MADV_DONTNEED);
    Quarantine& held = quarantine();
    const std::lock_guard lock(held.mutex);
    held.ranges.push_back({base, bytes, region});
    held.bytes += bytes;
    while (held.bytes > kQuarantineBytes || held.ranges.size() > kQuarantineRanges) {
        const Quarantine::Range oldest = held.ranges.front();
        held.ranges.pop_front();
        held.bytes -= oldest.bytes;
        executor().memory().forget(oldest.region);
        munmap(oldest.base, oldest.bytes);
    }
}

bool DeviceState::reserve(uint64_t bytes, bool always) {
    const std::lock_guard lock(mutex);
    if (!always && (bytes > model.memory_bytes || allocated > model.memory_bytes - bytes)) return false;
    allocated += bytes;
    Counters& all = counters();
    const uint64_t now = all.bytes_allocated.fetch_add(bytes) + bytes;
    uint64_t peak = all.peak_bytes.load();
    while (peak < now && !all.peak_bytes.compare_exchange_weak(peak, now)) {
    }
    return true;
}

void DeviceState::unreserve(uint64_t bytes) {
    const std::lock_guard lock(mutex);
    allocated -= bytes;
    counters().bytes_allocated -= bytes;
}

void AllocationState::set_label(NSString* text) {
    {
        const std::lock_guard lock(label_mutex);
        label = Ref<NSString*>::adopt([text copy]);
    }
    executor().memory().rename(region, text_of(text));
}

NSString* AllocationState::get_label() {
    const std::lock_guard lock(label_mutex);
    return [[label.get() retain] autorelease];
}

std::string AllocationState::name() {
    const std::lock_guard lock(label_mutex);
    return std::string(text_of(label.get()));
}

uint64_t HeapState::used() noexcept {
    const std::lock_guard lock(mutex);
    uint64_t total = 0;
    for (const Range& range : ranges) total += range.alive && !range.aliasable ? range.bytes : 0;
    return total;
}

namespace {

// Calls `fits(offset, bytes)` for each free stretch, in order, until it says true.
template <class F>
void for_free_stretches(const HeapState& heap, F&& fits) {
    std::vector<std::pair<uint64_t, uint64_t>> taken;
    for (const HeapState::Range& range : heap.ranges) {
        if (range.alive && !range.aliasable) taken.emplace_back(range.offset, range.bytes);
    }
    std::sort(taken.begin(), taken.end());
    uint64_t at = 0;
    for (const auto& [offset, bytes] : taken) {
        if (offset > at && fits(at, offset - at)) return;
        at = std::max(at, offset + bytes);
    }
    if (at < heap.bytes) fits(at, heap.bytes - at);
}

}  // namespace

uint64_t HeapState::find(uint64_t wanted, uint64_t alignment) {
    const std::lock_guard lock(mutex);
    uint64_t found = UINT64_MAX;
    for_free_stretches(*this, [&](uint64_t offset, uint64_t count) {
        const uint64_t start = round_up(offset, alignment);
        if (start - offset > count || count - (start - offset) < wanted) return false;
        found = start;
        return true;
    });
    return found;
}

uint64_t HeapState::largest(uint64_t alignment) {
    const std::lock_guard lock(mutex);
    uint64_t best = 0;
    for_free_stretches(*this, [&](uint64_t offset, uint64_t count) {
        const uint64_t lost = round_up(offset, alignment) - offset;
        best = std::max(best, count > lost ? count - lost : 0);
        return false;
    });
    return best;
}

void HeapState::add(uint64_t offset, uint64_t count, Memory::Id id) {
    const std::lock_guard lock(mutex);
    // What was released here can no longer be told from the new.
    std::erase_if(ranges, [&](const Range& range) {
        const bool overlaps = range.offset < offset + count && offset < range.offset + range.bytes;
        if (range.alive || !overlaps) return false;
        executor().memory().forget(range.region);
        return true;
    });
    ranges.push_back({offset, count, id, true, false});
}

void HeapState::remove(Memory::Id id) {
    const std::lock_guard lock(mutex);
    for (Range& range : ranges) {
        if (range.region == id) range.alive = false;
    }
    executor().memory().release(id);
}

void HeapState::make_aliasable(Memory::Id id) {
    const std::lock_guard lock(mutex);
    for (Range& range : ranges) {
        if (range.region == id) range.aliasable = true;
    }
}

}  // namespace metalsim
