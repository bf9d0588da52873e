#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "trace/scope.h"

namespace metallic {

enum class EventKind : uint8_t { step, submit, allocate, release, page_take, page_give, upload };

// One thing that happened. 32 bytes, written without allocation; `scope` names the owner.
struct Event {
    uint64_t start_ns = 0;  // monotonic clock
    uint64_t duration_ns = 0;
    uint64_t amount = 0;  // bytes, rows or pages, by kind
    ScopeId scope = 0;
    EventKind kind = EventKind::step;
    uint8_t thread = 0;
    uint16_t reserved = 0;
};
static_assert(sizeof(Event) == 32);

uint64_t now_ns() noexcept;

// A ring of fixed size: the newest `capacity` events are kept, older ones are overwritten. Any thread may record; a
// snapshot taken meanwhile leaves out the slots that were being written.
class EventRing {
  public:
    explicit EventRing(size_t capacity);  // rounded up to a power of two

    bool enabled() const noexcept { return enabled_.load(std::memory_order_relaxed); }
    void set_enabled(bool on) noexcept { enabled_.store(on, std::memory_order_relaxed); }
    void record(const Event& event) noexcept;
    uint64_t recorded() const noexcept { return next_.load(std::memory_order_acquire); }
    std::vector<Event> snapshot() const;

  private:
    static constexpr size_t kWords = sizeof(Event) / sizeof(uint64_t);
    // A sequence lock per slot: odd while a writer is in it. The payload is words of relaxed atomics, so a torn read is
    // detected rather than undefined.
    struct Slot {
        std::atomic<uint64_t> sequence{0};
        std::atomic<uint64_t> words[kWords]{};
    };
    size_t mask_;
    std::unique_ptr<Slot[]> slots_;
    std::atomic<uint64_t> next_{0};
    std::atomic<bool> enabled_{false};
};

}  // namespace metallic
