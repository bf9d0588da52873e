#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>
#include <utility>

#include "core/error.h"
#include "placed_model.h"
#include "runtime/model.h"

// Models whose layers are on two devices, against the same model on one.
namespace metallic::testing {
namespace {

constexpr uint32_t kRowBytes = PlacedModel::kWidth * sizeof(float);

class StagedModel {
  public:
    explicit StagedModel(const std::string& rules, std::optional<uint32_t> device_layers = {}, uint64_t budget = 0,
                         uint32_t batch_tokens = 48, std::shared_ptr<const ResidencyPolicy> policy = nullptr) {
        ModelOptions options;
        options.policy = std::move(policy);
        options.context_length = 4096;
        options.batch_tokens = batch_tokens;
        options.precision = Precision::float32;
        options.memory_budget = budget;
        options.placement = PlacementRules::parse(rules);
        if (device_layers) options.placement.set_device_layers(*device_layers);
        options.host = [this] {
            host = std::make_shared<CountingBackend>(true);
            return host;
        };
        model = Model::load(source.file, device, source.program, options);
    }

    std::vector<float> forward(std::vector<RunRequest> runs) {
        std::vector<float> logits(logit_rows(runs) * PlacedModel::kVocabulary);
        model->forward(runs, logits.data(), interrupted);
        return logits;
    }

