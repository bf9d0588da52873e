#include "memory/pool.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "core/error.h"
#include "fake_backend.h"

namespace metallic {
namespace {

using test::FakeBackend;

TEST(FreeList, TakesTheSmallestRangeThatFits) {
    FreeList list(1000);
    const auto a = list.take(100), b = list.take(300), c = list.take(100), d = list.take(500);
    ASSERT_TRUE(a && b && c && d);
    EXPECT_FALSE(list.take(1));
    list.give(*b, 300);
    list.give(*d, 500);
    EXPECT_EQ(list.take(250), *b);
    EXPECT_EQ(list.take(400), *d);
}

TEST(FreeList, MergesNeighbours) {
    FreeList list(300);
    const auto a = list.take(100), b = list.take(100), c = list.take(100);
    list.give(*a, 100);
    list.give(*c, 100);
    EXPECT_EQ(list.ranges(), 2u);
    list.give(*b, 100);
    EXPECT_EQ(list.ranges(), 1u);
    EXPECT_EQ(list.largest(), 300u);
}

TEST(FreeList, NeverHandsOutAByteTwice) {
    std::mt19937 random(1);
    constexpr uint64_t kBytes = 1 << 16;
    FreeList list(kBytes);
    std::map<uint64_t, uint64_t> held;
    uint64_t used = 0;
    for (int i = 0; i < 20000; ++i) {
        if (random() % 2 || held.empty()) {
            const uint64_t bytes = 1 + random() % 2000;
            const uint64_t largest = list.largest();
            const auto offset = list.take(bytes);
            EXPECT_EQ(offset.has_value(), bytes <= largest);
            if (!offset) continue;
            const auto after = held.lower_bound(*offset);
            if (after != held.end()) {
                ASSERT_LE(*offset + bytes, after->first);
            }
            if (after != held.begin()) {
                const auto before = std::prev(after);
                ASSERT_LE(before->first + before->second, *offset);
            }
            ASSERT_LE(*offset + bytes, kBytes);
            held.emplace(*offset, bytes);
            used += bytes;
        } else {
            auto victim = std::next(held.begin(), static_cast<long>(random() % held.size()));
            list.give(victim->first, victim->second);
            used -= victim->second;
            held.erase(victim);
        }
        ASSERT_EQ(list.free_bytes(), kBytes - used);
    }
}

TEST(Pool, CountsByTagAndReturnsToWhatItWas) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0);
    {
        const Allocation kv = pool.allocate(DType::F16, 1000, Tag::kv, "kv");
        const Allocation weights = pool.allocate(DType::Q4_0, 64, Tag::weights, "w");
        EXPECT_EQ(kv.view().bytes, 2000u);
        EXPECT_EQ(weights.view().bytes, 36u);
        EXPECT_EQ(kv.dtype(), DType::F16);
        EXPECT_EQ(kv.elements(), 1000u);
        const PoolStatistics use = pool.statistics();
        EXPECT_EQ(use.tags[static_cast<int>(Tag::kv)].current, 2048u);
        EXPECT_EQ(use.tags[static_cast<int>(Tag::weights)].current, 256u);
        EXPECT_EQ(use.heaps, 1u);
    }
    const PoolStatistics after = pool.statistics();
    EXPECT_EQ(after.current(), 0u);
    EXPECT_EQ(after.tags[static_cast<int>(Tag::kv)].peak, 2048u);
    EXPECT_EQ(after.heaps, 1u);  // one empty heap is kept
    EXPECT_EQ(after.fragmentation(), 0.0);
}

TEST(Pool, LargeAllocationsReturnToTheSystem) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0);
    Allocation large = pool.allocate_bytes(Pool::kHeapBytes * 3, Tag::activations, "arena");
    EXPECT_EQ(backend->used, Pool::kHeapBytes * 3);
    large.reset();
    EXPECT_EQ(backend->used, 0u);
}

TEST(Pool, ABudgetRefusesAndNothingChanges) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, Pool::kHeapBytes * 2);
    const Allocation first = pool.allocate_bytes(Pool::kHeapBytes, Tag::kv, "kv");
    try {
        pool.allocate_bytes(Pool::kHeapBytes * 3 / 2, Tag::kv, "kv/group.0");
        FAIL();
    } catch (const OutOfMemory& error) {
        EXPECT_EQ(error.needed, Pool::kHeapBytes * 3 / 2);
        EXPECT_EQ(error.available, Pool::kHeapBytes);
        EXPECT_EQ(error.owner, "kv/group.0");
    }
    EXPECT_EQ(pool.statistics().current(), Pool::kHeapBytes);
    EXPECT_NO_THROW(pool.allocate_bytes(Pool::kHeapBytes, Tag::kv, "kv"));
}

TEST(Pool, ASmallBudgetMakesSmallHeaps) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 400'000);
    const Allocation most = pool.allocate_bytes(300'000, Tag::activations, "activations");
    const Allocation rest = pool.allocate_bytes(90'000, Tag::kv, "kv");
    EXPECT_LE(backend->used, 400'000u);
    EXPECT_THROW(pool.allocate_bytes(90'000, Tag::kv, "kv"), OutOfMemory);
}

TEST(Pool, AnEmptyHeapMakesWayForALargeAllocation) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, Pool::kHeapBytes * 3 / 2);
    pool.allocate_bytes(1000, Tag::kv, "kv");  // leaves one empty heap behind
    EXPECT_EQ(backend->used, Pool::kHeapBytes);
    EXPECT_NO_THROW(pool.allocate_bytes(Pool::kHeapBytes, Tag::kv, "kv"));
}

TEST(Pool, ABackendThatRefusesLeavesThePoolUsable) {
    auto backend = std::make_shared<FakeBackend>(Pool::kHeapBytes);
    Pool pool(backend, 0);
    const Allocation small = pool.allocate_bytes(10, Tag::kv, "kv");
    EXPECT_THROW(pool.allocate_bytes(Pool::kHeapBytes, Tag::kv, "kv"), OutOfMemory);
    EXPECT_NO_THROW(pool.allocate_bytes(1000, Tag::kv, "kv"));
    EXPECT_THROW(pool.allocate(DType::Q4_0, 33, Tag::kv, "kv"), Error);
}

}  // namespace
}  // namespace metallic
