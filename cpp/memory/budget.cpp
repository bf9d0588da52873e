#include "memory/budget.h"

#include <algorithm>

namespace metallic {

uint64_t Budget::available() const noexcept {
    const uint64_t most = limit(), taken = used();
    return most == 0 ? ~uint64_t{0} : most > taken ? most - taken : 0;
}

uint64_t Budget::take(uint64_t least, uint64_t most, uint64_t step) noexcept {
    const uint64_t limit = this->limit();
    uint64_t used = used_.load(std::memory_order_relaxed), granted = 0;
    do {
        granted = most;
        if (limit) {
            const uint64_t left = limit > used ? limit - used : 0;
            if (left < least) return 0;
            granted = std::clamp(left / step * step, least, most);
        }
    } while (!used_.compare_exchange_weak(used, used + granted, std::memory_order_relaxed));
    return granted;
}

void Budget::join(const void* who, Reclaimer reclaimer) {
    const std::lock_guard lock(mutex_);
    members_.push_back({who, std::move(reclaimer)});
}

void Budget::leave(const void* who) noexcept {
    const std::lock_guard lock(mutex_);
    std::erase_if(members_, [&](const Member& member) { return member.who == who; });
}

uint64_t Budget::reclaim() {
    const std::lock_guard lock(mutex_);
    uint64_t bytes = 0;
    for (const Member& member : members_) bytes += member.reclaimer();
    return bytes;
}

}  // namespace metallic