    PlacedModel source;
    std::shared_ptr<CountingBackend> device = std::make_shared<CountingBackend>(false), host;
    std::shared_ptr<Model> model;
    std::function<bool()> interrupted;
};

std::vector<int32_t> tokens(uint32_t count, int32_t first) {
    std::vector<int32_t> result(count);
    for (uint32_t i = 0; i < count; ++i) result[i] = static_cast<int32_t>((first + i * 7) % PlacedModel::kVocabulary);
    return result;
}

// A long prompt in several submissions, two sequences in a batch, a fork that writes into shared pages, a sequence cut
// short: all logits one after the other.
std::vector<float> story(StagedModel& m) {
    const auto first = m.model->create_sequence(), second = m.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(110, 1), other = tokens(9, 3), one = tokens(1, 5);
    std::vector<float> all;
    const auto run = [&](std::vector<RunRequest> runs) {
        const std::vector<float> logits = m.forward(std::move(runs));
        all.insert(all.end(), logits.begin(), logits.end());
    };
    run({{first.get(), prompt}});
    run({{first.get(), one}, {second.get(), other, true}});
    const auto forked = m.model->fork(*first);
    run({{forked.get(), other}, {first.get(), one}, {second.get(), one}});
    run({{forked.get(), other, false, true}});
    EXPECT_TRUE(m.model->truncate(*second, 4));
    run({{second.get(), one}, {forked.get(), one}});
    return all;
}

TEST(StagedModel, AnyPlacementGivesTheSameLogits) {
    StagedModel whole("mapped");
    const std::vector<float> wanted = story(whole);
    EXPECT_EQ(whole.model->placement().stages.size(), 1u);
    EXPECT_EQ(whole.host, nullptr);
    EXPECT_GT(*std::max_element(wanted.begin(), wanted.end()), 0.0f);
    for (const char* rules :
         {"cpu", "private", "shared", "blk.0=cpu", "blk.3=cpu", "blk.1-2=cpu", "blk.1=cpu,blk.3=cpu", "token_embd=cpu",
          "blk.*.ffn_*=cpu", "private,blk.*.attn_*=cpu", "blk.*.ffn_down=cpu", "blk.*.attn_norm=cpu",
          "blk.*.attn_v=cpu", "output_norm=cpu", "shared,blk.2.ffn_up=cpu", "blk.*.attn_output=cpu"}) {
        StagedModel placed(rules);
        EXPECT_EQ(story(placed), wanted) << rules;
    }
    for (uint32_t layers = 0; layers <= PlacedModel::kBlocks + 1; ++layers) {
        StagedModel placed("private", layers);
        EXPECT_EQ(story(placed), wanted) << layers;
        EXPECT_EQ(placed.host != nullptr, layers <= PlacedModel::kBlocks);
    }
}

TEST(StagedModel, ActivationsCrossOncePerBoundaryTheBatchsRowsAlone) {
    StagedModel placed("blk.1-2=cpu");
    const auto sequence = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(20, 1), one = tokens(1, 2);
    placed.forward({{sequence.get(), prompt}});
    EXPECT_EQ(placed.device->uploads, (std::vector<uint64_t>{20 * kRowBytes}));
    EXPECT_EQ(placed.host->uploads, (std::vector<uint64_t>{20 * kRowBytes}));
    EXPECT_EQ(placed.device->submissions, 2);
    EXPECT_EQ(placed.host->submissions, 1);
    placed.forward({{sequence.get(), one}});
    EXPECT_EQ(placed.device->uploads.back(), kRowBytes);
    EXPECT_EQ(placed.host->uploads.back(), kRowBytes);

    // Behind the last attention only the rows that were asked for are left.
    StagedModel output("output_norm=cpu");
    const auto other = output.model->create_sequence();
    output.forward({{other.get(), prompt}});
    EXPECT_EQ(output.host->uploads, (std::vector<uint64_t>{kRowBytes}));
    output.forward({{other.get(), one, false, true}});
    EXPECT_EQ(output.host->uploads.size(), 1u) << "no logits, no rows";
}

TEST(StagedModel, PagesAreOnTheDeviceOfTheirLayers) {
    StagedModel placed("blk.0-2=cpu");
    // Blocks 0 and 2 see all, 1 and 3 a window; one of these is on the device.
    const std::vector<Model::GroupUse> groups = placed.model->kv_use().groups;
    ASSERT_EQ(groups.size(), 3u);
    EXPECT_EQ(groups[0].window, PlacedModel::kWindow);
    EXPECT_EQ(groups[0].layers, 1u);
    EXPECT_EQ(groups[1].layers, 2u);
    EXPECT_EQ(groups[2].layers, 1u);
    StagedModel whole("mapped");
    EXPECT_EQ(placed.model->kv_bytes_per_token(), whole.model->kv_bytes_per_token());
    const auto sequence = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(200, 1);
    placed.forward({{sequence.get(), prompt}});
    const std::vector<Model::GroupUse> used = placed.model->kv_use().groups;
    EXPECT_EQ(used[1].pages_in_use, 7u);
    EXPECT_LE(used[0].pages_in_use, 3u);
    EXPECT_LE(used[2].pages_in_use, 3u);
}

TEST(StagedModel, MappedBytesAreCountedOnce) {
    StagedModel whole("mapped"), placed("mapped", 2);
    EXPECT_EQ(placed.model->memory().mapped_bytes, whole.model->memory().mapped_bytes) << "both read the embeddings";
}

TEST(StagedModel, CopiesAreMadeAtFirstUseStageByStage) {
    StagedModel placed("blk.0=private,blk.1=cpu,blk.3=shared");
    const uint64_t matrix = placed.source.bytes_of("blk.0.ffn_up.weight");
    const auto count = [&](uint64_t bytes) {
        return std::count(placed.device->uploads.begin(), placed.device->uploads.end(), bytes);
    };
    EXPECT_EQ(count(matrix), 0) << "nothing was needed yet";
    EXPECT_EQ(count(kRowBytes), 4) << "vectors are there when plans are compiled";
    // A stop between the stages: what the first needs is there, what the last needs is not.
    const auto sequence = placed.model->create_sequence();
    placed.interrupted = [&] { return placed.host->submissions > 0; };
    const std::vector<int32_t> prompt = tokens(5, 1);
    EXPECT_THROW(placed.forward({{sequence.get(), prompt}}), Interrupted);
    EXPECT_EQ(count(matrix), 3) << "gate, up and down of block 0";
    placed.interrupted = {};
    placed.forward({{sequence.get(), prompt}});
    placed.forward({{sequence.get(), prompt}});
    EXPECT_EQ(count(matrix), 6) << "each once";
}

TEST(StagedModel, EvictedWeightsComeBackWithTheNextPass) {
    StagedModel whole("mapped");
    const std::vector<float> wanted = story(whole);
    EXPECT_EQ(whole.model->evict_weights(), 0u) << "what is mapped is not held";
    for (const char* rules : {"private", "shared,blk.1=cpu", "mapped,blk.0-1=private"}) {
        StagedModel placed(rules);
        const uint64_t before = placed.model->memory().heap_bytes;
        EXPECT_EQ(story(placed), wanted);
        const uint64_t held = placed.model->memory().tags[static_cast<int>(Tag::weights)].current;
        const uint64_t freed = placed.model->evict_weights();
        EXPECT_GT(freed, placed.source.bytes_of("blk.0.ffn_up.weight"));
        const uint64_t left = placed.model->memory().tags[static_cast<int>(Tag::weights)].current;
        EXPECT_LE(left + freed, held);
        EXPECT_EQ(placed.model->evict_weights(), 0u);
        EXPECT_EQ(story(placed), wanted) << rules;
        EXPECT_EQ(placed.model->memory().tags[static_cast<int>(Tag::weights)].current, held);
        EXPECT_LE(placed.model->memory().heap_bytes, before + 2 * Pool::kHeapBytes);
    }
}

uint64_t sum(std::span<const uint64_t> bytes) {
    return std::accumulate(bytes.begin(), bytes.end(), uint64_t{0});
}

TEST(StagedModel, ANeedEvictsAboutSoMuchAndTheNextPassBringsThatAloneBack) {
    StagedModel whole("mapped");
    const std::vector<float> wanted = story(whole);
    EXPECT_EQ(whole.model->evict_weights(1), 0u);
    for (const char* rules : {"private", "private,blk.1=cpu", "mapped,blk.1-3=private", "private,blk.0=shared"}) {
        StagedModel placed(rules);
        EXPECT_EQ(story(placed), wanted);
        std::set<uint64_t> seen;
        for (const uint64_t need : {uint64_t{1}, uint64_t{200} << 10, uint64_t{300} << 10, ~uint64_t{0}}) {
            const auto weight_bytes = [&] {
                return placed.model->memory().tags[static_cast<int>(Tag::weights)].current;
            };
            uint64_t largest = 0;
            for (const HeapUse& heap : placed.model->pools()[0]->heaps()) largest = std::max(largest, heap.bytes);
            const uint64_t heaps = placed.model->memory().heap_bytes, held = weight_bytes();
            const uint64_t freed = placed.model->evict_weights(need);
            ASSERT_GT(freed, 0u) << rules;
            EXPECT_LT(freed, need < largest ? need + largest : ~uint64_t{0}) << rules;
            EXPECT_LE(weight_bytes(), held - freed);
            const uint64_t back = heaps - placed.model->memory().heap_bytes;
            EXPECT_GE(back, std::min(freed, need)) << rules;
            seen.insert(freed);
            const size_t uploads = placed.device->uploads.size();
            EXPECT_EQ(story(placed), wanted) << rules << ", " << need;
            EXPECT_EQ(weight_bytes(), held);
            if (placed.model->placement().stages.size() > 1) continue;  // activations are uploaded too
            EXPECT_EQ(sum(std::span(placed.device->uploads).subspan(uploads)), freed) << rules;
        }
        EXPECT_GT(seen.size(), 1u) << "not always all: " << rules;
        const auto count = [&](MemoryAction action) { return placed.model->memory_log().count(action); };
        EXPECT_EQ(count(MemoryAction::evict_weights).events, 4u);
        EXPECT_EQ(count(MemoryAction::restore_weights).events, 4u);
        EXPECT_EQ(count(MemoryAction::evict_weights).bytes, count(MemoryAction::restore_weights).bytes);
    }
}

TEST(StagedModel, WhatThePassNeedsLastGoesFirst) {
    StagedModel placed("private");
    const auto sequence = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1);
    placed.forward({{sequence.get(), prompt}});
    const auto owners = [&] {
        std::set<std::string> names;
        for (const OwnerUse& use : placed.model->pools()[0]->leaks()) names.insert(use.owner);
        return names;
    };
    ASSERT_TRUE(owners().contains("token_embd.weight"));
    ASSERT_GT(placed.model->evict_weights(1), 0u);
    EXPECT_TRUE(owners().contains("token_embd.weight")) << "which the output reads too, at the end";
    EXPECT_TRUE(owners().contains("blk.0.attn_q.weight"));
    EXPECT_FALSE(owners().contains("blk.3.ffn_down.weight"));
    ASSERT_GT(placed.model->evict_weights(1), 0u) << "more, while some are gone";
    EXPECT_GT(placed.model->evict_weights(), 0u) << "vectors, and the rest";
    EXPECT_FALSE(owners().contains("token_embd.weight"));
    EXPECT_FALSE(owners().contains("blk.0.attn_norm.weight"));
}

class EvictedWeights : public ::testing::TestWithParam<std::optional<uint64_t>> {};
INSTANTIATE_TEST_SUITE_P(AllOrSome, EvictedWeights, ::testing::Values(std::nullopt, 1));

TEST_P(EvictedWeights, ComeBackBeforePagesAreTaken) {
    StagedModel placed("private");
    const auto count = [&](MemoryAction action) { return placed.model->memory_log().count(action); };
    const auto sequence = placed.model->create_sequence(), idle = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1), other = tokens(2000, 2);
    const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
    ASSERT_TRUE(placed.model->truncate(*sequence, 0));

