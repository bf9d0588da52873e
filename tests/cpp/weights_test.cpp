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
