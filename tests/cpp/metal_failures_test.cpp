#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <ostream>

#include "core/error.h"
#include "metal_checks.h"
#include "placed_model.h"
#include "runtime/model.h"

// One failure at a time, at every call of a device that can fail, through the life of a model: what was asked for then
// can be asked for again, gives what it gives without the failure, and in the end the device has everything back.
#if __has_include("metalsim/control.h")

namespace metallic::testing {
namespace {

using metalsim::Fault;
using metalsim::FaultKind;

constexpr int64_t kInternal = 1, kOutOfMemory = 8;  // MTLCommandBufferError

std::vector<int32_t> tokens(uint32_t count, int32_t first) {
    std::vector<int32_t> result(count);
    for (uint32_t i = 0; i < count; ++i) result[i] = static_cast<int32_t>((first + i * 7) % PlacedModel::kVocabulary);
    return result;
}

struct Device {
    const char* name;
    const char* rules;
    bool residency_sets = true;
    bool unified_memory = true;
};

std::ostream& operator<<(std::ostream& out, const Device& device) {
    return out << device.name;
}

class MetalFailures : public ::testing::TestWithParam<Device> {
  protected:
    void SetUp() override { restore_device(); }
    void TearDown() override {
        metalsim::clear_faults();
        metalsim::set_device({});
        for (const metalsim::Report& report : metalsim::take_reports()) ADD_FAILURE() << report.text();
    }
    static void restore_device() {
        metalsim::clear_faults();
        metalsim::DeviceModel device;
        device.residency_sets = GetParam().residency_sets;
        device.macos_major = GetParam().residency_sets ? 15 : 13;
        device.unified_memory = GetParam().unified_memory;
        metalsim::set_device(device);
    }

    // Does something that may fail once, and then once more.
    void attempt(const char* what, const std::function<void()>& action) {
        for (int again = 0;; ++again) {
            try {
                return action();
            } catch (const Error& error) {
                ++failures;
                if (lost) return;
                if (again < most_failures) continue;
                ADD_FAILURE() << what << " again: " << error.what();
                return;
            }
        }
    }

    void forward(Model& model, Sequence& sequence, const std::vector<int32_t>& all) {
        std::vector<float> logits(PlacedModel::kVocabulary);
        attempt("forward", [&] {
            // What was in the sequence before a failure stays there.
            const std::vector<int32_t> rest(all.begin() + sequence.length(), all.end());
            if (rest.empty()) return;
            RunRequest run;
            run.sequence = &sequence;
            run.tokens = rest;
            model.forward({&run, 1}, logits.data(), {});
        });
        story.insert(story.end(), logits.begin(), logits.end());
    }

    // A model's life.
    void live() {
        story.clear();
        failures = 0;
        std::shared_ptr<Backend> backend;
        std::shared_ptr<Model> model;
        attempt("load", [&] {
            model.reset();
            backend = create_backend({"metal", 0});
            ModelOptions options;
            options.context_length = 4096;
            options.batch_tokens = 48;
            options.precision = Precision::float32;
            options.placement = PlacementRules::parse(GetParam().rules);
            options.host = [] { return std::shared_ptr<Backend>(create_host_backend(1)); };
            model = Model::load(source.file, backend, source.program, options);
        });
        if (!model) return;
        const auto first = model->create_sequence(), second = model->create_sequence();
        forward(*model, *first, tokens(110, 1));
        forward(*model, *second, tokens(20, 3));
        model->evict_weights();
        forward(*model, *first, tokens(111, 1));
        attempt("evict", [&] { model->evict(*first); });
        forward(*model, *first, tokens(112, 1));
        std::shared_ptr<Sequence> forked;
        attempt("fork", [&] { forked = model->fork(*second); });
        if (!forked) return;
        forward(*model, *forked, tokens(21, 3));
        attempt("compact", [&] { model->compact(); });
        forward(*model, *second, tokens(70, 3));
    }

    struct Held {
        uint64_t bytes, buffers, heaps;
        bool operator==(const Held&) const = default;
    };
    static Held held() {
        const metalsim::Statistics now = metalsim::statistics();
        return {now.bytes_allocated, now.buffers_alive, now.heaps_alive};
    }

    // One life for each of the calls that fail, `nth` and every `step`th after it, up to `last`; or for every call that
    // there is where METALLIC_EVERY_FAILURE is set, which takes minutes.
    void sweep(Fault fault, uint64_t step, uint64_t last) {
        const bool every = std::getenv("METALLIC_EVERY_FAILURE") != nullptr;
        most_failures = static_cast<int>(fault.times);
        uint64_t seen = 0, quiet = 0;
        for (fault.nth = every ? 1 : fault.nth; every ? quiet < 8 : fault.nth <= last; fault.nth += every ? 1 : step) {
            SCOPED_TRACE("fault " + std::to_string(static_cast<int>(fault.kind)) + ", code " +
                         std::to_string(fault.code) + ", call " + std::to_string(fault.nth));
            const Held before = held();
            metalsim::inject(fault);
            live();
            metalsim::clear_faults();
            EXPECT_EQ(held(), before) << "not everything was given back";
            ASSERT_EQ(story.size(), wanted.size());
            for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(story[i], wanted[i], 1e-4) << i;
            if (HasFailure()) return;
            seen += failures > 0;
            quiet = failures > 0 ? 0 : quiet + 1;
        }
        EXPECT_GT(seen, 0u) << "fault " << static_cast<int>(fault.kind) << " did no harm";
    }

    const PlacedModel source;
    std::vector<float> story, wanted;  // logits of all that was run, and without a failure
    int failures = 0, most_failures = 1;
    bool lost = false;  // what fails is not tried again
};

TEST_P(MetalFailures, GiveEverythingBack) {
    live();
    ASSERT_EQ(failures, 0);
    wanted = story;
    // Where the device refuses memory once, less of it or other memory often does.
    sweep({FaultKind::heap_allocation, 1, 3, 0, 0}, 3, 4);
    sweep({FaultKind::buffer_allocation, 2, 3, 0, 0}, 3, 5);
    sweep({FaultKind::command_buffer, 1, 1, kOutOfMemory, 0}, 15, 61);
    sweep({FaultKind::command_buffer, 8, 1, kInternal, 0}, 15, 68);
    sweep({FaultKind::library, 3, 1, 0, 0}, 3, 3);
    sweep({FaultKind::pipeline, 2, 2, 0, 0}, 2, 2);
}

// From then on nothing works, and all the same everything is given back.
TEST_P(MetalFailures, ALostDeviceGetsEverythingBack) {
    live();
    lost = true;
    for (const uint64_t nth : {1, 2, 5, 20}) {
        const Held before = held();
        metalsim::inject({FaultKind::device_lost, nth, 1, 0, 0});
        live();
        EXPECT_GT(failures, 0);
        EXPECT_EQ(held(), before);
        restore_device();
    }
}

INSTANTIATE_TEST_SUITE_P(Devices, MetalFailures,
                         ::testing::Values(Device{"divided", "private,blk.1-2=cpu", false},
                                           Device{"discrete", "private", true, false}),
                         [](const auto& device) { return std::string(device.param.name); });

}  // namespace
}  // namespace metallic::testing

#endif
