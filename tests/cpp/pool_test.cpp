#include "memory/pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "fake_backend.h"

namespace metallic {
namespace {

using test::FakeBackend;

// Time that a test sets.
struct Timed {
    std::shared_ptr<uint64_t> now = std::make_shared<uint64_t>(1000);
    PoolOptions options(uint64_t grace_ns = 100) const {
        PoolOptions result;
        result.grace_ns = grace_ns;
        result.clock = [now = now] { return *now; };
        return result;
    }
};

PoolOptions no_grace() {
    PoolOptions options;
    options.grace_ns = 0;
    return options;
}

uint64_t total(const std::vector<HeapUse>& heaps) {
    uint64_t bytes = 0;
    for (const HeapUse& heap : heaps) bytes += heap.bytes;
    return bytes;
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
        EXPECT_EQ(use.heaps, 2u);  // keys and values, which may be moved, are apart
    }
    const PoolStatistics after = pool.statistics();
    EXPECT_EQ(after.current(), 0u);
    EXPECT_EQ(after.tags[static_cast<int>(Tag::kv)].peak, 2048u);
    EXPECT_EQ(after.heaps, 2u);  // kept for a while
    EXPECT_EQ(after.empty_heaps, 2u);
    EXPECT_EQ(after.free_bytes, after.heap_bytes);
}

TEST(Pool, LargeAllocationsReturnToTheSystem) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0, no_grace());
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
    Pool pool(backend, Pool::kHeapBytes);
    pool.allocate_bytes(1000, Tag::kv, "kv");  // leaves an empty heap behind
    EXPECT_EQ(backend->used, Pool::kFirstHeapBytes);
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

TEST(Pool, HeapsGrowGeometrically) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0);
    std::vector<Allocation> held;
    uint64_t asked = 0;
    int heaps = 0;
    while (asked < Pool::kHeapBytes * 8) {
        held.push_back(pool.allocate_bytes(10240, Tag::kv, "kv"));
        asked += 10240;
        if (backend->created == heaps) continue;
        heaps = backend->created;
        EXPECT_LE(backend->used, std::max(Pool::kFirstHeapBytes, 2 * asked + Pool::kFirstHeapBytes));
    }
    EXPECT_LE(heaps, 15);
    EXPECT_LE(total(pool.heaps()), asked + asked / 8 + Pool::kHeapBytes);
}

TEST(Pool, EmptyHeapsAreKeptForTheGracePeriod) {
    const Timed time;
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0, time.options());
    const Allocation stays = pool.allocate_bytes(100, Tag::weights, "w");
    const uint64_t base = backend->used;
    Allocation small = pool.allocate_bytes(100, Tag::kv, "kv"), large = pool.allocate_bytes(9 << 20, Tag::kv, "kv");
    small.reset();
    *time.now += 50;
    large.reset();
    EXPECT_EQ(pool.trim(*time.now), 0u);
    EXPECT_EQ(pool.statistics().empty_heaps, 2u);
    // Used again in time: nothing is created.
    const int created = backend->created;
    pool.allocate_bytes(9 << 20, Tag::kv, "kv").reset();
    EXPECT_EQ(backend->created, created);
    *time.now += 60;
    EXPECT_EQ(pool.trim(*time.now), Pool::kFirstHeapBytes);
    EXPECT_EQ(backend->used, base + (9 << 20));
    *time.now += 1000;
    // The next operation gives the rest back.
    const Allocation more = pool.allocate_bytes(100, Tag::weights, "w");
    EXPECT_EQ(backend->used, base);
    EXPECT_EQ(pool.statistics().empty_heaps, 0u);
}

TEST(Pool, EndlessGraceKeepsHeaps) {
    const Timed time;
    Pool pool(std::make_shared<FakeBackend>(), 0, time.options(~uint64_t{0}));
    pool.allocate_bytes(100, Tag::kv, "kv").reset();
    EXPECT_EQ(pool.trim(~uint64_t{0} - 1), 0u);
    EXPECT_GT(pool.drop_empty_heaps(), 0u);
}

TEST(Pool, AveragesAreWeightedByTime) {
    const Timed time;
    Pool pool(std::make_shared<FakeBackend>(), 0, time.options());
    Allocation a = pool.allocate_bytes(1024, Tag::kv, "kv");
    *time.now += 30;
    Allocation b = pool.allocate_bytes(2048, Tag::kv, "kv");
    *time.now += 10;
    a.reset();
    *time.now += 60;
    b.reset();
    *time.now += 100;
    const PoolStatistics use = pool.statistics();
    const TagUse& kv = use.tags[static_cast<int>(Tag::kv)];
    EXPECT_EQ(use.elapsed_ns, 200u);
    EXPECT_DOUBLE_EQ(kv.average, (1024.0 * 30 + 3072.0 * 10 + 2048.0 * 60) / 200);
    EXPECT_EQ(kv.peak, 3072u);
    EXPECT_EQ(kv.allocations, 2u);
    EXPECT_EQ(kv.live, 0u);
}

