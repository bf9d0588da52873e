#include "kv/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "core/error.h"
#include "failing_backend.h"
#include "runtime/admission.h"
#include "trace/events.h"

// Who gives pages up and who waits for them, on host memory that refuses what a test says.
namespace metallic {
namespace {

using test::FailingBackend;
using Room = KvCache::Room;

constexpr CacheGroup kGroup{0, 2, 64, 3};
KvLayout layout() {
    return KvLayout::of(kGroup, DType::F16);
}

// ---- who gives way --------------------------------------------------------------------------------------------------

// Two groups, one with a window, under a budget that a test sets in pages.
class KvCacheTest : public ::testing::TestWithParam<Eviction> {
  protected:
    static constexpr uint32_t kWindow = 100, kBatch = 64;

    static std::vector<KvGroup> groups(Pool& pool, Backend& backend, bool windowed) {
        std::vector<KvGroup> result{{&pool, &backend, kGroup, layout(), "kv/group.0"}};
        if (windowed) {
            CacheGroup group = kGroup;
            group.window = kWindow;
            result.push_back({&pool, &backend, group, layout(), "kv/group.1"});
        }
        return result;
    }
    explicit KvCacheTest(bool windowed = false) : cache(groups(pool, *backend, windowed), kBatch, GetParam(), log) {}
    ~KvCacheTest() override {
        while (!owned.empty()) close(owned.back());
        EXPECT_EQ(cache.saved_bytes(), 0u);
        EXPECT_EQ(pool.statistics().tags[static_cast<int>(Tag::kv)].current, 0u);
    }

    Sequence* create() { return owned.emplace_back(cache.create().release()); }
    Sequence* fork(const Sequence* one) { return owned.emplace_back(cache.fork(*one).release()); }
    void close(Sequence* one) {
        std::erase(owned, one);
        cache.destroy(one);
    }
    // A pass over one sequence; the page of each token says which one it is.
    Room run(Sequence* one, uint32_t count, bool preempts = true, std::vector<Sequence*> pass = {}) {
        pass.push_back(one);
        const Room room = cache.prepare(*one, count, pass, preempts);
        if (room != Room::made) return room;
        commit(one, count);
        return room;
    }
    void commit(Sequence* one, uint32_t count) {
        std::vector<int32_t> tokens(count);
        const uint32_t first = one->cached();
        std::iota(tokens.begin(), tokens.end(), static_cast<int32_t>(first));
        for (size_t g = 0; g < one->groups(); ++g) {
            const PageTableView table = one->table(g);
            for (uint32_t i = first / kPageTokens; i <= (first + count - 1) / kPageTokens; ++i) {
                std::memcpy(cache_page(g, table.pages[i - table.first_page]), &i, sizeof(i));
            }
        }
        one->commit(count, std::span(tokens).subspan(std::min<size_t>(one->length() - first, count)));
    }
    std::byte* cache_page(size_t group, uint64_t page) { return cache.store(group).view(page).host(); }
    void expect_whole(const Sequence* one) {
        ASSERT_TRUE(one->resident());
        for (size_t g = 0; g < one->groups(); ++g) {
            const PageTableView table = one->table(g);
            for (uint32_t i = 0; i < table.count; ++i) {
                const uint32_t index = table.first_page + i;
                ASSERT_EQ(std::memcmp(cache_page(g, table.pages[i]), &index, sizeof(index)), 0);
            }
        }
    }
    // Computes what was dropped again.
    void bring_back(Sequence* one) {
        while (one->cached() < one->length()) {
            ASSERT_EQ(run(one, std::min(one->length() - one->cached(), kBatch)), Room::made);
        }
        ASSERT_EQ(run(one, 1), Room::made);
        expect_whole(one);
    }
    void allow_no_more() { pool.budget()->set_limit(std::max<uint64_t>(pool.budget()->used(), 1)); }
    // Fills the heaps that there are, so that the next page needs another.
    void fill() {
        pool.drop_empty_heaps();
        allow_no_more();
        try {
            for (;;) filler.push_back(pool.allocate_bytes(stride(), Tag::activations, "filler"));
        } catch (const OutOfMemory&) {
        }
    }
    uint64_t stride() const { return cache.store(0).page_stride(); }
    uint64_t events(MemoryAction action) const { return log.count(action).events; }
    bool lost(const Sequence* one) const { return one->pages() == 0; }

