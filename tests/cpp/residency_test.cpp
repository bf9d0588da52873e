#include "runtime/residency.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

namespace metallic {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

TEST(WatermarkPolicyTest, ActsAboveTheHighWatermarkDownToTheLowOne) {
    const WatermarkPolicy policy(WatermarkPolicy::Options{0.9, 0.5, 0.5, 1000});
    MemoryState state;
    state.limit = 100 * kMiB, state.weight_bytes = 7, state.idle_ns = 1000;
    state.heap_bytes = 90 * kMiB;
    EXPECT_EQ(policy.decide(state).evict_bytes, 0u);
    EXPECT_EQ(policy.decide(state).evict_weight_bytes, 0u);
    state.heap_bytes += 1;
    EXPECT_NEAR(static_cast<double>(policy.decide(state).evict_bytes), 40.0 * kMiB, 2);
    EXPECT_EQ(policy.decide(state).evict_weight_bytes, policy.decide(state).evict_bytes)
        << "what sequences do not give";
    state.idle_ns = 999;
    EXPECT_EQ(policy.decide(state).evict_weight_bytes, 0u);
    state.idle_ns = 1000, state.weight_bytes = 0;
    EXPECT_EQ(policy.decide(state).evict_weight_bytes, 0u);
    state.limit = 0;
    EXPECT_EQ(policy.decide(state).evict_bytes, 0u);
}

TEST(WatermarkPolicyTest, CompactsWhereMuchIsHeldAndFree) {
    const WatermarkPolicy policy;
    MemoryState state;
    state.kv_held = 2 * WatermarkPolicy::kMinFree, state.kv_in_use = WatermarkPolicy::kMinFree;
    EXPECT_TRUE(policy.decide(state).compact);
    ++state.kv_in_use;
    EXPECT_FALSE(policy.decide(state).compact);
    state.kv_held = state.kv_in_use + WatermarkPolicy::kMinFree;
    EXPECT_FALSE(policy.decide(state).compact);  // less than half of it
}

TEST(WatermarkPolicyTest, RefusesWatermarksThatMakeNoSense) {
    for (const auto& [high, low] : {std::pair{0.5, 0.6}, {1.1, 0.5}, {0.9, 0.0}, {0.9, -1.0}}) {
        EXPECT_THROW(WatermarkPolicy(WatermarkPolicy::Options{high, low, 0.5, 0}), RequestError);
    }
}

TEST(ResidencyManagerTest, GoesOnAfterExceptionsAndStopsAtOnce) {
    std::atomic<int> calls{0};
    std::vector<std::string> failures;
    const auto failed = [&](const char* why) { failures.emplace_back(why); };
    {
        const ResidencyManager manager(
            [&] {
                if (++calls % 2) throw OutOfMemory("none", 1, 0, "test");
                throw 7;  // a policy may throw anything
            },
            failed, std::chrono::milliseconds(1));
        while (calls < 5) std::this_thread::yield();
    }
    const int after = calls;
    ASSERT_EQ(failures.size(), static_cast<size_t>(after));
    EXPECT_EQ(failures[0], "none");
    EXPECT_EQ(failures[1], "an exception of no known type");
    const auto begun = std::chrono::steady_clock::now();
    {
        const ResidencyManager manager([&] { ++calls; }, failed, std::chrono::hours(1));
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(10));
    EXPECT_EQ(calls, after);
}

}  // namespace
}  // namespace metallic
