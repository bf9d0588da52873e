#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace metallic {

// What a policy decides from.
struct MemoryState {
    uint64_t limit = 0;                   // the budget, or the device's recommended working set
    uint64_t heap_bytes = 0;              // taken from the system
    uint64_t kv_in_use = 0, kv_held = 0;  // bytes of pages: with tokens in them, and taken from the pool
    uint64_t idle_ns = 0;                 // since the last forward pass
    uint64_t weight_bytes = 0;            // of copies that can be made again from the file
};

// What is to be done, in this order.
struct MemoryDecision {
    uint64_t evict_bytes = 0;  // from idle sequences, the least recently used first
    bool compact = false;
    // Of heaps, that copies of weights give back, as far as the above did not; ~0: all that do.
    uint64_t evict_weight_bytes = 0;
};

// Decides what the background thread does about memory pressure. Called from that thread.
class ResidencyPolicy {
  public:
    virtual ~ResidencyPolicy() = default;
    virtual MemoryDecision decide(const MemoryState& state) const = 0;
};

// Above the high watermark of the limit, idle sequences are evicted down to the low one, and where that is not enough,
// copies of weights of a model that was idle for a while. Pages are moved together when many are held and free.
class WatermarkPolicy final : public ResidencyPolicy {
  public:
    struct Options {
        double high = 0.90, low = 0.75;  // of the limit
        double held_free = 0.5;          // of the held bytes of pages, and at least kMinFree
        uint64_t weights_idle_ns = 5'000'000'000;
    };
    static constexpr uint64_t kMinFree = uint64_t{4} << 20;

    // Throws RequestError for watermarks outside of (0, 1] or the wrong way round.
    explicit WatermarkPolicy(const Options& options);
    WatermarkPolicy() : WatermarkPolicy(Options{}) {}
    MemoryDecision decide(const MemoryState& state) const override;

  private:
    Options options_;
};

// A thread that calls `balance` now and then until it is destroyed. When that throws, `failed` is told why, and the
// next call sees the same pressure again.
class ResidencyManager {
  public:
    using Failed = std::function<void(const char* why)>;

    ResidencyManager(std::function<void()> balance, Failed failed, std::chrono::milliseconds period);
    ~ResidencyManager();
    ResidencyManager(const ResidencyManager&) = delete;
    ResidencyManager& operator=(const ResidencyManager&) = delete;

  private:
    void run();

    const std::function<void()> balance_;
    const Failed failed_;
    const std::chrono::milliseconds period_;
    const pid_t process_;
    std::mutex mutex_;
    std::condition_variable stop_;
    bool stopping_ = false;
    std::thread thread_;
};

}  // namespace metallic