TEST(Pool, MappedFilesAreCountedAndMayGo) {
    Pool pool(std::make_shared<FakeBackend>(), 1000);
    pool.count_mapped(5000);
    EXPECT_EQ(pool.statistics().mapped_bytes, 5000u);
    EXPECT_EQ(pool.statistics().tags[static_cast<int>(Tag::weights)].current, 5000u);
    pool.uncount_mapped(5000);
    EXPECT_EQ(pool.statistics().mapped_bytes, 0u);
    EXPECT_EQ(pool.statistics().current(), 0u);
}

TEST(Pool, OnlyWhatMayHoldSomethingIsZeroed) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0);
    const auto is_zero = [](const Allocation& allocation) {
        const auto* bytes = reinterpret_cast<const char*>(allocation.view().address());
        return std::all_of(bytes, bytes + allocation.view().bytes, [](char c) { return c == 0; });
    };
    // A heap of its own is asked for as zeros, and not filled again.
    Allocation large = pool.allocate_bytes(6 << 20, Tag::kv, "kv", Storage::exclusive, Contents::zero);
    EXPECT_TRUE(large.zeroed() && is_zero(large));
    EXPECT_EQ(backend->cleared, 0u);
    std::memset(reinterpret_cast<void*>(large.view().address()), 7, large.view().bytes);
    large.reset();
    large = pool.allocate_bytes(6 << 20, Tag::kv, "kv", Storage::exclusive, Contents::undefined);
    EXPECT_FALSE(large.zeroed());
    large.reset();
    large = pool.allocate_bytes(6 << 20, Tag::kv, "kv", Storage::exclusive, Contents::zero);
    EXPECT_TRUE(large.zeroed() && is_zero(large));
    EXPECT_EQ(backend->cleared, uint64_t{6} << 20);
    // A part of a heap that was not made of zeros.
    const Allocation part = pool.allocate_bytes(1000, Tag::kv, "kv", Storage::shared, Contents::zero);
    EXPECT_TRUE(part.zeroed() && is_zero(part));
    EXPECT_EQ(backend->cleared, (uint64_t{6} << 20) + 1000);
    EXPECT_FALSE(pool.allocate_bytes(1000, Tag::kv, "kv").zeroed());
}

TEST(Pool, FreshMemoryOfABackendThatGivesZerosIsNotFilled) {
    auto backend = std::make_shared<FakeBackend>();
    backend->always_zero = true;
    Pool pool(backend, 0);
    Allocation a = pool.allocate_bytes(1000, Tag::kv, "kv", Storage::shared, Contents::zero);
    const Allocation b = pool.allocate_bytes(1000, Tag::kv, "kv");
    EXPECT_TRUE(a.zeroed() && b.zeroed());
    EXPECT_EQ(backend->cleared, 0u);
    a.reset();
    a = pool.allocate_bytes(1000, Tag::kv, "kv");
    EXPECT_FALSE(a.zeroed());
    a.reset();
    a = pool.allocate_bytes(1000, Tag::kv, "kv", Storage::shared, Contents::zero);
    EXPECT_EQ(backend->cleared, 1000u);
}

TEST(Pool, HeapsSayWhatIsInThem) {
    Pool pool(std::make_shared<FakeBackend>(), 0, no_grace());
    const Allocation a = pool.allocate_bytes(1000, Tag::weights, "w"), b = pool.allocate_bytes(10, Tag::staging, "s");
    const Allocation c = pool.allocate_bytes(1000, Tag::kv, "kv", Storage::exclusive);
    EXPECT_EQ(a.heap_id(), b.heap_id());
    EXPECT_NE(a.heap_id(), c.heap_id());
    const std::vector<HeapUse> heaps = pool.heaps();
    ASSERT_EQ(heaps.size(), 2u);
    EXPECT_EQ(heaps[0].id, a.heap_id());
    EXPECT_EQ(heaps[0].used, 1024u + 256);
    EXPECT_EQ(heaps[0].allocations, 2u);
    EXPECT_EQ(heaps[0].largest_free, Pool::kFirstHeapBytes - 1280);
    EXPECT_EQ(heaps[0].tags[static_cast<int>(Tag::weights)], 1024u);
    EXPECT_EQ(heaps[0].tags[static_cast<int>(Tag::staging)], 256u);
    EXPECT_EQ(heaps[1].id, c.heap_id());
    pool.allocate_bytes(1000, Tag::activations, "gone").reset();
    EXPECT_EQ(pool.heaps()[0].tags[static_cast<int>(Tag::activations)], 0u);
    EXPECT_EQ(heaps[1].storage, Storage::exclusive);
}

