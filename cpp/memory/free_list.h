#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace metallic {

// Which ranges of one heap are free. Best fit (the smallest range that is large enough, lowest offset first), freed
// ranges merge with their neighbours. All operations are O(log free ranges); offsets are multiples of the alignment.
class FreeList {
  public:
    explicit FreeList(uint64_t bytes);

    std::optional<uint64_t> take(uint64_t bytes);
    void give(uint64_t offset, uint64_t bytes);

    uint64_t free_bytes() const noexcept { return free_; }
    uint64_t largest() const noexcept { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }
    size_t ranges() const noexcept { return by_offset_.size(); }

  private:
    void insert(uint64_t offset, uint64_t bytes);
    void remove(std::map<uint64_t, uint64_t>::iterator range);

    std::map<uint64_t, uint64_t> by_offset_;
    std::set<std::pair<uint64_t, uint64_t>> by_size_;  // (bytes, offset)
    uint64_t free_ = 0;
};

}  // namespace metallic
