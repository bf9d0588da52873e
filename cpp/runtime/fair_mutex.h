#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace metallic {

// A mutex that serves threads in the order they came: a long forward pass, which locks again for each submission, lets
// others in between.
class FairMutex {
  public:
    void lock() {
        std::unique_lock guard(mutex_);
        const uint64_t ticket = next_++;
        turn_.wait(guard, [&] { return serving_ == ticket; });
    }
    void unlock() {
        {
            const std::lock_guard guard(mutex_);
            ++serving_;
        }
        turn_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable turn_;
    uint64_t next_ = 0;
    uint64_t serving_ = 0;
};

}  // namespace metallic
