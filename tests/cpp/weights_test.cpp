#include "runtime/weights.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "fake_backend.h"
#include "gguf_builder.h"

namespace metallic::testing {
namespace {

constexpr uint64_t kRows = 5000, kCols = 1024, kBytes = kRows * kCols * sizeof(float);  // 20 MB: two parts

// Two matrices, each with a heap of its own.
class CopiedWeights : public ::testing::Test {
  protected:
    CopiedWeights() {
        GgufBuilder builder;
        builder.add_string("general.architecture", "none");
        builder.add_tensor("a", {kCols, kRows}, 0, kBytes).add_tensor("b", {kCols, kRows}, 0, kBytes);
        const auto bytes = std::make_shared<std::vector<std::byte>>(builder.build().bytes);
        file = std::make_shared<ModelFile>(ModelFile::from_sources({{"test", *bytes, bytes, nullptr}}));
        program.weights = {{"a", DType::F32, kCols, kRows, 1}, {"b", DType::F32, kCols, kRows, 1}};
        weights = std::make_unique<Weights>(file, backend, pool, program, storage);
    }
    bool filled(WeightId id) const {
        const auto bytes = file->tensor_bytes(file->tensor(program.weights[id].name));
        return std::memcmp(weights->views()[id].host(), bytes.data(), bytes.size()) == 0;
    }

