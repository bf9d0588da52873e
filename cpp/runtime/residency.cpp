#include "runtime/residency.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "core/error.h"
#include "core/signals.h"

namespace metallic {

WatermarkPolicy::WatermarkPolicy(const Options& options) : options_(options) {
    if (!(options.low > 0 && options.low <= options.high && options.high <= 1)) {
        throw RequestError("the watermarks of memory must satisfy 0 < low <= high <= 1");
    }
}

MemoryDecision WatermarkPolicy::decide(const MemoryState& state) const {
    MemoryDecision decision;
    const double limit = static_cast<double>(state.limit);
    const double used = static_cast<double>(state.heap_bytes);
    const uint64_t free = state.kv_held - std::min(state.kv_held, state.kv_in_use);
    decision.compact =
        free >= kMinFree && static_cast<double>(free) >= options_.held_free * static_cast<double>(state.kv_held);
    if (limit == 0 || used <= options_.high * limit) return decision;
    decision.evict_bytes = static_cast<uint64_t>(used - options_.low * limit);
    if (state.weight_bytes != 0 && state.idle_ns >= options_.weights_idle_ns) {
        decision.evict_weight_bytes = decision.evict_bytes;
    }
    return decision;
}

ResidencyManager::ResidencyManager(std::function<void()> balance, Failed failed, std::chrono::milliseconds period)
    : balance_(std::move(balance)), failed_(std::move(failed)), period_(period), process_(getpid()) {
    const SignalsBlocked blocked;
    try {
        thread_ = std::thread([this] { run(); });
    } catch (const std::system_error& error) {
        throw DeviceError(std::string("the system refused a thread: ") + error.what(), "residency", "refused");
    }
}

ResidencyManager::~ResidencyManager() {
    if (getpid() != process_) {  // the thread did not come along
        thread_.detach();
        return;
    }
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    stop_.notify_all();
    thread_.join();
}

void ResidencyManager::run() {
    std::unique_lock lock(mutex_);
    while (!stop_.wait_for(lock, period_, [&] { return stopping_; })) {
        lock.unlock();
        try {
            balance_();
        } catch (const std::exception& error) {
            failed_(error.what());
        } catch (...) {
            failed_("an exception of no known type");
        }
        lock.lock();
    }
}

}  // namespace metallic
