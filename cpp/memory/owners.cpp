#include "memory/owners.h"

#include <algorithm>

namespace metallic {

uint32_t Owners::find_or_add(std::string_view name) {
    if (last_ < uses_.size() && uses_[last_].owner == name) return last_;
    if (const auto known = by_name_.find(name); known != by_name_.end()) return last_ = known->second;
    if (idle_ > kIdle) forget_idle();
    if (unused_.empty()) {
        uses_.emplace_back();
        unused_.reserve(uses_.size());  // forget_idle cannot fail then
        unused_.push_back(static_cast<uint32_t>(uses_.size() - 1));
    }
    const uint32_t owner = unused_.back();
    uses_[owner].owner = name;
    by_name_.emplace(uses_[owner].owner, owner);
    unused_.pop_back();
    ++idle_;
    return last_ = owner;
}

void Owners::count(uint32_t owner, uint64_t bytes) noexcept {
    OwnerUse& use = uses_[owner];
    idle_ -= use.allocations == 0;
    ++use.allocations;
    use.bytes += bytes;
}

void Owners::uncount(uint32_t owner, uint64_t bytes) noexcept {
    OwnerUse& use = uses_[owner];
    --use.allocations;
    use.bytes -= bytes;
    idle_ += use.allocations == 0;
}

void Owners::forget_idle() noexcept {
    std::erase_if(by_name_, [&](const auto& entry) {
        if (uses_[entry.second].allocations != 0) return false;
        unused_.push_back(entry.second);
        return true;
    });
    idle_ = 0;
    last_ = ~uint32_t{0};
}

std::vector<OwnerUse> Owners::live() const {
    std::vector<OwnerUse> result;
    for (const OwnerUse& use : uses_) {
        if (use.allocations) result.push_back(use);
    }
    std::sort(result.begin(), result.end(), [](const OwnerUse& a, const OwnerUse& b) {
        return a.bytes != b.bytes ? a.bytes > b.bytes : a.owner < b.owner;
    });
    return result;
}

}  // namespace metallic
