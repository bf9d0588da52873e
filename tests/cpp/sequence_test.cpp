#include "kv/sequence.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/error.h"
#include "fake_backend.h"

namespace metallic {
namespace {

using test::FakeBackend;

class SequenceTest : public ::testing::Test {
  protected:
    static KvLayout layout() { return KvLayout::of({0, 2, 64, 3}, DType::F16); }

    std::shared_ptr<FakeBackend> backend = std::make_shared<FakeBackend>();
    Pool pool{backend, 0};
    PageStore full{pool, *backend, layout(), "kv/group.0"};
    PageStore windowed{pool, *backend, layout(), "kv/group.1"};

    std::unique_ptr<Sequence> sequence(uint32_t window = 100) {
        return std::make_unique<Sequence>(std::vector<PageStore*>{&full, &windowed}, std::vector<uint32_t>{0, window});
    }
    static void grow(Sequence& sequence, uint32_t length) {
        sequence.reserve(length);
        const std::vector<int32_t> tokens(length - sequence.length(), 7);
        sequence.commit(static_cast<uint32_t>(tokens.size()), tokens);
    }
};

TEST_F(SequenceTest, LayoutCountsEveryByte) {
    EXPECT_EQ(layout().page_bytes, uint64_t{2} * 3 * 2 * 64 * 2 * kPageTokens);
    EXPECT_EQ(KvLayout::of({0, 1, 80, 1}, DType::Q8_0).key_rows.row_bytes, 3u * 34);  // padded to whole blocks
}

TEST_F(SequenceTest, GrowsByPagesWithoutCopies) {
    auto s = sequence();
    for (uint32_t length = 1; length <= 1000; ++length) {
        grow(*s, length);
        ASSERT_EQ(full.pages_in_use(), (length + kPageTokens - 1) / kPageTokens);
    }
    EXPECT_EQ(backend->copies, 0);
    const PageTableView table = s->table(0);
    EXPECT_EQ(table.first_page, 0u);
    EXPECT_EQ(table.count, 32u);
}

TEST_F(SequenceTest, AWindowGivesBackWhatNobodySees) {
    auto s = sequence(100);
    for (uint32_t length = 1; length <= 2000; ++length) {
        grow(*s, length);
        const PageTableView table = s->table(1);
        // The query at `length` sees (length - 100, length].
        const uint32_t first_seen = length >= 100 ? length - 99 : 0;
        ASSERT_LE(table.first_page * kPageTokens, first_seen);
        ASSERT_GT((table.first_page + 1) * kPageTokens, first_seen);
        ASSERT_LE(windowed.pages_in_use(), 100 / kPageTokens + 2);
    }
}

TEST_F(SequenceTest, GivesEverythingBack) {
    const uint64_t before = pool.statistics().current();
    {
        auto a = sequence(), b = sequence();
        grow(*a, 500);
        grow(*b, 77);
        EXPECT_GT(pool.statistics().tags[static_cast<int>(Tag::kv)].current, 0u);
    }
    EXPECT_EQ(full.pages_in_use(), 0u);
    EXPECT_EQ(windowed.pages_held(), 0u);
    EXPECT_EQ(pool.statistics().current(), before);
}

TEST_F(SequenceTest, TruncatesUnlessAWindowLostThePast) {
    auto s = sequence(100);
    grow(*s, 90);
    EXPECT_TRUE(s->truncate(40));
    EXPECT_EQ(s->length(), 40u);
    EXPECT_EQ(full.pages_in_use(), 2u);
    grow(*s, 400);
    EXPECT_FALSE(s->truncate(100));
    EXPECT_EQ(s->length(), 400u);
    EXPECT_TRUE(s->truncate(395));
    EXPECT_FALSE(s->truncate(396));
}

TEST_F(SequenceTest, ForksShareUntilOneWrites) {
    auto a = sequence();
    grow(*a, 40);
    const uint64_t used = full.pages_in_use();
    auto b = a->fork();
    EXPECT_EQ(full.pages_in_use(), used);
    EXPECT_EQ(b->length(), 40u);
    const uint64_t shared = a->table(0).pages[1];
    std::memset(full.view(shared).host(), 7, 16);
    grow(*b, 41);
    EXPECT_EQ(backend->copies, 2);  // the last page of each group
    EXPECT_EQ(a->table(0).pages[1], shared);
    EXPECT_NE(b->table(0).pages[1], shared);
    EXPECT_EQ(b->table(0).pages[0], a->table(0).pages[0]);
    EXPECT_EQ(std::memcmp(full.view(b->table(0).pages[1]).host(), full.view(shared).host(), 16), 0);
    grow(*a, 41);
    EXPECT_EQ(backend->copies, 2);  // the page is its own again
    a.reset();
    EXPECT_EQ(full.references(b->table(0).pages[0]), 1u);
}

TEST_F(SequenceTest, AFailedReservationTakesNothing) {
    auto small = std::make_shared<FakeBackend>(Pool::kHeapBytes);
    Pool tight(small, 0);
    PageStore store(tight, *small, layout(), "kv/group.0");
    Sequence s({&store, &store}, {0, 0});
    grow(s, 32);
    const uint64_t used = store.pages_in_use();
    EXPECT_THROW(s.reserve(1u << 20), OutOfMemory);
    EXPECT_EQ(store.pages_in_use(), used);
    grow(s, 64);
    EXPECT_EQ(s.length(), 64u);
}

}  // namespace
}  // namespace metallic