    placed.model->set_memory_budget(placed.model->memory().heap_bytes + (uint64_t{64} << 10));
    const uint64_t capacity = placed.model->kv_use().capacity;
    const uint64_t freed = placed.model->evict_weights(GetParam());
    ASSERT_GT(freed, 0u);
    EXPECT_EQ(count(MemoryAction::evict_weights).bytes, freed);
    EXPECT_EQ(placed.model->kv_use().capacity, capacity);
    placed.model->reserve(*idle, 2000);  // now an idle sequence has their room
    EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
    EXPECT_EQ(placed.model->use(*idle).pages, 0u);
    EXPECT_EQ(count(MemoryAction::restore_weights).events, 1u);
    EXPECT_EQ(count(MemoryAction::restore_weights).bytes, freed);
    EXPECT_EQ(placed.model->kv_use().capacity, capacity);
}

TEST_P(EvictedWeights, AlsoThoseThatRunMakeRoomForThem) {
    StagedModel placed("private");
    const auto sequence = placed.model->create_sequence(), running = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1), other = tokens(40, 2), next = tokens(1, 3);
    const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
    ASSERT_TRUE(placed.model->truncate(*sequence, 0));
    placed.forward({{sequence.get(), other}});
    const std::vector<float> wanted_next = placed.forward({{sequence.get(), next}});
    ASSERT_TRUE(placed.model->truncate(*sequence, 0));

    placed.forward({{running.get(), other}});
    placed.model->set_memory_budget(placed.model->memory().heap_bytes + (uint64_t{64} << 10));
    ASSERT_GT(placed.model->evict_weights(GetParam()), 0u);
    placed.model->reserve(*running, 2000);
    placed.model->enter(*running, 41, {});
    EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
    EXPECT_EQ(placed.forward({{running.get(), next}}), wanted_next);
}

