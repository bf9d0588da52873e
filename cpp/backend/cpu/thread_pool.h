#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace metallic::cpu {

// A fixed team of threads that run one function together and meet at barriers. The calling thread is number 0. Between
// barriers and between runs the workers spin for a while, then sleep.
class ThreadPool {
  public:
    using Body = void (*)(void* context, uint32_t thread) noexcept;

    // Throws DeviceError when the system refuses a thread.
    explicit ThreadPool(uint32_t threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    uint32_t threads() const noexcept { return threads_; }

    // Calls body(context, t) for every t in [0, threads), and returns when all have returned. One caller at a time.
    void run(Body body, void* context) noexcept;

    // ---- within a body ----

    // All threads meet. False, on all of them alike, once a stop was requested: the body should return.
    bool sync() noexcept;
    // Asks for a stop at the next sync; what is done until then no longer matters.
    void request_stop() noexcept { stop_requested_.store(true, std::memory_order_relaxed); }
    bool stop_requested() const noexcept { return stop_requested_.load(std::memory_order_relaxed); }
    // The next item of the queue that every sync starts afresh: 0, 1, 2, ...
    uint32_t take_item() noexcept { return next_item_.fetch_add(1, std::memory_order_relaxed); }

  private:
    void work(uint32_t thread) noexcept;
    void wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) const noexcept;
    void shut_down() noexcept;

    const uint32_t threads_;
    const bool oversubscribed_;
    Body body_ = nullptr;
    void* context_ = nullptr;
    bool stopped_ = false;  // what the last sync decided; written by its last arriver
    bool closing_ = false;
    alignas(64) std::atomic<uint32_t> epoch_{0};  // of runs
    alignas(64) std::atomic<uint32_t> phase_{0};  // of syncs
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<uint32_t> next_item_{0};
    alignas(64) std::atomic<bool> stop_requested_{false};
    std::vector<std::thread> workers_;
};

}  // namespace metallic::cpu
