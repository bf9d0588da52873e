#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace metallic {

// The live allocations of one owner, which is a scope or a tensor.
struct OwnerUse {
    std::string owner;
    uint64_t allocations = 0;
    uint64_t bytes = 0;
};

// Names of owners, each kept once and known by a number while it has allocations. A name that is known costs a look-up
// and no copy. Of names without allocations at most about kIdle are kept, so that names such as those of requests do
// not pile up.
class Owners {
  public:
    static constexpr size_t kIdle = 1024;

    uint32_t find_or_add(std::string_view name) { return last_ != kNone && name == last_name_ ? last_ : look_up(name); }
    void count(uint32_t owner, uint64_t bytes) noexcept {
        Use& use = uses_[owner];
        idle_ -= use.allocations == 0;
        ++use.allocations;
        use.bytes += bytes;
    }
    void uncount(uint32_t owner, uint64_t bytes) noexcept {
        Use& use = uses_[owner];
        --use.allocations;
        use.bytes -= bytes;
        idle_ += use.allocations == 0;
    }
    const std::string& name(uint32_t owner) const noexcept { return names_[owner]; }
    size_t known() const noexcept { return by_name_.size(); }
    // Those with live allocations, most bytes first.
    std::vector<OwnerUse> live() const;

  private:
    static constexpr uint32_t kNone = ~uint32_t{0};
    struct Use {
        uint64_t allocations = 0, bytes = 0;
    };
    uint32_t look_up(std::string_view name);
    void forget_idle() noexcept;

    std::deque<std::string> names_;  // stay in place: the map's keys are views of them
    std::vector<Use> uses_;
    std::unordered_map<std::string_view, uint32_t> by_name_;
    std::vector<uint32_t> unused_;
    uint32_t last_ = kNone;  // the one that was looked up last
    std::string_view last_name_;
    size_t idle_ = 0;
};

}  // namespace metallic