    std::shared_ptr<FailingBackend> backend = std::make_shared<FailingBackend>();
    Pool pool{backend, uint64_t{1} << 40, PoolOptions{0, {}, {}}};
    MemoryLog log;
    KvCache cache;
    std::vector<Sequence*> owned;
    std::vector<Allocation> filler;
};

class WindowedKvCacheTest : public KvCacheTest {
  protected:
    WindowedKvCacheTest() : KvCacheTest(true) {}
};

INSTANTIATE_TEST_SUITE_P(Evictions, KvCacheTest, ::testing::Values(Eviction::save, Eviction::recompute));
INSTANTIATE_TEST_SUITE_P(Evictions, WindowedKvCacheTest, ::testing::Values(Eviction::save, Eviction::recompute));

TEST_P(KvCacheTest, TheLeastRecentlyUsedIdleSequenceGoesFirst) {
    Sequence *const a = create(), *const b = create(), *const c = create(), *const needy = create();
    for (Sequence* one : {a, b, c}) run(one, 64);
    a->last_used_ns = 30, b->last_used_ns = 10, c->last_used_ns = 20;
    fill();
    EXPECT_EQ(run(needy, 64), Room::made);
    EXPECT_TRUE(lost(b));
    EXPECT_FALSE(lost(a) || lost(c));
    EXPECT_EQ(run(needy, 64), Room::made);
    EXPECT_TRUE(lost(c));
    EXPECT_FALSE(lost(a));
    EXPECT_EQ(events(MemoryAction::preempt), 0u);
    EXPECT_EQ(events(GetParam() == Eviction::save ? MemoryAction::save : MemoryAction::drop), 2u);
    close(needy);
    for (Sequence* one : {a, b, c}) bring_back(one);
}

TEST_P(KvCacheTest, RunningSequencesGiveWayToOlderOnesTheYoungestFirst) {
    Sequence *const old = create(), *const middle = create(), *const young = create();
    for (Sequence* one : {middle, young}) {
        run(one, 64);
        one->busy = true;
    }
    fill();
    EXPECT_EQ(run(old, 64, false), Room::skip);
    EXPECT_FALSE(lost(middle) || lost(young));
    EXPECT_EQ(run(old, 64), Room::made);
    EXPECT_TRUE(lost(young));
    EXPECT_FALSE(lost(middle));
    EXPECT_EQ(events(MemoryAction::preempt), 1u);
    // The young one comes back only when the others are through.
    old->busy = true;
    EXPECT_EQ(run(young, 1), Room::wait);
    EXPECT_FALSE(lost(middle) || lost(old));
    old->busy = middle->busy = false;
    bring_back(young);
}

TEST_P(KvCacheTest, WhoWaitsGivesItsOwnPagesUp) {
    Sequence *const old = create(), *const young = create();
    run(old, 64);
    run(young, 64);
    old->busy = true;
    fill();
    EXPECT_EQ(run(young, 320), Room::wait);
    EXPECT_TRUE(lost(young));
    EXPECT_FALSE(lost(old));
    expect_whole(old);
}

TEST_P(KvCacheTest, WithNobodyLeftToGiveItThrowsAndStaysWhole) {
    Sequence* const one = create();
    run(one, 64);
    fill();
    EXPECT_THROW(run(one, 320), OutOfMemory);
    EXPECT_EQ(one->length(), 64u);
    expect_whole(one);
}

TEST_P(KvCacheTest, NothingInFlightIsTouched) {
    Sequence *const flying = create(), *const needy = create();
    run(flying, 64);
    needy->age = 0;
    flying->in_flight = flying->busy = true;
    fill();
    EXPECT_EQ(run(needy, 64, false), Room::skip);
    expect_whole(flying);
    EXPECT_EQ(flying->pages(), 2u);
    flying->in_flight = flying->busy = false;
}

TEST_P(KvCacheTest, AReservationTakesPagesOfIdleSequencesAndOfNoOthers) {
    Sequence *const idle = create(), *const running = create(), *const one = create();
    run(idle, 64);
    run(running, 64);
    running->busy = true;
    fill();
    cache.reserve(*one, 64);
    EXPECT_EQ(one->pages(), 2u);
    EXPECT_TRUE(lost(idle));
    EXPECT_THROW(cache.reserve(*one, 128), OutOfMemory);
    EXPECT_EQ(one->pages(), 2u);
    expect_whole(running);
    running->busy = false;
    cache.reserve(*one, 128);
    EXPECT_EQ(one->pages(), 4u);
}

TEST_P(KvCacheTest, AReservationBringsSavedPagesBack) {
    Sequence* const one = create();
    run(one, 64);
    cache.evict(*one, "test");
    cache.reserve(*one, 160);
    EXPECT_TRUE(one->resident());
    EXPECT_EQ(one->pages(), 5u);
    while (one->cached() < 160) ASSERT_EQ(run(one, 32), Room::made);
    EXPECT_EQ(one->pages(), 5u);
    expect_whole(one);
}

// Whatever others have, where, and how the heaps divide.
TEST_P(KvCacheTest, CapacityIsWhatPagesGet) {
    const uint64_t sizes[] = {1000, stride() - 256, 3 * stride() + 4096, uint64_t{300} << 10, uint64_t{5} << 20};
    uint32_t cases = 0;
    for (const uint64_t bytes : sizes) {
        for (const Storage storage : {Storage::shared, Storage::exclusive}) {
            for (const uint64_t room :
                 {stride() / 2, 7 * stride() + 5000, 33 * stride() - 256, 200 * stride() + 256, 331 * stride()}) {
                pool.drop_empty_heaps();
                pool.budget()->set_limit(bytes + room);
                const Allocation other = pool.allocate_bytes(bytes, Tag::weights, "other", storage);
                const uint64_t pages = cache.capacity() / stride();
                EXPECT_EQ(cache.capacity(), pages * stride());
                Sequence* const one = create();
                cache.reserve(*one, static_cast<uint32_t>(pages * kPageTokens));
                EXPECT_EQ(one->pages(), pages);
                EXPECT_EQ(cache.capacity(), pages * stride()) << "pages count for themselves";
                EXPECT_THROW(cache.reserve(*one, static_cast<uint32_t>((pages + 1) * kPageTokens)), OutOfMemory);
                close(one);
                ++cases;
            }
        }
    }
    EXPECT_EQ(cases, 50u);
}

TEST_P(KvCacheTest, NobodyIsLetInOnWhatWillBeTakenBack) {
    pool.budget()->set_limit(10 * stride());
    EXPECT_EQ(cache.capacity(), 10 * stride());
    const Allocation other = pool.allocate_bytes(stride(), Tag::weights, "other");
    const uint64_t most = cache.capacity();
    EXPECT_GT(most, 5 * stride());
    EXPECT_LT(most, 10 * stride());
    cache.expect_others(9 * stride());
    EXPECT_EQ(cache.capacity(), stride());
    Admission admission(cache, log);
    EXPECT_THROW(admission.enter(*create(), 64, {}), OutOfMemory);
    cache.expect_others(0);
    EXPECT_EQ(cache.capacity(), most);
    admission.enter(*create(), 64, {});
}

TEST_P(KvCacheTest, AStalledClaimIsIdle) {
    Sequence *const stalled = create(), *const needy = create();
    run(stalled, 64);
    stalled->claim = 1000;
    fill();
    EXPECT_EQ(run(needy, 64), Room::wait);
    EXPECT_FALSE(lost(stalled));
    stalled->last_used_ns = now_ns() - KvCache::kStalledNs;
    EXPECT_EQ(run(needy, 64), Room::made);
    EXPECT_TRUE(lost(stalled));
}

TEST_P(KvCacheTest, IdleSequencesThatShareEverythingGiveWay) {
    Sequence* const first = create();
    run(first, 64);
    Sequence *const second = fork(first), *const needy = create();
    EXPECT_EQ(first->own_bytes() + second->own_bytes(), 0u);
    fill();
    EXPECT_EQ(run(needy, 64), Room::made);
    EXPECT_TRUE(lost(first) && lost(second));
    close(needy);
    pool.budget()->set_limit(0);
    for (Sequence* one : {first, second}) bring_back(one);
}

TEST_P(KvCacheTest, YoungerSequencesThatShareEverythingGiveWay) {
    Sequence *const old = create(), *const first = create();
    run(first, 64);
    Sequence* const second = fork(first);
    first->busy = second->busy = true;
    fill();
    EXPECT_EQ(run(old, 64), Room::made);
    EXPECT_TRUE(lost(first) && lost(second));
    first->busy = second->busy = false;
}

TEST_P(KvCacheTest, WhatIsSharedWithTheNeedyIsLeftAndNobodyWaitsForIt) {
    Sequence* const needy = create();
    run(needy, 64);
    Sequence *const idle = fork(needy), *const younger = fork(needy);
    younger->busy = true;
    fill();
    EXPECT_THROW(run(needy, 64), OutOfMemory);
    EXPECT_EQ(idle->pages(), 2u);
    EXPECT_EQ(younger->pages(), 2u);
    younger->busy = false;
    EXPECT_NE(cache.evict_idle(1, "test"), 0u);
    EXPECT_TRUE(lost(needy) && lost(idle) && lost(younger));
}

TEST_P(KvCacheTest, APassMakesRoomForItselfInTurn) {
    std::vector<Sequence*> pass;
    for (int i = 0; i < 4; ++i) {
        pass.push_back(create());
        pass.back()->busy = true;
        run(pass.back(), 64);
    }
    fill();
    // The youngest may preempt those that it is computed with, also where they are older.
    EXPECT_EQ(run(pass[3], 64, true, pass), Room::made);
    EXPECT_TRUE(lost(pass[2]));
    for (Sequence* one : pass) one->busy = false;
}

// Each pass has a sequence with pages, and waits for the other's.
TEST_P(KvCacheTest, PassesThatWaitForEachOtherDoNotWaitForGood) {
    Sequence *const a = create(), *const b = create(), *const c = create(), *const d = create();
    for (Sequence* one : {b, d}) {
        run(one, 9 * kPageTokens);
        cache.evict(*one, "test");
    }
    for (Sequence* one : {a, c}) run(one, 6 * kPageTokens);
    for (Sequence* one : {a, b, c, d}) one->busy = true;
    pool.budget()->set_limit(16 * stride());
    ASSERT_EQ(run(d, kPageTokens, true, {a}), Room::wait);  // for c
    Room room = run(b, kPageTokens, true, {c});             // for a
    for (int i = 0; i < 4 && room != Room::made; ++i) {
        if (run(d, kPageTokens, true, {a}) == Room::made) break;
        room = run(b, kPageTokens, true, {c});
    }
    EXPECT_EQ(room, Room::made);
    EXPECT_TRUE(lost(a));
    for (Sequence* one : {a, b, c, d}) one->busy = false;
}

TEST_P(WindowedKvCacheTest, SavesRestoresAndDropsInEveryState) {
    for (const uint32_t length : {1u, 31u, 32u, 64u, 99u, 100u, 333u}) {
        Sequence* const one = create();
        for (uint32_t at = 0; at < length; at += 60) run(one, std::min(60u, length - at));
        Sequence* const copy = fork(one);
        if (length % 2) run(copy, 40);
        cache.evict(*one, "test");
        EXPECT_EQ(one->length(), length);
        Sequence* const of_evicted = fork(one);
        EXPECT_EQ(of_evicted->length(), length);
        if (one->cached() == length) {
            const bool can = one->truncate(length - 1);
            EXPECT_TRUE(can || length > kWindow);
        }
        cache.evict(*one, "twice");
        for (Sequence* each : {one, copy, of_evicted}) {
            bring_back(each);
            close(each);
        }
    }
}

TEST_P(KvCacheTest, APartialRestoreKeepsWhatCameBack) {
    if (GetParam() != Eviction::save) GTEST_SKIP() << "nothing is restored";
    Sequence* const one = create();
    run(one, 320);
    cache.evict(*one, "test");
    EXPECT_EQ(cache.saved_bytes(), 10 * layout().page_bytes);
    backend->uploads_left = 4;
    EXPECT_THROW(run(one, 1), DeviceError);
    EXPECT_EQ(one->pages(), 4u);
    EXPECT_EQ(cache.saved_bytes(), 6 * layout().page_bytes);
    EXPECT_EQ(cache.store(0).pages_in_use(), 4u);
    cache.evict(*one, "again");
    EXPECT_EQ(one->pages(), 0u);
    EXPECT_TRUE(one->truncate(100));
    EXPECT_EQ(cache.saved_bytes(), 4 * layout().page_bytes);
    bring_back(one);
}

TEST_P(KvCacheTest, WhatCannotBeSavedIsComputedAgain) {
    Sequence* const one = create();
    run(one, 320);
    backend->downloads_left = 3;
    EXPECT_NE(cache.evict(*one, "test"), 0u);
    backend->downloads_left = -1;
    if (GetParam() == Eviction::save) {
        EXPECT_EQ(one->cached(), 0u);
    }
    EXPECT_EQ(cache.saved_bytes(), 0u);
    EXPECT_EQ(cache.store(0).pages_in_use(), 0u);
    bring_back(one);
}

TEST_P(WindowedKvCacheTest, CompactionKeepsTablesRightAlsoWhereItFails) {
    std::vector<Sequence*> all;
    for (int i = 0; i < 40; ++i) all.push_back(create());
    for (int step = 0; step < 8; ++step) {
        for (Sequence* one : all) run(one, kPageTokens);
    }
    for (int i = 0; i < 40; ++i) {
        if (i % 8) close(all[i]);
    }
    std::vector<Sequence*> forks;
    for (int i = 0; i < 40; i += 8) forks.push_back(fork(all[i]));
    for (int fails_at = 0; fails_at < 12; fails_at += 3) {
        backend->copies_left = fails_at;
        try {
            cache.compact("test");
        } catch (const DeviceError&) {
        }
        backend->copies_left = -1;
        for (Sequence* one : owned) expect_whole(one);
    }
    cache.compact("test");
    EXPECT_EQ(cache.compact("again"), 0u);
    for (Sequence* one : owned) expect_whole(one);
    for (Sequence* one : forks) bring_back(one);
}

// ---- who waits ------------------------------------------------------------------------------------------------------

class AdmissionTest : public KvCacheTest {
  protected:
    // Room for so many pages in all.
    void allow(uint64_t pages) { pool.budget()->set_limit(pages * stride()); }
    static constexpr uint32_t kTen = 10 * kPageTokens;
    Admission admission{cache, log};
};
INSTANTIATE_TEST_SUITE_P(Evictions, AdmissionTest, ::testing::Values(Eviction::recompute));

TEST_P(AdmissionTest, SaysWhatWouldFit) {
    allow(10);
    Sequence* const one = create();
    try {
        admission.enter(*one, kTen + 1, {});
        FAIL();
    } catch (const OutOfMemory& error) {
        EXPECT_EQ(error.needed, 11 * stride());
        EXPECT_EQ(error.available, 10 * stride());
        const std::string text = error.what();
        EXPECT_NE(text.find("at most " + std::to_string(kTen - kPageTokens) + " tokens"), std::string::npos) << text;
        EXPECT_NE(text.find("Q8_0"), std::string::npos) << text;
    }
    EXPECT_EQ(one->claim, 0u);
    admission.enter(*one, kTen, {});
    EXPECT_EQ(one->claim, 10 * stride());
    admission.leave(*one);
}

TEST_P(AdmissionTest, ServesInTheOrderOfAsking) {
    allow(10);
    Sequence* const holder = create();
    admission.enter(*holder, kTen, {});
    holder->busy = true;
    std::mutex mutex;
    std::vector<int> order;
    std::vector<std::thread> threads;
    std::vector<Sequence*> asking;
    for (int i = 0; i < 4; ++i) asking.push_back(create());
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back([&, i] {
            // The first wants the most: who could begin at once has to wait all the same.
            admission.enter(*asking[i], i == 0 ? kTen : kPageTokens, {});
            {
                const std::lock_guard lock(mutex);
                order.push_back(i);
            }
            admission.leave(*asking[i]);
        });
        while (events(MemoryAction::wait) != static_cast<uint64_t>(i + 1)) std::this_thread::yield();
    }
    {
        const std::lock_guard lock(cache.mutex());
        holder->busy = false;
    }
    admission.leave(*holder);
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(order.front(), 0);
    EXPECT_EQ(order.size(), 4u);
    EXPECT_EQ(events(MemoryAction::admit), 4u);
}

TEST_P(AdmissionTest, AStalledGenerationLosesItsClaim) {
    allow(10);
    Sequence *const stalled = create(), *const next = create();
    admission.enter(*stalled, kTen, {});
    const auto begun = std::chrono::steady_clock::now();
    admission.enter(*next, kTen, {});
    const auto waited = std::chrono::steady_clock::now() - begun;
    EXPECT_GE(waited, std::chrono::milliseconds(200));
    EXPECT_LT(waited, std::chrono::seconds(20));
    admission.leave(*next);
}

TEST_P(AdmissionTest, AnInterruptedRequestLetsTheNextOneIn) {
    allow(10);
    Sequence *const holder = create(), *const first = create(), *const second = create();
    admission.enter(*holder, kTen - kPageTokens, {});
    holder->busy = true;
    std::atomic<bool> stop{false};
    std::thread blocked([&] { EXPECT_THROW(admission.enter(*first, kTen, [&] { return stop.load(); }), Interrupted); });
    while (events(MemoryAction::wait) != 1) std::this_thread::yield();
    std::thread behind([&] { admission.enter(*second, kPageTokens, {}); });
    while (events(MemoryAction::wait) != 2) std::this_thread::yield();
    stop = true;
    blocked.join();
    behind.join();
    EXPECT_EQ(second->claim, stride());
    EXPECT_EQ(first->claim, 0u);
    holder->busy = false;
}

TEST_P(AdmissionTest, WhatNoLongerFitsIsRefusedWhileItWaits) {
    allow(10);
    Sequence *const holder = create(), *const waiting = create();
    admission.enter(*holder, kTen, {});
    holder->busy = true;
    std::thread thread([&] { EXPECT_THROW(admission.enter(*waiting, kTen, {}), OutOfMemory); });
    while (events(MemoryAction::wait) != 1) std::this_thread::yield();
    allow(9);
    thread.join();
    EXPECT_EQ(events(MemoryAction::refuse), 1u);
    holder->busy = false;
}

}  // namespace
}  // namespace metallic
