#include "backend/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <vector>

namespace metallic::cpu {
namespace {

// Runs a callable on every thread of the pool.
template <typename Function>
void run(ThreadPool& pool, Function& function) {
    pool.run([](void* context, uint32_t thread) noexcept { (*static_cast<Function*>(context))(thread); }, &function);
}

class ThreadPoolOf : public testing::TestWithParam<uint32_t> {};

TEST_P(ThreadPoolOf, RunsTheBodyOnceOnEveryThread) {
    ThreadPool pool(GetParam());
    ASSERT_EQ(pool.threads(), GetParam());
    std::vector<int> calls(pool.threads(), 0);
    const std::thread::id caller = std::this_thread::get_id();
    std::vector<std::thread::id> ids(pool.threads());
    auto body = [&](uint32_t thread) {
        ++calls[thread];
        ids[thread] = std::this_thread::get_id();
    };
    for (int i = 1; i <= 100; ++i) {
        run(pool, body);
        EXPECT_EQ(calls, std::vector<int>(pool.threads(), i));
        EXPECT_EQ(ids[0], caller);
    }
}

TEST_P(ThreadPoolOf, WritesBeforeASyncAreSeenAfterIt) {
    ThreadPool pool(GetParam());
    const uint32_t n = pool.threads();
    std::vector<uint64_t> cells(n, 0);
    std::vector<uint64_t> mistakes(n, 0);
    auto body = [&](uint32_t thread) {
        for (uint64_t round = 1; round <= 500; ++round) {
            cells[thread] = round;
            if (!pool.sync()) return;
            for (const uint64_t cell : cells) mistakes[thread] += cell != round;
            if (!pool.sync()) return;
        }
    };
    run(pool, body);
    EXPECT_EQ(mistakes, std::vector<uint64_t>(n, 0));
}

TEST_P(ThreadPoolOf, TheQueueHandsOutEveryItemOnceAndStartsAfreshAtASync) {
    ThreadPool pool(GetParam());
    constexpr uint32_t kItems = 1000, kRounds = 20;
    std::vector<std::vector<int>> taken(kRounds, std::vector<int>(kItems, 0));
    auto body = [&](uint32_t) {
        for (auto& round : taken) {
            for (uint32_t item; (item = pool.take_item()) < kItems;) ++round[item];
            pool.sync();
        }
    };
    run(pool, body);
    for (const auto& round : taken) EXPECT_EQ(round, std::vector<int>(kItems, 1));
}

TEST_P(ThreadPoolOf, AllThreadsLeaveAtTheSameSyncAfterAStop) {
    ThreadPool pool(GetParam());
    for (uint32_t stop_at = 0; stop_at < 30; ++stop_at) {
        std::vector<uint32_t> left_at(pool.threads(), 0);
        auto body = [&](uint32_t thread) {
            for (uint32_t round = 0; round < 1000; ++round) {
                if (thread == stop_at % pool.threads() && round == stop_at) pool.request_stop();
                if (!pool.sync()) {
                    left_at[thread] = round;
                    return;
                }
            }
        };
        run(pool, body);
        // A thread ahead of the one that asks may have seen the flag one sync early, but then all of them have.
        EXPECT_EQ(left_at, std::vector<uint32_t>(pool.threads(), left_at[0]));
        EXPECT_EQ(left_at[0], stop_at);
    }
    // The pool is as good as new.
    std::vector<int> calls(pool.threads(), 0);
    auto body = [&](uint32_t thread) { calls[thread] += pool.sync(); };
    run(pool, body);
    EXPECT_EQ(calls, std::vector<int>(pool.threads(), 1));
}

TEST_P(ThreadPoolOf, WorksAfterTheWorkersFellAsleep) {
    ThreadPool pool(GetParam());
    std::vector<int> calls(pool.threads(), 0);
    auto body = [&](uint32_t thread) {
        // Thread 0 comes late, so that the others sleep in the barrier too.
        if (thread == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        pool.sync();
        ++calls[thread];
    };
    for (int i = 1; i <= 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        run(pool, body);
        EXPECT_EQ(calls, std::vector<int>(pool.threads(), i));
    }
}

TEST_P(ThreadPoolOf, StartsAndStopsCleanly) {
    for (int i = 0; i < 50; ++i) {
        ThreadPool pool(GetParam());
        if (i % 3 == 0) continue;  // never used
        std::vector<uint32_t> seen(pool.threads(), 0);
        auto body = [&](uint32_t thread) { seen[thread] = thread + 1; };
        run(pool, body);
        EXPECT_EQ(std::accumulate(seen.begin(), seen.end(), 0u), pool.threads() * (pool.threads() + 1) / 2);
    }
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolOf, testing::Values(1u, 2u, 3u, 7u));

TEST(ThreadPool, ZeroThreadsMeansOne) {
    EXPECT_EQ(ThreadPool(0).threads(), 1u);
}

}  // namespace
}  // namespace metallic::cpu
