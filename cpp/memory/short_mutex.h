#pragma once

#include <atomic>
#include <mutex>

namespace metallic {

// A mutex for sections of some ten nanoseconds that hardly ever meet: an exchange to lock, a store to unlock, where
// std::mutex takes a locked instruction for each. Who finds it taken queues on a std::mutex; the first of the queue
// looks at it, yields, and sleeps in between, so that a section that happens to be long costs the others no processor
// time and needs nobody to be woken. Others may come between, as with std::mutex; while they have to queue they are
// behind who waits already.
class ShortMutex {
  public:
    ShortMutex() = default;
    ShortMutex(const ShortMutex&) = delete;
    ShortMutex& operator=(const ShortMutex&) = delete;

    void lock() {
        if (taken_.exchange(true, std::memory_order_acquire)) wait();
    }
    bool try_lock() noexcept { return !taken_.exchange(true, std::memory_order_acquire); }
    void unlock() noexcept { taken_.store(false, std::memory_order_release); }

  private:
    void wait();

    std::atomic<bool> taken_{false};
    std::mutex queue_;
};

}  // namespace metallic
