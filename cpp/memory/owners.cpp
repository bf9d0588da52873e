#include "memory/owners.h"

#include <algorithm>

namespace metallic {

uint32_t Owners::look_up(std::string_view name) {
    last_ = kNone;
    auto known = by_name_.find(name);
    if (known == by_name_.end()) {
        if (idle_ > kIdle) forget_idle();
        if (unused_.empty()) {
            unused_.reserve(names_.size() + 1);  // forget_idle cannot fail then
            uses_.reserve(names_.size() + 1);
            names_.emplace_back();
            uses_.emplace_back();
            unused_.push_back(static_cast<uint32_t>(names_.size() - 1));
        }
        const uint32_t owner = unused_.back();
        names_[owner] = name;
        known = by_name_.emplace(names_[owner], owner).first;
        unused_.pop_back();
        ++idle_;
    }
    last_ = known->second;
    last_name_ = known->first;
    return last_;
}

void Owners::forget_idle() noexcept {
    std::erase_if(by_name_, [&](const auto& entry) {
        if (uses_[entry.second].allocations != 0) return false;
        unused_.push_back(entry.second);
        return true;
    });
    idle_ = 0;
}

std::vector<OwnerUse> Owners::live() const {
    std::vector<OwnerUse> result;
    for (size_t i = 0; i < uses_.size(); ++i) {
        if (uses_[i].allocations) result.push_back({names_[i], uses_[i].allocations, uses_[i].bytes});
    }
    std::sort(result.begin(), result.end(), [](const OwnerUse& a, const OwnerUse& b) {
        return a.bytes != b.bytes ? a.bytes > b.bytes : a.owner < b.owner;
    });
    return result;
}

}  // namespace metallic