TEST(Pool, ADrainingHeapEmptiesAndGoes) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, 0);
    Allocation a = pool.allocate_bytes(1000, Tag::kv, "kv");
    const uint64_t old = a.heap_id();
    EXPECT_TRUE(pool.set_draining(old, true));
    EXPECT_FALSE(pool.set_draining(old + 100, true));
    const Allocation b = pool.allocate_bytes(1000, Tag::kv, "kv");
    EXPECT_NE(b.heap_id(), old);
    EXPECT_EQ(pool.heaps().size(), 2u);
    a.reset();  // without a grace period: that is what draining is for
    ASSERT_EQ(pool.heaps().size(), 1u);
    EXPECT_EQ(pool.heaps()[0].id, b.heap_id());
    EXPECT_TRUE(pool.set_draining(b.heap_id(), true));
    EXPECT_TRUE(pool.set_draining(b.heap_id(), false));
    EXPECT_EQ(pool.allocate_bytes(1000, Tag::kv, "kv").heap_id(), b.heap_id());
}

TEST(Pool, PoolsShareABudget) {
    auto first = std::make_shared<FakeBackend>(), second = std::make_shared<FakeBackend>();
    auto budget = std::make_shared<Budget>(uint64_t{20} << 20);
    Pool a(first, budget), b(second, budget);
    Allocation of_a = a.allocate_bytes(12 << 20, Tag::kv, "kv");
    EXPECT_THROW(b.allocate_bytes(12 << 20, Tag::kv, "kv"), OutOfMemory);
    of_a.reset();  // an empty heap of the other pool, within its grace period
    EXPECT_EQ(first->used, uint64_t{12} << 20);
    const Allocation of_b = b.allocate_bytes(12 << 20, Tag::kv, "kv");
    EXPECT_EQ(first->used, 0u);
    EXPECT_EQ(budget->used(), uint64_t{12} << 20);
    EXPECT_EQ(a.statistics().budget_used, uint64_t{12} << 20);
    budget->set_limit(uint64_t{1} << 20);
    EXPECT_THROW(a.allocate_bytes(100, Tag::kv, "kv"), OutOfMemory);
    budget->set_limit(0);
    EXPECT_NO_THROW(a.allocate_bytes(100, Tag::kv, "kv"));
}

TEST(Pool, ASpentBudgetUsesWhateverIsFree) {
    auto backend = std::make_shared<FakeBackend>();
    Pool pool(backend, Pool::kFirstHeapBytes);
    const Allocation weights = pool.allocate_bytes(1000, Tag::weights, "w");
    const Allocation kv = pool.allocate_bytes(1000, Tag::kv, "kv");
    EXPECT_EQ(kv.heap_id(), weights.heap_id());
    EXPECT_THROW(pool.allocate_bytes(Pool::kFirstHeapBytes, Tag::kv, "kv"), OutOfMemory);
}

TEST(Pool, WhatLivesIsKnownByOwner) {
    Pool pool(std::make_shared<FakeBackend>(), 0);
    const Allocation a = pool.allocate_bytes(1000, Tag::kv, "kv/group.0"), b = pool.allocate_bytes(10, Tag::kv, "x");
    const Allocation c = pool.allocate_bytes(1000, Tag::kv, "kv/group.0");
    pool.allocate_bytes(1000, Tag::kv, "gone").reset();
    const std::vector<OwnerUse> live = pool.leaks();
    ASSERT_EQ(live.size(), 2u);
    EXPECT_EQ(live[0].owner, "kv/group.0");
    EXPECT_EQ(live[0].allocations, 2u);
    EXPECT_EQ(live[0].bytes, 2048u);
    EXPECT_EQ(live[1].owner, "x");
}

TEST(Pool, AllocationsMayOutliveThePoolAndAreReported) {
    auto backend = std::make_shared<FakeBackend>();
    take_leak_reports();
    Allocation late;
    {
        Pool pool(backend, 0);
        late = pool.allocate_bytes(1000, Tag::kv, "forward/leaky");
    }
    auto reports = take_leak_reports();
    ASSERT_EQ(reports.size(), 1u);
    ASSERT_EQ(reports[0].size(), 1u);
    EXPECT_EQ(reports[0][0].owner, "forward/leaky");
    EXPECT_EQ(reports[0][0].bytes, 1024u);
    EXPECT_TRUE(take_leak_reports().empty());
    std::memset(late.view().host(), 1, 1000);
    EXPECT_GT(backend->used, 0u);
    late.reset();
    EXPECT_EQ(backend->used, 0u);
    EXPECT_EQ(backend.use_count(), 1);
    {
        const Pool tidy(backend, 0);
    }
    EXPECT_TRUE(take_leak_reports().empty());
    // Whoever wants to can be told instead.
    std::vector<OwnerUse> told;
    PoolOptions options;
    options.on_leak = [&](std::span<const OwnerUse> uses) { told.assign(uses.begin(), uses.end()); };
    {
        Pool pool(backend, 0, options);
        late = pool.allocate_bytes(1, Tag::kv, "again");
    }
    ASSERT_EQ(told.size(), 1u);
    EXPECT_EQ(told[0].owner, "again");
    EXPECT_TRUE(take_leak_reports().empty());
}

