#include "memory/memory_log.h"

#include <new>

#include "trace/events.h"

namespace metallic {

const char* memory_action_name(MemoryAction action) noexcept {
    static constexpr const char* kNames[kMemoryActions] = {
        "save", "compress", "restore", "drop",          "recompute",       "compact", "preempt",
        "wait", "admit",    "refuse",  "evict_weights", "restore_weights", "trim",    "fail"};
    return kNames[static_cast<int>(action)];
}

void MemoryLog::record(MemoryAction action, uint64_t bytes, std::string_view scope, std::string_view reason) noexcept {
    const std::lock_guard lock(mutex_);
    Count& count = counts_[static_cast<int>(action)];
    ++count.events;
    count.bytes += bytes;
    try {
        if (events_.size() == kKept) events_.pop_front();
        events_.push_back({now_ns(), action, bytes, std::string(scope), std::string(reason)});
    } catch (const std::bad_alloc&) {
        return;  // counted all the same
    }
}

std::vector<MemoryEvent> MemoryLog::events() const {
    const std::lock_guard lock(mutex_);
    return {events_.begin(), events_.end()};
}

MemoryLog::Count MemoryLog::count(MemoryAction action) const {
    const std::lock_guard lock(mutex_);
    return counts_[static_cast<int>(action)];
}

}  // namespace metallic
