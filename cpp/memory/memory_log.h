#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace metallic {

// What was done about memory, or for want of it.
enum class MemoryAction : uint8_t {
    save,      // pages moved to host memory
    compress,  // pages moved to host memory in a smaller type
    restore,   // and back
    drop,      // pages given up; their tokens will be computed again
    recompute,
    compact,  // pages moved together, so that heaps could be given back
    preempt,  // a running sequence lost its pages to an older one
    wait,     // a request waited for memory
    admit,    // and went on
    refuse,   // a request that can never fit
    evict_weights,
    restore_weights,
    trim,  // empty heaps given back
    fail,  // an attempt of the background thread that threw
};
inline constexpr int kMemoryActions = 14;
const char* memory_action_name(MemoryAction action) noexcept;

struct MemoryEvent {
    uint64_t time_ns = 0;  // monotonic clock
    MemoryAction action = MemoryAction::save;
    uint64_t bytes = 0;
    std::string scope;   // whose memory
    std::string reason;  // why
};

// The newest events, and how often and over how many bytes each kind happened since the beginning. Thread-safe. These
// are rare: nothing of a token's path without pressure is written here.
class MemoryLog {
  public:
    struct Count {
        uint64_t events = 0, bytes = 0;
    };

    void record(MemoryAction action, uint64_t bytes, std::string_view scope, std::string_view reason) noexcept;
    std::vector<MemoryEvent> events() const;
    Count count(MemoryAction action) const;

  private:
    static constexpr size_t kKept = 4096;
    mutable std::mutex mutex_;
    std::deque<MemoryEvent> events_;
    std::array<Count, kMemoryActions> counts_;
};

}  // namespace metallic
