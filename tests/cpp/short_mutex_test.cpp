#include "memory/short_mutex.h"

#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace metallic {
namespace {

constexpr int kThreads = 8;

double thread_seconds() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// For TSan, too: what a section leaves is seen by the next one.
TEST(ShortMutex, OneThreadAtATime) {
    ShortMutex mutex;
    uint64_t count = 0, doubled = 0, torn = 0;
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&] {
            for (int i = 0; i < 20000; ++i) {
                const std::lock_guard lock(mutex);
                torn += doubled != 2 * count;
                ++count;
                if (i % 1000 == 0) std::this_thread::yield();  // while the others want it
                doubled = 2 * count;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(count, uint64_t{20000} * kThreads);
    EXPECT_EQ(torn, 0u);
}

TEST(ShortMutex, TryLockNeverWaits) {
    ShortMutex mutex;
    ASSERT_TRUE(mutex.try_lock());
    EXPECT_FALSE(mutex.try_lock());
    std::thread([&] { EXPECT_FALSE(mutex.try_lock()); }).join();
    mutex.unlock();
    EXPECT_TRUE(mutex.try_lock());
    mutex.unlock();
}

// While all others lock again at once, for as long as it takes.
TEST(ShortMutex, EveryThreadGetsItsTurns) {
    ShortMutex mutex;
    std::atomic<int> behind{kThreads};
    uint64_t sections = 0;
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&] {
            int mine = 0;
            while (behind > 0 && std::chrono::steady_clock::now() < deadline) {
                {
                    const std::lock_guard lock(mutex);
                    ++sections;
                }
                if (++mine == 200) --behind;
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(behind, 0);
    EXPECT_GE(sections, uint64_t{200} * kThreads);
}

// A heap is made under the lock: who waits for that sleeps.
TEST(ShortMutex, WaitingForALongSectionTakesNoProcessorTime) {
    ShortMutex mutex;
    std::atomic<bool> held{false};
    std::atomic<int> got{0};
    std::atomic<double> spent{0};
    std::vector<std::thread> threads;
    threads.reserve(kThreads);
    threads.emplace_back([&] {
        const std::lock_guard lock(mutex);
        held = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
    });
    while (!held) std::this_thread::yield();
    for (int t = 1; t < kThreads; ++t) {
        threads.emplace_back([&] {
            const double before = thread_seconds();
            const std::lock_guard lock(mutex);
            spent = spent + (thread_seconds() - before);
            ++got;
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(got, kThreads - 1);
    EXPECT_LT(spent, 0.15);  // of 7 x 0.3 s that they waited
}

}  // namespace
}  // namespace metallic