TEST_P(EvictedWeights, SurviveAHeapThatIsRefused) {
    for (int fault = 0; fault < 12; ++fault) {
        StagedModel placed("private");
        const auto sequence = placed.model->create_sequence();
        const std::vector<int32_t> prompt = tokens(4, 1);
        const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
        const uint64_t held = placed.model->memory().tags[static_cast<int>(Tag::weights)].current;
        ASSERT_TRUE(placed.model->truncate(*sequence, 0));
        ASSERT_GT(placed.model->evict_weights(GetParam()), 0u);
        const int refused = 1 + fault / 4;
        placed.device->let_heaps = fault % 4;
        placed.device->refuse_heaps = refused;
        try {
            EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
        } catch (const OutOfMemory&) {
            EXPECT_FALSE(GetParam() && refused == 1) << "what had stayed could make room";
            EXPECT_EQ(sequence->length(), 0u);
            placed.device->refuse_heaps = 0;
            EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
        }
        EXPECT_TRUE(fault % 4 || placed.device->refuse_heaps < refused);
        EXPECT_EQ(placed.model->memory().tags[static_cast<int>(Tag::weights)].current, held);
        const auto count = [&](MemoryAction action) { return placed.model->memory_log().count(action); };
        EXPECT_EQ(count(MemoryAction::evict_weights).bytes, count(MemoryAction::restore_weights).bytes);
    }
}

