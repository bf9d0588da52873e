#include <gtest/gtest.h>

#include <chrono>

#include "backend/cpu/isa/select.h"
#include "core/error.h"
#include "isa_variable.h"
#include "small_model.h"

namespace metallic::testing {
namespace {

Session::Options cpu_options() {
    Session::Options options;
    options.device = "cpu";
    return options;
}

// ---- devices, heaps and copies ----------------------------------------------------------------------------------

TEST(CpuBackend, DescribesTheDevice) {
    const std::vector<DeviceInfo> devices = list_devices();
    ASSERT_FALSE(devices.empty());
    EXPECT_EQ(devices.back().backend, "cpu");
    EXPECT_FALSE(devices.back().name.empty());
    EXPECT_GE(devices.back().threads, 1u);
    EXPECT_GT(devices.back().memory_bytes, uint64_t{1} << 20);
    EXPECT_EQ(create_backend({"cpu", 3})->device().threads, 3u);
    EXPECT_GE(create_backend({"auto", 0})->device().threads, 1u);
}

TEST(CpuBackend, RefusesUnknownDevicesAndTooManyThreads) {
    EXPECT_THROW(create_backend({"tpu", 1}), RequestError);
    EXPECT_THROW(create_backend({"", 1}), RequestError);
    EXPECT_THROW(create_backend({"cpu", 5000}), RequestError);
}

TEST(CpuBackend, TheInstructionSetCanBeForced) {
    for (const cpu::Isa& isa : cpu::supported_isas()) {
        const IsaVariable forced(isa.name);
        EXPECT_EQ(create_backend({"cpu", 1})->device().detail, isa.name);
    }
    const IsaVariable wrong("sse9");
    try {
        create_backend({"cpu", 1});
        FAIL() << "an unknown instruction set was taken";
    } catch (const RequestError& error) {
        EXPECT_NE(std::string(error.what()).find("portable"), std::string::npos);
    }
}

TEST(CpuBackend, InstructionSetsAgreeBitwise) {
    TestModel model;
    LinearStep step{};
    step.in = model.input(256);
    step.norm = {kNone, 1e-5f, true};
    step.part_count = 2, step.gated = true;
    for (uint32_t i = 0; i < 2; ++i) step.parts[i].weight = model.whole(model.weight(DType::Q4_K, 256, 50));
    step.gated_out = model.value(50);
    model.step(step);
    model.finish(step.gated_out);
    std::vector<float> first;
    for (const cpu::Isa& isa : cpu::supported_isas()) {
        const IsaVariable forced(isa.name);
        const std::vector<float> got = Session(model, cpu_options()).forward(one_run(20).runs, one_run(20).outputs);
        if (first.empty()) first = got;
        EXPECT_TRUE(same_bits(got, first)) << isa.name;
    }
}

TEST(CpuBackend, HeapsAreZeroedAlignedAndCounted) {
    const auto backend = create_backend({"cpu", 1});
    for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{100000}, uint64_t{9} << 20}) {
        const auto heap = backend->create_heap(bytes, Storage::shared, "test");
        EXPECT_EQ(heap->bytes(), bytes);
        EXPECT_EQ(heap->address() % 64, 0u);
        EXPECT_EQ(reinterpret_cast<uint64_t>(heap->host()), heap->address());
        EXPECT_TRUE(std::all_of(heap->host(), heap->host() + bytes, [](std::byte b) { return b == std::byte{0}; }));
        if (bytes) heap->host()[bytes - 1] = std::byte{1};
    }
    EXPECT_EQ(backend->create_heap(64, Storage::exclusive, "test")->host(), nullptr);
    EXPECT_THROW(backend->create_heap(64, Storage::mapped, "test"), Error);
}

TEST(CpuBackend, HeapsThatWereGivenBackCountNoMore) {
    const auto backend = create_backend({"cpu", 1});
    const uint64_t most = backend->device().memory_bytes / 3 * 2;
    for (int i = 0; i < 3; ++i) EXPECT_NO_THROW(backend->create_heap(most, Storage::shared, "again"));
}

TEST(CpuBackend, AWrappedHeapKeepsItsOwner) {
    const auto backend = create_backend({"cpu", 1});
    auto owner = std::make_shared<std::vector<std::byte>>(64);
    auto heap = backend->wrap_host(*owner, owner, "weights", HostMemory::any);
    const std::weak_ptr<std::vector<std::byte>> watched = owner;
    owner.reset();
    EXPECT_FALSE(watched.expired());
    heap.reset();
    EXPECT_TRUE(watched.expired());
}

// ---- submissions ------------------------------------------------------------------------------------------------

// Work for about a second on plain kernels.
TestModel slow_model() {
    TestModel model;
    ValueId x = model.input(1024, 0.1f);
    const WeightRows weight = model.whole(model.weight(DType::F32, 1024, 1024, 1, 0.05f));
    for (int i = 0; i < 200; ++i) {
        LinearStep step{};
        step.in = x;
        step.norm = {kNone, 1e-5f, true};
        step.parts[0] = {weight, kNone, model.value(1024)};
        model.step(step);
        x = step.parts[0].out;
    }
    model.finish(x);
    return model;
}

TEST(CpuBackend, AnInterruptedSubmissionThrowsAndTheNextOneWorks) {
    const TestModel model = slow_model();
    const BatchSpec large = one_run(64), small = one_run(1);
    for (const uint32_t threads : {1u, 2u, 3u}) {
        Session::Options options = cpu_options();
        options.threads = threads;
        Session session(model, options);
        int asked = 0;
        EXPECT_THROW(session.forward(large.runs, large.outputs, [&] { return ++asked == 2; }), Interrupted);
        EXPECT_EQ(asked, 2);
        struct Stop {};
        EXPECT_THROW(session.forward(large.runs, large.outputs, []() -> bool { throw Stop{}; }), Stop);
        Session fresh(model, options);
        EXPECT_TRUE(same_bits(session.forward(small.runs, small.outputs, [] { return false; }),
                              fresh.forward(small.runs, small.outputs)));
    }
}

TEST(CpuBackend, RecordsOneEventPerStepWithRowsAndScope) {
    TestModel model = small_model();
    for (size_t i = 0; i < model.program.steps.size(); ++i) {
        model.program.steps[i].scope = model.program.scopes.child(0, "step." + std::to_string(i));
    }
    Session session(model, cpu_options());
    session.forward(one_run(5).runs, {0, 4});
    EXPECT_EQ(session.events.recorded(), 0u);
    session.events.set_enabled(true);
    session.forward(one_run(5).runs, {0, 4});
    const std::vector<Event> events = session.events.snapshot();
    ASSERT_EQ(events.size(), model.program.steps.size());
    for (size_t i = 0; i < events.size(); ++i) {
        EXPECT_EQ(events[i].kind, EventKind::step);
        EXPECT_EQ(events[i].scope, model.program.steps[i].scope);
        EXPECT_EQ(events[i].amount, i + 1 == events.size() ? 2u : 5u);
        EXPECT_GE(events[i].start_ns, i ? events[i - 1].start_ns + events[i - 1].duration_ns : 0);
    }
}

}  // namespace
}  // namespace metallic::testing
