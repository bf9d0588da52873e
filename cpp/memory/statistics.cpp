#include "memory/statistics.h"

#include <algorithm>

namespace metallic {

const char* tag_name(Tag tag) noexcept {
    static constexpr const char* kNames[kTags] = {"weights", "kv", "activations", "staging"};
    return kNames[static_cast<int>(tag)];
}

uint64_t PoolStatistics::current() const noexcept {
    uint64_t sum = 0;
    for (const TagUse& use : tags) sum += use.current;
    return sum;
}

PoolStatistics& PoolStatistics::operator+=(const PoolStatistics& other) noexcept {
    for (size_t i = 0; i < tags.size(); ++i) {
        tags[i].current += other.tags[i].current;
        tags[i].peak += other.tags[i].peak;
        tags[i].allocations += other.tags[i].allocations;
        tags[i].live += other.tags[i].live;
        tags[i].average += other.tags[i].average;
    }
    heaps += other.heaps;
    heap_bytes += other.heap_bytes;
    heap_peak += other.heap_peak;
    heaps_created += other.heaps_created;
    empty_heaps += other.empty_heaps;
    mapped_bytes += other.mapped_bytes;
    free_bytes += other.free_bytes;
    largest_free = std::max(largest_free, other.largest_free);
    return *this;
}

double PoolStatistics::fragmentation() const noexcept {
    return free_bytes == 0 ? 0.0 : 1.0 - static_cast<double>(largest_free) / static_cast<double>(free_bytes);
}

TagUse UseOverTime::at(uint64_t now) const noexcept {
    UseOverTime copy = *this;
    copy.advance(now);
    TagUse use = copy.use_;
    const uint64_t lived = copy.since_ - copy.born_;
    use.average = lived ? copy.integral_ / static_cast<double>(lived) : static_cast<double>(use.current);
    return use;
}

}  // namespace metallic