TEST_P(EvictedWeights, SurviveAnUploadThatFails) {
    StagedModel placed("private");
    const auto sequence = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1);
    const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
    const uint64_t held = placed.model->memory().tags[static_cast<int>(Tag::weights)].current;
    int failures = 0;
    for (int upload = 1;; ++upload) {
        ASSERT_TRUE(placed.model->truncate(*sequence, 0));
        ASSERT_GT(placed.model->evict_weights(GetParam()), 0u);
        placed.device->fail_upload = upload;
        try {
            EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
            break;
        } catch (const DeviceError&) {
            ++failures;
        }
        if (upload % 2) placed.model->evict_weights(1);  // of what had come back, too
        EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted) << upload;
        EXPECT_EQ(placed.model->memory().tags[static_cast<int>(Tag::weights)].current, held);
    }
    EXPECT_GT(failures, 5);
}

// Decides once what it is told to.
class ToldPolicy final : public ResidencyPolicy {
  public:
    MemoryDecision decide(const MemoryState&) const override {
        const std::lock_guard lock(mutex_);
        ++decided_;
        return std::exchange(next_, {});
    }
    // Returns when it was carried out.
    void tell(const MemoryDecision& decision) {
        int now = 0;
        {
            const std::lock_guard lock(mutex_);
            next_ = decision;
            now = decided_;
        }
        while (decided_ < now + 2) std::this_thread::yield();
    }

  private:
    mutable std::mutex mutex_;
    mutable MemoryDecision next_;
    mutable std::atomic<int> decided_{0};
};

TEST(StagedModel, WeightsGiveWhatSequencesDidNot) {
    const auto policy = std::make_shared<ToldPolicy>();
    StagedModel placed("private", {}, 0, 48, policy);
    const auto evicted = [&] { return placed.model->memory_log().count(MemoryAction::evict_weights); };
    const auto sequence = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1);
    const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
    placed.model->reserve(*sequence, 2000);
    MemoryDecision decision;
    decision.evict_bytes = ~uint64_t{0}, decision.evict_weight_bytes = 1;
    uint64_t before = placed.model->memory().heap_bytes;
    policy->tell(decision);
    EXPECT_EQ(placed.model->use(*sequence).pages, 0u);
    EXPECT_LT(placed.model->memory().heap_bytes, before);
    EXPECT_EQ(evicted().events, 0u) << "the sequence gave enough";
    policy->tell(decision);
    EXPECT_EQ(evicted().events, 1u);
    const uint64_t first = evicted().bytes;
    EXPECT_GT(first, 0u);
    before = placed.model->memory().heap_bytes;
    policy->tell({0, false, ~uint64_t{0}});
    EXPECT_EQ(evicted().events, 2u) << "there was more";
    policy->tell({0, false, ~uint64_t{0}});
    EXPECT_EQ(evicted().events, 2u) << "nothing is left whose heap would come back";
    ASSERT_TRUE(placed.model->truncate(*sequence, 0));
    EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
}

TEST(StagedModel, AnIdleModelGivesDownToTheLowWatermark) {
    StagedModel loaded("private");
    const auto first = loaded.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1);
    const std::vector<float> wanted = loaded.forward({{first.get(), prompt}});
    const double heaps = static_cast<double>(loaded.model->memory().heap_bytes);
    double pages = 0;
    for (const HeapUse& heap : loaded.model->pools()[0]->heaps()) {
        if (heap.tags[static_cast<int>(Tag::kv)]) pages += static_cast<double>(heap.bytes);
    }
    const double limit = heaps / 0.95, low = (heaps - pages - (100 << 10)) / limit;
    const auto policy = std::make_shared<WatermarkPolicy>(WatermarkPolicy::Options{(0.95 + low) / 2, low, 0.5, 1});
    StagedModel placed("private", {}, 0, 48, policy);
    const auto sequence = placed.model->create_sequence();
    const auto count = [&](MemoryAction action) { return placed.model->memory_log().count(action); };
    for (uint64_t round = 1; round < 4; ++round) {
        EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
        const uint64_t copied = count(MemoryAction::evict_weights).bytes;
        placed.model->set_memory_budget(static_cast<uint64_t>(limit));
        while (count(MemoryAction::evict_weights).events < round) std::this_thread::yield();
        placed.model->set_memory_budget(0);
        const uint64_t freed = count(MemoryAction::evict_weights).bytes - copied;
        EXPECT_GE(freed, uint64_t{64} << 10);
        EXPECT_LT(freed, loaded.source.file_bytes() / 2 + (uint64_t{64} << 10)) << "not all";
        EXPECT_LT(static_cast<double>(placed.model->memory().heap_bytes), low * limit);
        ASSERT_TRUE(placed.model->truncate(*sequence, 0));
    }
}

