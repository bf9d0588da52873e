#include "kv/page_store.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "core/error.h"
#include "failing_backend.h"

namespace metallic {
namespace {

using test::FailingBackend;

KvLayout layout() {
    return KvLayout::of({0, 2, 64, 3}, DType::F16);
}

class PageStoreTest : public ::testing::Test {
  protected:
    void stamp(uint64_t page, uint32_t value) {
        std::memcpy(store.view(page).host(), &value, sizeof(value));
        std::memcpy(store.view(page).host() + store.view(page).bytes - sizeof(value), &value, sizeof(value));
    }
    bool holds(uint64_t page, uint32_t value) {
        const BufferView view = store.view(page);
        return std::memcmp(view.host(), &value, sizeof(value)) == 0 &&
               std::memcmp(view.host() + view.bytes - sizeof(value), &value, sizeof(value)) == 0;
    }
    uint64_t kv_bytes() const { return pool.statistics().tags[static_cast<int>(Tag::kv)].current; }
    // Pages by what is stamped on them.
    std::map<uint32_t, uint64_t> take(uint32_t count) {
        std::map<uint32_t, uint64_t> pages;
        for (uint32_t i = 0; i < count; ++i) {
            pages[i] = store.take();
            stamp(pages[i], i);
        }
        return pages;
    }
    static void apply(std::map<uint32_t, uint64_t>& pages, const std::vector<PageMove>& moves) {
        for (const PageMove& move : moves) {
            for (auto& [value, page] : pages) {
                if (page == move.from) page = move.to;
            }
        }
    }

    std::shared_ptr<FailingBackend> backend = std::make_shared<FailingBackend>();
    Pool pool{backend, 0};
    PageStore store{pool, *backend, layout(), "kv/group.0"};
};

TEST_F(PageStoreTest, SlabsGrowWithWhatIsHeld) {
    std::vector<uint64_t> pages;
    for (uint32_t count = 1; count <= 3000; ++count) {
        pages.push_back(store.take());
        const uint64_t held = store.pages_held();
        ASSERT_LE(held - count, held / 64 + 1);
        ASSERT_EQ(held, PageStore::held_pages(layout().page_bytes, count));
        ASSERT_EQ(kv_bytes(), held * store.page_stride());
    }
    std::sort(pages.begin(), pages.end());
    for (size_t i = 1; i < pages.size(); ++i) ASSERT_GE(pages[i] - pages[i - 1], store.page_stride());
    for (const uint64_t page : pages) store.give(page);
    EXPECT_EQ(store.pages_held(), 0u);
    EXPECT_EQ(kv_bytes(), 0u);
}

TEST_F(PageStoreTest, RandomUseKeepsEveryPageApart) {
    std::mt19937 random(3);
    std::map<uint32_t, uint64_t> live;
    for (uint32_t step = 0; step < 20000; ++step) {
        const uint32_t grow = step / 2000 % 2 ? 2 : 6;  // of ten
        if (live.empty() || random() % 10 < grow) {
            const uint64_t page = store.take();
            ASSERT_EQ(store.references(page), 1u);
            stamp(page, step);
            live[step] = page;
        } else {
            auto one = live.lower_bound(random() % step);
            if (one == live.end()) one = live.begin();
            ASSERT_TRUE(holds(one->second, one->first));
            store.give(one->second);
            live.erase(one);
        }
        if (step % 997 == 0) {
            std::vector<PageMove> moves;
            store.compact(moves);
            apply(live, moves);
        }
        ASSERT_EQ(store.pages_in_use(), live.size());
        ASSERT_EQ(kv_bytes(), store.pages_held() * store.page_stride());
    }
    for (const auto& [value, page] : live) ASSERT_TRUE(holds(page, value));
    for (const auto& [value, page] : live) store.give(page);
    EXPECT_EQ(store.pages_held(), 0u);
}

TEST_F(PageStoreTest, CompactionMovesSharedPagesWithTheirReferences) {
    auto pages = take(1000);
    for (uint32_t i = 0; i < 1000; ++i) {
        if (i % 5) {
            store.give(pages[i]);
            pages.erase(i);
        } else if (i % 2) {
            store.share(pages[i]);
        }
    }
    const uint64_t before = store.pages_held();
    std::vector<PageMove> moves;
    store.compact(moves);
    EXPECT_FALSE(moves.empty());
    EXPECT_EQ(store.pages_copied(), moves.size());
    apply(pages, moves);
    EXPECT_LT(store.pages_held(), before);
    EXPECT_EQ(store.pages_in_use(), pages.size());
    for (const auto& [value, page] : pages) {
        ASSERT_TRUE(holds(page, value));
        ASSERT_EQ(store.references(page), value % 2 ? 2u : 1u);
    }
}

TEST_F(PageStoreTest, ACompactionThatFailsLeavesEveryPageSomewhere) {
    for (int fails_at : {0, 1, 2, 7, 30, 100}) {
        auto pages = take(1000);
        for (uint32_t i = 0; i < 1000; ++i) {
            if (i % 4 == 0) continue;
            store.give(pages[i]);
            pages.erase(i);
        }
        std::vector<PageMove> moves;
        backend->copies_left = fails_at;
        EXPECT_THROW(store.compact(moves), DeviceError);
        backend->copies_left = -1;
        EXPECT_EQ(moves.size(), static_cast<size_t>(fails_at));
        apply(pages, moves);
        EXPECT_EQ(store.pages_in_use(), pages.size());
        for (const auto& [value, page] : pages) ASSERT_TRUE(holds(page, value));
        moves.clear();
        store.compact(moves);  // goes on where it was
        apply(pages, moves);
        for (const auto& [value, page] : pages) ASSERT_TRUE(holds(page, value));
        for (const auto& [value, page] : pages) store.give(page);
        ASSERT_EQ(store.pages_held(), 0u);
        ASSERT_EQ(kv_bytes(), 0u);
    }
}

}  // namespace
}  // namespace metallic
