#include "memory/short_mutex.h"

#include <chrono>
#include <thread>

#include "core/relax.h"

namespace metallic {
namespace {

constexpr int kLooks = 64;   // at a section that another core is just leaving
constexpr int kYields = 16;  // to who was interrupted in its section
constexpr std::chrono::microseconds kSleep{50};

}  // namespace

void ShortMutex::wait() {
    const std::lock_guard first(queue_);
    for (int round = 0; taken_.load(std::memory_order_relaxed) || !try_lock(); ++round) {
        if (round < kLooks) {
            relax();
        } else if (round < kLooks + kYields) {
            std::this_thread::yield();
        } else {
            round = kLooks;  // yields between sleeps: who sleeps is not always the last to look
            std::this_thread::sleep_for(kSleep);
        }
    }
}

}  // namespace metallic