// Whatever has gone, the rest comes back into what a load takes.
TEST(StagedModel, WhatComesBackFitsWhereItWas) {
    for (const char* rules : {"private", "shared", "private,blk.2=shared", "private,token_embd=mapped,blk.1=cpu"}) {
        StagedModel placed(rules);
        const auto sequence = placed.model->create_sequence();
        const std::vector<int32_t> prompt = tokens(70, 1);
        const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
        placed.model->set_memory_budget(placed.model->memory().heap_bytes);
        uint64_t evictions = 0;
        for (uint64_t need = 1; need < (uint64_t{1} << 20); need += uint64_t{60} << 10) {
            evictions += placed.model->evict_weights(need) > 0;
            ASSERT_TRUE(placed.model->truncate(*sequence, 0));
            EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted) << rules << ", " << need;
            EXPECT_LE(placed.model->memory().heap_bytes, placed.model->memory().budget);
        }
        EXPECT_TRUE(evictions > 10 || std::string_view(rules) == "shared") << evictions;
    }
}

// Decides that weights go, after something else happened meanwhile.
class HastyPolicy final : public ResidencyPolicy {
  public:
    MemoryDecision decide(const MemoryState& state) const override {
        MemoryDecision decision;
        decision.evict_weight_bytes = state.weight_bytes != 0 && meanwhile() ? ~uint64_t{0} : 0;
        ++decided;
        return decision;
    }
    std::function<bool()> meanwhile;
    mutable std::atomic<int> decided{0};
};

TEST(StagedModel, WeightsOfAModelThatRanMeanwhileStay) {
    for (const bool runs : {true, false}) {
        const auto policy = std::make_shared<HastyPolicy>();
        std::atomic<StagedModel*> placed{nullptr};
        policy->meanwhile = [&] {
            StagedModel* const model = placed;
            if (!model || !runs) return model != nullptr;
            const auto sequence = model->model->create_sequence();
            const std::vector<int32_t> prompt = tokens(4, 1);
            model->forward({{sequence.get(), prompt}});
            return true;
        };
        StagedModel model("private", {}, 0, 48, policy);
        placed = &model;
        const int begun = policy->decided;
        while (policy->decided < begun + 3) std::this_thread::yield();
        const uint64_t evictions = model.model->memory_log().count(MemoryAction::evict_weights).events;
        EXPECT_EQ(evictions == 0, runs);
        placed = nullptr;
        const int last = policy->decided;
        while (policy->decided < last + 2) std::this_thread::yield();  // nobody uses it any more
    }
}

TEST_P(EvictedWeights, APassThatCannotCompileAgainLeavesTheNextOneToTry) {
    StagedModel placed("private,blk.1=cpu");
    const auto sequence = placed.model->create_sequence();
    const std::vector<int32_t> prompt = tokens(4, 1);
    const std::vector<float> wanted = placed.forward({{sequence.get(), prompt}});
    ASSERT_TRUE(placed.model->truncate(*sequence, 0));
    ASSERT_GT(placed.model->evict_weights(GetParam()), 0u);
    placed.host->refuse_compile = true;
    EXPECT_THROW(placed.forward({{sequence.get(), prompt}}), OutOfMemory);
    EXPECT_EQ(sequence->length(), 0u);
    EXPECT_EQ(placed.model->evict_weights(), 0u) << "what came back is not held";
    EXPECT_THROW(placed.forward({{sequence.get(), prompt}}), OutOfMemory);
    placed.host->refuse_compile = false;
    EXPECT_EQ(placed.forward({{sequence.get(), prompt}}), wanted);
}

}  // namespace
}  // namespace metallic::testing
