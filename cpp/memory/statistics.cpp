#include "memory/statistics.h"

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
