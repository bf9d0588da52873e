#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "core/error.h"
#include "placed_model.h"
#include "runtime/model.h"

// A model that several threads use at once, with too little memory, on a device that refuses now and then.
namespace metallic::testing {
namespace {

constexpr uint32_t kBatch = 24, kThreads = 5, kPrompts = 12;

// Refuses heaps and submissions, one in so many; 0: none.
class RefusingBackend final : public CountingBackend {
  public:
    RefusingBackend() : CountingBackend(true) {}

    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label,
                                      Contents contents) override {
        if (refuses(heaps_)) throw OutOfMemory("no heap", bytes, 0, std::string(label));
        return CountingBackend::create_heap(bytes, storage, label, contents);
    }
    Ticket submit(Plan& plan, const Batch& batch) override {
        if (refuses(submissions_)) throw OutOfMemory("no memory for a submission", 1, 0, "submission");
        return CountingBackend::submit(plan, batch);
    }

    std::atomic<uint32_t> one_in{0};

  private:
    bool refuses(std::atomic<uint32_t>& count) {
        const uint32_t every = one_in;
        return every && ++count % every == 0;
    }
    std::atomic<uint32_t> heaps_{0}, submissions_{0};
};

class ModelStress : public ::testing::TestWithParam<Eviction> {
  protected:
    std::shared_ptr<Model> make(uint64_t budget, const std::shared_ptr<Backend>& on) {
        ModelOptions options;
        options.context_length = 1024;
        options.batch_tokens = kBatch;
        options.precision = Precision::float32;
        options.memory_budget = budget;
        options.eviction = GetParam();
        return Model::load(source.file, on, source.program, options);
    }
    ModelStress() {
        std::mt19937 random(5);
        const auto free = make(0, device);
        for (uint32_t i = 0; i < kPrompts; ++i) {
            prompts[i].resize(1 + random() % 150);
            for (int32_t& token : prompts[i]) token = static_cast<int32_t>(random() % PlacedModel::kVocabulary);
            expected[i].resize(prompts[i].size() * PlacedModel::kVocabulary);
            const auto sequence = free->create_sequence();
            RunRequest run{sequence.get(), prompts[i]};
            run.all_logits = true;
            free->forward({&run, 1}, expected[i].data(), {});
        }
        const PoolStatistics use = free->memory();
        others = use.current() - use.mapped_bytes + (uint64_t{64} << 10);
        page_bytes = 0;
        for (const Model::GroupUse& group : free->kv_use().groups) page_bytes += group.page_bytes;
        model = make(others + 12 * page_bytes, device);
    }

    // The next tokens of one or two prompts, each in its sequence; their last logits are those of a model at rest.
    void step(std::mt19937& random, std::span<const std::shared_ptr<Sequence>> sequences,
              std::span<const uint32_t> which) {
        std::vector<RunRequest> runs;
        std::vector<size_t> ends;
        for (size_t i = 0; i < which.size(); ++i) {
            const auto& prompt = prompts[which[i]];
            const size_t first = model->use(*sequences[i]).length;
            if (first == prompt.size()) continue;
            const size_t count = 1 + random() % (prompt.size() - first);
            runs.push_back({sequences[i].get(), std::span(prompt).subspan(first, count)});
            ends.push_back(which[i] * size_t{1000} + first + count - 1);
        }
        if (runs.empty()) return;
        constexpr size_t kWidth = PlacedModel::kVocabulary;
        std::vector<float> logits(runs.size() * kWidth);
        model->forward(runs, logits.data(), {});
        for (size_t i = 0; i < runs.size(); ++i) {
            const float* const wanted = expected[ends[i] / 1000].data() + ends[i] % 1000 * kWidth;
            ASSERT_EQ(std::memcmp(logits.data() + i * kWidth, wanted, kWidth * sizeof(float)), 0);
            ++compared;
        }
    }

