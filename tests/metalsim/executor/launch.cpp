#include "executor/launch.h"

#include <algorithm>
#include <utility>

namespace metalsim {

LaunchRun::LaunchRun(HostExecutor& executor, const Launch& launch) : executor_(executor), launch_(launch) {
    const Size3& size = launch.threads_per_threadgroup;
    const auto groups = [](uint32_t threads, uint32_t per_group) {
        return per_group == 0 ? 0 : static_cast<uint32_t>((uint64_t{threads} + per_group - 1) / per_group);
    };
    if (launch.threads.x != 0) {
        groups_ = {groups(launch.threads.x, size.x), groups(launch.threads.y, size.y),
                   groups(launch.threads.z, size.z)};
        grid_ = {launch.threads.x, launch.threads.y, launch.threads.z};
    } else {
        groups_ = launch.threadgroups;
        grid_ = {groups_.x * size.x, groups_.y * size.y, groups_.z * size.z};
    }
    total_ = groups_.count();
}

MetalsimUint3 LaunchRun::size_of(const MetalsimUint3& group) const noexcept {
    const Size3& size = launch_.threads_per_threadgroup;
    return {std::min(size.x, grid_.x - group.x * size.x), std::min(size.y, grid_.y - group.y * size.y),
            std::min(size.z, grid_.z - group.z * size.z)};
}

MetalsimUint3 LaunchRun::position_of(uint64_t index) const noexcept {
    const uint64_t row = index / groups_.x;
    return {static_cast<uint32_t>(index % groups_.x), static_cast<uint32_t>(row % groups_.y),
            static_cast<uint32_t>(row / groups_.y)};
}

History::Entry LaunchRun::enter(History& history) {
    const std::lock_guard guard(mutex_);
    if (history_ == nullptr) {
        Party party;
        party.kernel = launch_.function->name;
        party.scope = launch_.scope;
        party.order = order;
        party.threads_per_threadgroup = launch_.threads_per_threadgroup;
        party.groups = groups_;
        party.grid = grid_;
        entry_ = history.enter(std::move(party));
        history_ = &history;
    }
    return entry_;
}

}  // namespace metalsim