TEST(Pool, NamesOfOwnersDoNotPileUp) {
    Owners owners;
    const uint32_t kept = owners.find_or_add("kept");
    owners.count(kept, 1);
    for (size_t i = 0; i < 10 * Owners::kIdle; ++i) {
        const uint32_t owner = owners.find_or_add("request " + std::to_string(i));
        owners.count(owner, 10);
        EXPECT_EQ(owners.name(owner), "request " + std::to_string(i));
        owners.uncount(owner, 10);
        ASSERT_EQ(owners.live().size(), 1u);
    }
    EXPECT_LE(owners.known(), Owners::kIdle + 3);
    EXPECT_EQ(owners.find_or_add("kept"), kept);
}

TEST(Pool, ADeviceThatRefusesGrowthMayGiveLess) {
    auto backend = std::make_shared<FakeBackend>(Pool::kFirstHeapBytes + 10000);
    Pool pool(backend, 0);
    std::vector<Allocation> held;
    for (uint64_t i = 0; i < Pool::kFirstHeapBytes / 8192; ++i) {
        held.push_back(pool.allocate_bytes(8192, Tag::kv, "kv"));
    }
    EXPECT_NO_THROW(held.push_back(pool.allocate_bytes(8192, Tag::kv, "kv")));
    EXPECT_THROW(pool.allocate_bytes(8192, Tag::kv, "kv"), OutOfMemory);
    EXPECT_EQ(pool.budget()->used(), backend->used);
    held.clear();
    pool.drop_empty_heaps();
    EXPECT_EQ(pool.budget()->used(), 0u);
}

TEST(Pool, ImpossibleSizesAreRefused) {
    Pool pool(std::make_shared<FakeBackend>(1 << 20), 0);
    EXPECT_THROW(pool.allocate_bytes(~uint64_t{0}, Tag::kv, "kv"), OutOfMemory);
    EXPECT_THROW(pool.allocate(DType::F32, ~uint64_t{0} / 2, Tag::kv, "kv"), OutOfMemory);
    EXPECT_THROW(pool.allocate_bytes(10, Tag::kv, "kv", Storage::mapped), Error);
    EXPECT_EQ(pool.allocate_bytes(0, Tag::kv, "kv").view().bytes, 0u);
}

// Several threads allocate, write, check and free; another reads the statistics. For TSan.
TEST(Pool, ThreadsShareIt) {
    auto backend = std::make_shared<FakeBackend>();
    backend->always_zero = true;
    Pool pool(backend, uint64_t{64} << 20, no_grace());
    std::atomic<bool> done{false}, spoilt{false};
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            std::mt19937 random(t);
            std::vector<Allocation> held;
            const std::string owner = "thread " + std::to_string(t);
            for (int i = 0; i < 2000; ++i) {
                if (held.size() < 20 && random() % 2) {
                    const uint64_t bytes = 1 + random() % (i % 50 ? 20000 : 5 << 20);
                    held.push_back(pool.allocate_bytes(bytes, static_cast<Tag>(random() % kTags), owner));
                    std::memset(held.back().view().host(), static_cast<int>(t + 1), held.back().view().bytes);
                } else if (!held.empty()) {
                    std::swap(held[random() % held.size()], held.back());
                    const BufferView view = held.back().view();
                    const auto mine = [&](std::byte b) { return b == std::byte(t + 1); };
                    if (!std::all_of(view.host(), view.host() + view.bytes, mine)) spoilt = true;
                    held.pop_back();
                }
            }
        });
    }
    std::thread reader([&] {
        while (!done) {
            const PoolStatistics use = pool.statistics();
            if (use.current() > use.heap_bytes || use.heap_bytes > use.budget) spoilt = true;
            (void)pool.heaps();
            (void)pool.leaks();
            pool.trim();
        }
    });
    for (std::thread& thread : threads) thread.join();
    done = true;
    reader.join();
    EXPECT_FALSE(spoilt);
    EXPECT_EQ(pool.statistics().current(), 0u);
    EXPECT_EQ(pool.statistics().heaps, 0u);
    EXPECT_EQ(backend->used, 0u);
}

}  // namespace
}  // namespace metallic
