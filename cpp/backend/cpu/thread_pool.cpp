#include "backend/cpu/thread_pool.h"

#include <chrono>
#include <string>
#include <system_error>

#include "backend/cpu/host_facts.h"
#include "core/error.h"
#include "core/relax.h"
#include "core/signals.h"

namespace metallic::cpu {
ThreadPool::ThreadPool(uint32_t threads) : threads_(threads ? threads : 1), oversubscribed_(threads_ > usable_cores()) {
    workers_.reserve(threads_ - 1);
    const SignalsBlocked blocked;
    try {
        for (uint32_t i = 1; i < threads_; ++i) workers_.emplace_back([this, i] { work(i); });
    } catch (const std::system_error& error) {
        shut_down();
        throw DeviceError("cannot start " + std::to_string(threads_) + " threads: " + error.what(), "cpu", "threads");
    }
}

ThreadPool::~ThreadPool() {
    shut_down();
}

void ThreadPool::shut_down() noexcept {
    closing_ = true;
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
}

void ThreadPool::run(Body body, void* context) noexcept {
    body_ = body;
    context_ = context;
    stop_requested_.store(false, std::memory_order_relaxed);
    next_item_.store(0, std::memory_order_relaxed);
    if (threads_ > 1) {
        epoch_.fetch_add(1);
        epoch_.notify_all();
    }
    body(context, 0);
    sync();
}

void ThreadPool::work(uint32_t thread) noexcept {
    for (uint32_t seen = 0;; ++seen) {
        wait_for_change(epoch_, seen);
        if (closing_) return;
        body_(context_, thread);
        sync();
    }
}

bool ThreadPool::sync() noexcept {
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
        arrived_.store(0, std::memory_order_relaxed);
        next_item_.store(0, std::memory_order_relaxed);
        stopped_ = stop_requested();
        if (threads_ > 1) {
            // Sequentially consistent, so that a thread about to sleep is either seen by the wake-up or sees the
            // change.
            phase_.store(phase + 1, std::memory_order_seq_cst);
            phase_.notify_all();
        }
    } else {
        wait_for_change(phase_, phase);
    }
    // Nobody can overwrite it before this thread arrives at the next sync.
    return !stopped_;
}

void ThreadPool::wait_for_change(const std::atomic<uint32_t>& word, uint32_t old) const noexcept {
    using Clock = std::chrono::steady_clock;
    // With more threads than cores, the thread that is waited for may be waiting for this core.
    const int pauses = oversubscribed_ ? 32 : 2000;
    for (int i = 0; i < pauses; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        relax();
    }
    const Clock::time_point deadline = Clock::now() + std::chrono::microseconds(oversubscribed_ ? 50 : 1000);
    do {
        for (int i = 0; i < 8; ++i) {
            if (word.load(std::memory_order_acquire) != old) return;
            relax();
        }
        std::this_thread::yield();
    } while (Clock::now() < deadline);
    while (word.load(std::memory_order_acquire) == old) word.wait(old, std::memory_order_acquire);
}

}  // namespace metallic::cpu
