#include "trace/events.h"

#include <bit>
#include <chrono>
#include <cstring>

namespace metallic {

uint64_t now_ns() noexcept {
    return static_cast<uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
            .count());
}

EventRing::EventRing(size_t capacity)
    : mask_(std::bit_ceil(capacity < 2 ? size_t{2} : capacity) - 1), slots_(std::make_unique<Slot[]>(mask_ + 1)) {}

void EventRing::record(const Event& event) noexcept {
    uint64_t words[kWords];
    std::memcpy(words, &event, sizeof(event));
    const uint64_t index = next_.fetch_add(1, std::memory_order_acq_rel);
    Slot& slot = slots_[index & mask_];
    slot.sequence.store(2 * index + 1, std::memory_order_release);
    std::atomic_thread_fence(std::memory_order_release);
    for (size_t i = 0; i < kWords; ++i) slot.words[i].store(words[i], std::memory_order_relaxed);
    slot.sequence.store(2 * index + 2, std::memory_order_release);
}

std::vector<Event> EventRing::snapshot() const {
    const uint64_t end = recorded();
    const uint64_t count = end < mask_ + 1 ? end : mask_ + 1;
    std::vector<Event> events;
    events.reserve(count);
    for (uint64_t index = end - count; index < end; ++index) {
        const Slot& slot = slots_[index & mask_];
        if (slot.sequence.load(std::memory_order_acquire) != 2 * index + 2) continue;
        uint64_t words[kWords];
        for (size_t i = 0; i < kWords; ++i) words[i] = slot.words[i].load(std::memory_order_relaxed);
        std::atomic_thread_fence(std::memory_order_acquire);
        if (slot.sequence.load(std::memory_order_relaxed) != 2 * index + 2) continue;
        Event event;
        std::memcpy(&event, words, sizeof(event));
        events.push_back(event);
    }
    return events;
}

}  // namespace metallic
