#include "trace/events.h"

#include <gtest/gtest.h>

#include <thread>

namespace metallic {
namespace {

TEST(EventRing, KeepsTheNewest) {
    EventRing ring(8);
    for (uint64_t i = 0; i < 20; ++i) ring.record({i, i, i, static_cast<ScopeId>(i), EventKind::step, 0, 0});
    const auto events = ring.snapshot();
    ASSERT_EQ(events.size(), 8u);
    for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].start_ns, 12 + i);
    EXPECT_EQ(ring.recorded(), 20u);
}

TEST(EventRing, SnapshotsAreNeverTorn) {
    EventRing ring(64);
    std::atomic<bool> stop{false};
    std::vector<std::thread> writers;
    for (int w = 0; w < 2; ++w) {
        writers.emplace_back([&] {
            for (uint64_t i = 1; !stop; ++i) ring.record({i, i, i, static_cast<ScopeId>(i), EventKind::step, 0, 0});
        });
    }
    for (int round = 0; round < 500; ++round) {
        for (const Event& event : ring.snapshot()) {
            ASSERT_EQ(event.start_ns, event.duration_ns);
            ASSERT_EQ(event.start_ns, event.amount);
            ASSERT_EQ(static_cast<ScopeId>(event.start_ns), event.scope);
        }
    }
    stop = true;
    for (auto& writer : writers) writer.join();
}

TEST(ScopeTree, InternsPaths) {
    ScopeTree tree;
    const ScopeId forward = tree.child(0, "forward");
    const ScopeId block = tree.child(forward, "block.3");
    EXPECT_EQ(tree.child(forward, "block.3"), block);
    EXPECT_EQ(tree.path(block), "forward/block.3");
    EXPECT_EQ(tree.parent(block), forward);
    EXPECT_EQ(tree.path(0), "");
}

}  // namespace
}  // namespace metallic