    void converse(std::mt19937& random) {
        const std::array<uint32_t, 2> which{static_cast<uint32_t>(random() % kPrompts),
                                            static_cast<uint32_t>(random() % kPrompts)};
        std::array<std::shared_ptr<Sequence>, 2> sequences{model->create_sequence(), model->create_sequence()};
        const bool claims = random() % 2;
        if (claims) model->enter(*sequences[0], prompts[which[0]].size(), {});
        for (int turn = 0; turn < 4; ++turn) {
            try {
                step(random, sequences, which);
                if (random() % 3 == 0) model->evict(*sequences[random() % 2]);
                if (random() % 3 == 0) model->truncate(*sequences[0], model->use(*sequences[0]).length / 2);
                if (random() % 3 == 0) {
                    const auto copy = model->fork(*sequences[1]);
                    step(random, {&copy, 1}, {&which[1], 1});
                }
            } catch (const OutOfMemory&) {
                ++refused;
            }
        }
        if (claims) model->leave(*sequences[0]);
    }

    void disturb(std::mt19937& random) {
        switch (random() % 4) {
            case 0:
                model->set_memory_budget(others + (8 + random() % 12) * page_bytes);
                break;
            case 1:
                model->compact();
                break;
            case 2:
                device->one_in = random() % 2 ? 0 : 7 + random() % 20;
                break;
            default:
                EXPECT_LE(model->kv_use().saved_bytes, uint64_t{1} << 30);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }

    PlacedModel source;
    std::shared_ptr<RefusingBackend> device = std::make_shared<RefusingBackend>();
    std::array<std::vector<int32_t>, kPrompts> prompts;
    std::array<std::vector<float>, kPrompts> expected;  // [tokens, vocabulary]
    uint64_t others = 0, page_bytes = 0;
    std::shared_ptr<Model> model;
    std::atomic<int> compared{0}, refused{0};
};

INSTANTIATE_TEST_SUITE_P(Evictions, ModelStress, ::testing::Values(Eviction::save, Eviction::recompute));

TEST_P(ModelStress, EveryThreadComputesWhatItWouldAlone) {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (uint32_t thread = 0; thread < kThreads; ++thread) {
        threads.emplace_back([&, thread] {
            std::mt19937 random(thread);
            for (int i = 0; i < 25 && !HasFailure(); ++i) converse(random);
        });
    }
    std::thread disturber([&] {
        std::mt19937 random(99);
        while (!stop) disturb(random);
    });
    for (std::thread& thread : threads) thread.join();
    stop = true;
    disturber.join();
    EXPECT_GT(compared, 100);
    const Model::KvUse use = model->kv_use();
    for (const Model::GroupUse& group : use.groups) EXPECT_EQ(group.pages_held, 0u);
    EXPECT_EQ(use.saved_bytes, 0u);
    EXPECT_EQ(model->memory().tags[static_cast<int>(Tag::kv)].current, 0u);
}

// A batch that the device has no memory for is tried again with fewer sequences, and with what idle ones had.
TEST_P(ModelStress, ARefusedBatchIsTriedAgain) {
    std::mt19937 random(1);
    model->set_memory_budget(0);
    std::vector<std::shared_ptr<Sequence>> sequences;
    for (int i = 0; i < 2; ++i) sequences.push_back(model->create_sequence());
    const std::array<uint32_t, 2> which{0, 1};
    device->one_in = 2;
    for (int i = 0; i < 20; ++i) {
        try {
            step(random, sequences, which);
        } catch (const OutOfMemory&) {
        }
    }
    device->one_in = 1;
    const auto another = model->create_sequence();
    EXPECT_THROW(step(random, {&another, 1}, {&which[0], 1}), OutOfMemory);
    device->one_in = 0;
    for (const auto& sequence : sequences) model->truncate(*sequence, 0);
    step(random, sequences, which);
    EXPECT_GT(compared, 0);
}

}  // namespace
}  // namespace metallic::testing