    const std::shared_ptr<test::FakeBackend> backend = std::make_shared<test::FakeBackend>();
    Pool pool{backend, 3 * kBytes};
    std::shared_ptr<const ModelFile> file;
    Program program;
    const std::vector<std::optional<Storage>> storage{Storage::shared, Storage::shared};
    std::unique_ptr<Weights> weights;
    const std::vector<WeightId> both{0, 1};
};

TEST_F(CopiedWeights, AStopBetweenPartsLeavesTheWeightToTheNextUpload) {
    int polls = 0;
    EXPECT_THROW(weights->upload(both, [&] { return ++polls == 4; }), Interrupted);
    EXPECT_TRUE(filled(0));
    EXPECT_FALSE(filled(1));
    weights->upload(both, [&] { return ++polls == 0; });
    EXPECT_EQ(polls, 6) << "both parts of the second, none of the first";
    EXPECT_TRUE(filled(1));
    weights->upload(both, [&] { return ++polls == 0; });
    EXPECT_EQ(polls, 6) << "nothing is left to do";
}

TEST_F(CopiedWeights, EvictingGivesAllBytesBack) {
    EXPECT_EQ(weights->copied_bytes(), 2 * kBytes);
    weights->upload(std::span(both).first(1), {});
    EXPECT_EQ(weights->evict(), 2 * kBytes);
    EXPECT_TRUE(weights->evicted());
    pool.drop_empty_heaps();
    EXPECT_EQ(backend->used, 0u);
    EXPECT_EQ(weights->copied_bytes(), 0u);
    EXPECT_EQ(weights->evict(), 0u);
    weights->restore();
    EXPECT_FALSE(weights->evicted());
    EXPECT_FALSE(filled(0)) << "room alone came back";
    weights->upload(both, {});
    EXPECT_TRUE(filled(0));
    EXPECT_TRUE(filled(1));
}

TEST_F(CopiedWeights, SoManyGoAsGiveTheWantedHeapsBack) {
    weights->upload(both, {});
    const std::vector<WeightId> order{1, 0};
    EXPECT_TRUE(weights->choose(0, order).ids.empty());
    EXPECT_EQ(weights->choose(kBytes, order).ids, (std::vector<WeightId>{1}));
    EXPECT_EQ(weights->choose(1, order).heap_bytes, kBytes);
    EXPECT_EQ(weights->choose(kBytes + 1, order).ids, order);
    EXPECT_EQ(weights->choose(~uint64_t{0}, order).heap_bytes, 2 * kBytes);

    const uint64_t address = weights->views()[0].address();
    EXPECT_EQ(weights->evict(weights->choose(1, order).ids), kBytes);
    pool.drop_empty_heaps();
    EXPECT_EQ(backend->used, kBytes);
    EXPECT_EQ(weights->copied_bytes(), kBytes);
    EXPECT_EQ(weights->missing(), (std::vector<WeightId>{1}));
    EXPECT_EQ(weights->choose(1, order).ids, (std::vector<WeightId>{0})) << "the next one";
    weights->restore();
    EXPECT_TRUE(weights->missing().empty());
    EXPECT_EQ(weights->views()[0].address(), address);
    int parts = 0;
    weights->upload(both, [&] { return ++parts == 0; });
    EXPECT_EQ(parts, 2) << "of what was missing";
    EXPECT_TRUE(filled(0));
    EXPECT_TRUE(filled(1));
}

// Many small matrices and vectors that share heaps, some of them with other things.
TEST(SmallCopiedWeights, GoAHeapAtATime) {
    constexpr uint32_t kCount = 64;
    constexpr uint64_t kSmall = 64 * 64 * sizeof(float);
    GgufBuilder builder;
    builder.add_string("general.architecture", "none");
    Program program;
    std::vector<WeightId> order;
    for (uint32_t i = 0; i < kCount; ++i) {
        const std::string name = "m." + std::to_string(i);
        builder.add_tensor(name, {64, 64}, 0, kSmall);
        program.weights.push_back({name, DType::F32, 64, 64, 1});
        order.insert(order.begin(), i);
    }
    const auto bytes = std::make_shared<std::vector<std::byte>>(builder.build().bytes);
    const auto file = std::make_shared<ModelFile>(ModelFile::from_sources({{"test", *bytes, bytes, nullptr}}));
    const auto backend = std::make_shared<test::FakeBackend>();
    Pool pool{backend, 0};
    const Allocation other = pool.allocate_bytes(kSmall, Tag::activations, "other", Storage::exclusive);
    Weights weights(file, backend, pool, program, std::vector<std::optional<Storage>>(kCount, Storage::exclusive));
    ASSERT_GT(pool.heaps().size(), 2u);
    const uint64_t mixed = pool.heaps().front().bytes - kSmall;  // in the heap of the other
    for (uint64_t need = 1; need < kCount * kSmall; need = need * 3 + 7) {
        const uint64_t before = pool.statistics().heap_bytes, copied = weights.copied_bytes();
        const Weights::Choice choice = weights.choose(need, order);
        uint64_t largest = 0;
        for (const HeapUse& heap : pool.heaps()) largest = std::max(largest, heap.bytes);
        EXPECT_LT(choice.heap_bytes, need + largest);
        const uint64_t freed = weights.evict(choice.ids);
        EXPECT_EQ(freed, choice.ids.size() * kSmall);
        EXPECT_EQ(weights.copied_bytes(), copied - freed);
        pool.drop_empty_heaps();
        EXPECT_EQ(pool.statistics().heap_bytes, before - choice.heap_bytes) << "what was promised came back";
        if (choice.heap_bytes < need) EXPECT_LE(weights.copied_bytes(), mixed) << "all that there was";
        for (WeightId id = 0; id < choice.ids.size(); ++id) EXPECT_NE(choice.ids[id], 0u) << "is with something else";
        if (weights.copied_bytes() > mixed) continue;
        EXPECT_TRUE(weights.choose(1, order).ids.empty());
        weights.restore();
        EXPECT_EQ(weights.copied_bytes(), kCount * kSmall);
    }
}

TEST_F(CopiedWeights, RestoringWaitsForRoom) {
    weights->evict();
    Allocation other = pool.allocate_bytes(2 * kBytes, Tag::kv, "other");
    EXPECT_THROW(weights->restore(), OutOfMemory);
    EXPECT_TRUE(weights->evicted());
    EXPECT_EQ(weights->copied_bytes(), kBytes) << "there was room for one";
    EXPECT_THROW(weights->restore(), OutOfMemory);
    other.reset();
    weights->restore();
    weights->upload(both, {});
    EXPECT_TRUE(filled(0));
    EXPECT_TRUE(filled(1));
    EXPECT_EQ(weights->evict(), 2 * kBytes);
}

}  // namespace
}  // namespace metallic::testing
