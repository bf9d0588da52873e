#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "executor/executor.h"
#include "executor/history.h"

// A launch while it runs: what its workers share.
namespace metalsim {

class HostExecutor;

class LaunchRun {
  public:
    LaunchRun(HostExecutor& executor, const Launch& launch);

    const Launch& launch() const noexcept { return launch_; }
    HostExecutor& executor() const noexcept { return executor_; }
    const Size3& groups() const noexcept { return groups_; }
    // Threads of the threadgroup at this position: fewer at a non-uniform edge.
    MetalsimUint3 size_of(const MetalsimUint3& group) const noexcept;
    const MetalsimUint3& grid() const noexcept { return grid_; }
    MetalsimUint3 position_of(uint64_t index) const noexcept;

    // The next threadgroup to run; total() or more: none is left.
    uint64_t take() noexcept { return next_.fetch_add(1, std::memory_order_relaxed); }
    uint64_t total() const noexcept { return total_; }
    void stop() noexcept { next_.store(total_, std::memory_order_relaxed); }

    // Keeps a report unless it is like one before: the same problem, buffer and place in the code.
    void report(Report&& report, const void* site);
    // To the executor. True if there was none.
    bool finish();

    uint32_t helpers = 0;  // workers besides the caller; guarded by the pool
    uint64_t order = 0;    // History's, when the launch began
    // Its entry in the history, made by the first worker that sees a checked access.
    History::Entry enter(History& history);

  private:
    struct Kept {
        Report report;
        const void* site = nullptr;
        uint64_t more = 0;
    };
    HostExecutor& executor_;
    const Launch& launch_;
    Size3 groups_;
    MetalsimUint3 grid_{};
    uint64_t total_ = 0;
    std::atomic<uint64_t> next_{0};
    std::mutex mutex_;
    History::Entry entry_;
    History* history_ = nullptr;
    std::vector<Kept> kept_;
    uint64_t dropped_ = 0;
};

}  // namespace metalsim
