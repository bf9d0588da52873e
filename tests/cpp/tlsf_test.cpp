#include "memory/tlsf.h"

#include <gtest/gtest.h>

#include <iterator>
#include <map>
#include <random>
#include <vector>

#include "core/error.h"

namespace metallic {
namespace {

constexpr uint64_t kGranule = 256;

TEST(Tlsf, OffsetsAreWholeGranulesAndRestsAreFree) {
    Tlsf tlsf(kGranule);
    tlsf.add_region(10 * kGranule, 7);
    const auto a = tlsf.take(1), b = tlsf.take(2 * kGranule), c = tlsf.take(2 * kGranule + 1);
    ASSERT_TRUE(a && b && c);
    EXPECT_EQ(a->offset, 0u);
    EXPECT_EQ(b->offset, kGranule);
    EXPECT_EQ(c->offset, 3 * kGranule);
    EXPECT_EQ(a->region, 7u);
    EXPECT_EQ(tlsf.free_bytes(), 4 * kGranule);
    EXPECT_EQ(tlsf.largest(), 4 * kGranule);
    EXPECT_FALSE(tlsf.take(5 * kGranule));
    EXPECT_TRUE(tlsf.take(4 * kGranule));
    EXPECT_EQ(tlsf.largest(), 0u);
    EXPECT_FALSE(tlsf.take(1));
    EXPECT_FALSE(tlsf.take(0));
}

TEST(Tlsf, MergesWithBothNeighbours) {
    for (const std::vector<int>& order :
         {std::vector{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}) {
        Tlsf tlsf(kGranule);
        const uint32_t region = tlsf.add_region(30 * kGranule, 0);
        std::vector<uint32_t> nodes;
        for (int i = 0; i < 3; ++i) nodes.push_back(tlsf.take(10 * kGranule)->node);
        for (const int i : order) tlsf.give(nodes[static_cast<size_t>(i)]);
        EXPECT_EQ(tlsf.largest(), 30 * kGranule);
        EXPECT_EQ(tlsf.region_use(region).blocks, 0u);
        tlsf.remove_region(region);
        EXPECT_EQ(tlsf.free_bytes(), 0u);
        EXPECT_FALSE(tlsf.take(1));
    }
}

TEST(Tlsf, KnowsWhatWasNeverTaken) {
    Tlsf tlsf(kGranule);
    tlsf.add_region(8 * kGranule, 0);
    const auto a = tlsf.take(2 * kGranule);
    EXPECT_TRUE(a->fresh);
    tlsf.give(a->node);
    EXPECT_FALSE(tlsf.take(3 * kGranule)->fresh);  // two of its granules were taken
    EXPECT_TRUE(tlsf.take(5 * kGranule)->fresh);
}

TEST(Tlsf, AClosedRegionHandsOutNothing) {
    Tlsf tlsf(kGranule);
    const uint32_t first = tlsf.add_region(8 * kGranule, 1);
    const auto a = tlsf.take(3 * kGranule), b = tlsf.take(2 * kGranule);
    tlsf.set_closed(first, true);
    EXPECT_FALSE(tlsf.take(1));
    EXPECT_EQ(tlsf.largest(), 0u);
    tlsf.give(a->node);
    EXPECT_EQ(tlsf.region_use(first).largest_free, 3 * kGranule);
    tlsf.give(b->node);
    EXPECT_EQ(tlsf.region_use(first).largest_free, 8 * kGranule);
    EXPECT_FALSE(tlsf.take(1));
    tlsf.add_region(4 * kGranule, 2);
    EXPECT_EQ(tlsf.take(kGranule)->region, 2u);
    tlsf.set_closed(first, false);
    EXPECT_EQ(tlsf.take(8 * kGranule)->region, 1u);
}

TEST(Tlsf, RefusesRegionsThatItCannotCount) {
    Tlsf tlsf(kGranule);
    EXPECT_THROW(tlsf.add_region(0, 0), Error);
    EXPECT_THROW(tlsf.add_region((Tlsf::kMostGranules + 1) * kGranule, 0), Error);
    const uint32_t region = tlsf.add_region(Tlsf::kMostGranules * kGranule, 0);
    EXPECT_FALSE(tlsf.take(~uint64_t{0}));
    const auto most = tlsf.take(Tlsf::kMostGranules * kGranule);
    ASSERT_TRUE(most);
    tlsf.give(most->node);
    tlsf.remove_region(region);
}

// The bound of the header: a free block of 33/32 of the wanted size is always found, take_any finds any that fits.
TEST(Tlsf, FindsWhatItPromises) {
    for (uint64_t free = 1; free < 3000; ++free) {
        for (uint64_t wanted = 1; wanted <= free; wanted += 1 + wanted / 7) {
            Tlsf tlsf(1);
            tlsf.add_region(free, 0);
            const auto got = tlsf.take(wanted);
            ASSERT_TRUE(got) << wanted << " of " << free;  // alone in its list: it is probed
            tlsf.give(got->node);
            ASSERT_TRUE(tlsf.take_any(wanted));
        }
    }
    // More blocks in the class than are probed, all but the last too small.
    Tlsf tlsf(1);
    std::vector<uint32_t> small;
    tlsf.add_region(1047, 99);  // first in, last in its list
    for (uint32_t i = 0; i < 2 * Tlsf::kProbes; ++i) tlsf.add_region(1025, i);
    EXPECT_FALSE(tlsf.take(1040));
    EXPECT_FALSE(tlsf.take(1026));
    EXPECT_TRUE(tlsf.take(1024));
    EXPECT_EQ(tlsf.take_any(1040)->region, 99u);
    EXPECT_FALSE(tlsf.take_any(1026));
}

// Against a map of what is held, over many regions: nothing is handed out twice, and the counts agree.
class RandomTlsf : public ::testing::TestWithParam<uint32_t> {};

TEST_P(RandomTlsf, NeverHandsOutAByteTwice) {
    std::mt19937 random(GetParam());
    constexpr uint32_t kRegions = 4;
    const uint64_t region_bytes = kGranule * (64 + random() % 4000);
    Tlsf tlsf(kGranule);
    std::vector<uint32_t> regions;
    for (uint32_t r = 0; r < kRegions; ++r) regions.push_back(tlsf.add_region(region_bytes, r));
    struct Held {
        uint64_t bytes;
        uint32_t node;
    };
    std::map<std::pair<uint32_t, uint64_t>, Held> held;
    uint64_t used = 0;
    for (int i = 0; i < 20000; ++i) {
        if (random() % 100 < 55 || held.empty()) {
            const uint64_t granules = 1 + random() % (random() % 8 ? 40 : 700);
            const uint64_t largest = tlsf.largest();
            const auto block = random() % 2 ? tlsf.take(granules * kGranule) : tlsf.take_any(granules * kGranule);
            if (!block) {
                ASSERT_LT(largest, granules * kGranule * 33 / 32 + kGranule);
                continue;
            }
            ASSERT_LE(granules * kGranule, largest);
            ASSERT_LE(block->offset + granules * kGranule, region_bytes);
            const auto after = held.lower_bound({block->region, block->offset});
            if (after != held.end() && after->first.first == block->region) {
                ASSERT_LE(block->offset + granules * kGranule, after->first.second);
            }
            if (after != held.begin()) {
                const auto before = std::prev(after);
                if (before->first.first == block->region) {
                    ASSERT_LE(before->first.second + before->second.bytes, block->offset);
                }
            }
            held.emplace(std::pair(block->region, block->offset), Held{granules * kGranule, block->node});
            used += granules * kGranule;
        } else {
            const auto victim = std::next(held.begin(), static_cast<long>(random() % held.size()));
            tlsf.give(victim->second.node);
            used -= victim->second.bytes;
            held.erase(victim);
        }
        ASSERT_EQ(tlsf.free_bytes(), kRegions * region_bytes - used);
    }
    for (const auto& [place, block] : held) tlsf.give(block.node);
    EXPECT_EQ(tlsf.largest(), region_bytes);
    for (const uint32_t region : regions) {
        EXPECT_EQ(tlsf.region_use(region).largest_free, region_bytes);
        tlsf.remove_region(region);
    }
    EXPECT_EQ(tlsf.free_bytes(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomTlsf, ::testing::Range(1u, 7u));

}  // namespace
}  // namespace metallic
