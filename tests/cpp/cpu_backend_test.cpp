#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include "backend/cpu/isa/select.h"
#include "core/error.h"
#include "reference_check.h"

namespace metallic::testing {
namespace {

// ---- devices, heaps and copies ----------------------------------------------------------------------------------

class IsaVariable {
  public:
    explicit IsaVariable(const char* value) {
        if (const char* before = std::getenv(kName)) before_ = before, set_ = true;
        setenv(kName, value, 1);
    }
    ~IsaVariable() { set_ ? setenv(kName, before_.c_str(), 1) : unsetenv(kName); }

  private:
    static constexpr const char* kName = "METALLIC_CPU_ISA";
    std::string before_;
    bool set_ = false;
};

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
        const std::vector<float> got = Session(model, {}).forward(one_run(20).runs, one_run(20).outputs);
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

TEST(CpuBackend, TooLargeAHeapIsRefusedWithItsOwner) {
    const auto backend = create_backend({"cpu", 1});
    for (const uint64_t bytes : {~uint64_t{0}, ~uint64_t{0} - 20000, backend->device().memory_bytes + 1}) {
        try {
            backend->create_heap(bytes, Storage::shared, "the test");
            FAIL() << "a heap of " << bytes << " bytes";
        } catch (const OutOfMemory& error) {
            EXPECT_EQ(error.needed, bytes);
            EXPECT_LE(error.available, backend->device().memory_bytes);
            EXPECT_EQ(error.owner, "the test");
        }
    }
    // What was given back counts no more.
    const uint64_t most = backend->device().memory_bytes / 3 * 2;
    for (int i = 0; i < 3; ++i) EXPECT_NO_THROW(backend->create_heap(most, Storage::shared, "again"));
}

TEST(CpuBackend, CopiesBetweenHeaps) {
    const auto backend = create_backend({"cpu", 1});
    const std::vector<std::byte> bytes(100, std::byte{7});
    const auto source = backend->wrap_host(bytes, nullptr, "source");
    const auto target = backend->create_heap(200, Storage::shared, "target");
    EXPECT_EQ(source->storage(), Storage::mapped);
    backend->copy({source.get(), 10, 20}, {target.get(), 50, 20});
    for (uint64_t i = 0; i < 200; ++i)
        EXPECT_EQ(target->host()[i], std::byte{i >= 50 && i < 70 ? uint8_t{7} : uint8_t{0}});
    EXPECT_THROW(backend->copy({source.get(), 90, 20}, {target.get(), 0, 20}), Error);
    EXPECT_THROW(backend->copy({source.get(), 0, 20}, {target.get(), 190, 20}), Error);
    EXPECT_THROW(backend->copy({source.get(), 0, 20}, {target.get(), ~uint64_t{0}, 20}), Error);
    EXPECT_THROW(backend->copy({source.get(), 0, 20}, {target.get(), 0, 10}), Error);
    EXPECT_THROW(backend->copy({target.get(), 0, 20}, {source.get(), 0, 20}), Error);
    EXPECT_THROW(backend->copy({nullptr, 0, 0}, {target.get(), 0, 0}), Error);
}

TEST(CpuBackend, AWrappedHeapKeepsItsOwner) {
    const auto backend = create_backend({"cpu", 1});
    auto owner = std::make_shared<std::vector<std::byte>>(64);
    auto heap = backend->wrap_host(*owner, owner, "weights");
    const std::weak_ptr<std::vector<std::byte>> watched = owner;
    owner.reset();
    EXPECT_FALSE(watched.expired());
    heap.reset();
    EXPECT_TRUE(watched.expired());
}

// ---- submissions ------------------------------------------------------------------------------------------------

// One layer of attention with a window beside it: enough for every check of a batch.
TestModel small_model() {
    TestModel model;
    model.program.groups = {{0, 1, 32, 1}, {40, 1, 32, 1}};
    const ValueId q = model.input(32), k = model.input(32), v = model.input(32);
    ValueId out = q;
    for (uint32_t group = 0; group < 2; ++group) {
        KvWriteStep write{};
        write.group = group, write.k = k, write.v = v;
        model.step(write);
        AttentionStep attention{};
        attention.group = group, attention.heads = 1, attention.scale = 0.2f, attention.sinks = kNone;
        attention.q = out, attention.out = model.value(32);
        model.step(attention);
        out = attention.out;
    }
    model.finish(out);
    return model;
}

TEST(CpuBackend, RefusesBatchesThatThePlanCannotServe) {
    const TestModel model = small_model();
    Session::Options options;
    options.max_tokens = 40, options.max_outputs = 4, options.threads = 2;
    Session session(model, options);
    const std::vector<RunSpec> specs{{0, some_tokens(33, 1)}, {1, some_tokens(2, 2)}};
    const std::vector<uint32_t> outputs{0, 32, 34};
    int refused = 0;
    const auto refuses = [&](const char* what, const auto& spoil) {
        Batch batch = session.prepare(specs, outputs);
        spoil(batch);
        EXPECT_THROW(session.submit(batch), RequestError) << what;
        ++refused;
    };
    const std::vector<int32_t> many(41, 0);
    const std::vector<uint32_t> five{0, 1, 2, 3, 4}, descending{3, 2}, twice{3, 3}, outside{35};
    refuses("no tokens", [](Batch& b) { b.tokens = {}, b.runs = {}, b.tables = {}, b.output_rows = {}; });
    refuses("too many tokens", [&](Batch& b) { b.tokens = many; });
    refuses("too many outputs", [&](Batch& b) { b.output_rows = five; });
    refuses("descending outputs", [&](Batch& b) { b.output_rows = descending; });
    refuses("an output twice", [&](Batch& b) { b.output_rows = twice; });
    refuses("an output outside", [&](Batch& b) { b.output_rows = outside; });
    refuses("no logits", [&](Batch& b) { b.logits = nullptr; });
    refuses("a negative token", [&](Batch&) { session.tokens[3] = -1; });
    refuses("a token too large", [&](Batch&) { session.tokens[34] = TestModel::kVocabulary; });
    refuses("an uncovered token", [&](Batch&) { session.runs[1].length = 1; });
    refuses("a gap between runs", [&](Batch&) { session.runs[0].length = 32; });
    refuses("overlapping runs", [&](Batch&) { session.runs[1].first_row = 32; });
    refuses("a run too long", [&](Batch&) { session.runs[1].length = ~0u; });
    refuses("an empty run", [&](Batch&) { session.runs[0].length = 0; });
    refuses("an overflowing position", [&](Batch&) { session.runs[1].position = ~0u; });
    refuses("a missing table", [&](Batch& b) { b.tables = b.tables.subspan(1); });
    refuses("a table too short", [&](Batch&) { session.tables[0].count = 1; });
    refuses("a table that starts late", [&](Batch&) { session.tables[0].first_page = 1; });
    refuses("a missing page", [&](Batch&) { const_cast<uint64_t*>(session.tables[3].pages)[0] = 0; });
    EXPECT_EQ(refused, 19);
    // The plan still serves: the reference has seen nothing of all this.
    Session fresh(model, options);
    const BatchSpec good{{{5, some_tokens(33, 1)}}, {32}};
    EXPECT_TRUE(same_bits(session.forward(good.runs, good.outputs), fresh.forward(good.runs, good.outputs)));
}

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
        Session::Options options;
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

TEST(CpuBackend, SubmissionsFromSeveralThreadsTakeTurns) {
    const TestModel model = small_model();
    Session::Options options;
    options.threads = 2;
    Session session(model, options);
    const BatchSpec spec = one_run(30);
    const std::vector<float> wanted = Session(model, options).forward(spec.runs, spec.outputs);
    const Batch batch = session.prepare(spec.runs, spec.outputs);
    std::vector<std::vector<float>> logits(3, std::vector<float>(wanted.size()));
    std::vector<std::thread> callers;
    for (auto& own : logits) {
        callers.emplace_back([&] {
            Batch mine = batch;
            mine.logits = own.data();
            for (int i = 0; i < 20; ++i) session.submit(mine);
        });
    }
    for (std::thread& caller : callers) caller.join();
    for (const auto& own : logits) EXPECT_TRUE(same_bits(own, wanted));
}

TEST(CpuBackend, TicketsOfOthersAreRefused) {
    const auto backend = create_backend({"cpu", 1});
    EXPECT_THROW(backend->wait(0), Error);
    EXPECT_THROW(backend->wait(1), Error);
    const TestModel model = small_model();
    Session session(model, {});
    session.forward(one_run(2).runs, {0});
    EXPECT_NO_THROW(session.backend->wait(1));
    EXPECT_THROW(session.backend->wait(2), Error);
}

TEST(CpuBackend, RecordsOneEventPerStepWithRowsAndScope) {
    TestModel model = small_model();
    for (size_t i = 0; i < model.program.steps.size(); ++i) {
        model.program.steps[i].scope = model.program.scopes.child(0, "step." + std::to_string(i));
    }
    Session session(model, {});
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

// ---- compilation ------------------------------------------------------------------------------------------------

template <typename Step>
Step& step_of(TestModel& model) {
    for (metallic::Step& step : model.program.steps) {
        if (auto* found = std::get_if<Step>(&step.op)) return *found;
    }
    throw std::logic_error("no such step");
}

TEST(CpuBackend, RefusesProgramsThatDoNotFitTheirInputs) {
    int refused = 0;
    const auto refuses = [&](const char* what, const auto& spoil) {
        TestModel model = small_model();
        LinearStep linear{};
        linear.in = std::get<SelectStep>(model.program.steps.back().op).in;
        model.program.steps.pop_back();
        linear.parts[0] = {model.whole(model.weight(DType::F32, 32, 32)), model.weight(DType::F32, 32),
                           model.value(32)};
        model.step(linear);
        model.finish(linear.parts[0].out);
        spoil(model);
        EXPECT_THROW(Session(model, {}), Error) << what;
        ++refused;
    };
    refuses("a short buffer", [](TestModel& m) { m.bytes[0].resize(m.bytes[0].size() - 4); });
    refuses("an overflowing weight", [](TestModel& m) { m.program.weights[0].rows = uint64_t{1} << 62; });
    refuses("no whole blocks", [](TestModel& m) { m.program.weights[0].dtype = DType::Q4_K; });
    refuses("no such weight", [](TestModel& m) { step_of<EmbeddingStep>(m).weight = 99; });
    refuses("no such value", [](TestModel& m) { step_of<AttentionStep>(m).q = 1000; });
    refuses("a wrong width", [](TestModel& m) { m.program.values[step_of<LinearStep>(m).parts[0].out].width = 31; });
    refuses("rows outside", [](TestModel& m) { step_of<LinearStep>(m).parts[0].weight.first = 1; });
    refuses("a bias too short",
            [](TestModel& m) { m.program.weights[step_of<LinearStep>(m).parts[0].bias].cols = 31; });
    refuses("a quantised bias",
            [](TestModel& m) { m.program.weights[step_of<LinearStep>(m).parts[0].bias].dtype = DType::Q8_0; });
    refuses("too many parts", [](TestModel& m) { step_of<LinearStep>(m).part_count = 5; });
    refuses("a part without output", [](TestModel& m) { step_of<LinearStep>(m).parts[0].out = kNone; });
    refuses("gated, one part", [](TestModel& m) { step_of<LinearStep>(m).gated = true; });
    refuses("no such cache group", [](TestModel& m) { step_of<AttentionStep>(m).group = 2; });
    refuses("no such layer", [](TestModel& m) { step_of<KvWriteStep>(m).layer = 1; });
    refuses("a wrong head count", [](TestModel& m) { step_of<AttentionStep>(m).heads = 3; });
    refuses("no such rotary table", [](TestModel& m) { step_of<KvWriteStep>(m).rope = 0; });
    refuses("queries without output", [](TestModel& m) { step_of<KvWriteStep>(m).q = 0; });
    refuses("logits of tokens", [](TestModel& m) { m.program.logits = 0; });
    refuses("no logits", [](TestModel& m) { m.program.logits = kNone; });
    EXPECT_EQ(refused, 19);
}

TEST(CpuBackend, RefusesAnOutputUponAnInput) {
    TestModel model;
    LinearStep linear{};
    linear.in = model.input(32);
    linear.parts[0] = {model.whole(model.weight(DType::F32, 32, 32)), kNone, model.value(32)};
    model.step(linear);
    model.finish(linear.parts[0].out);
    Session session(model, {});
    std::vector<BufferView> weights;
    std::vector<std::shared_ptr<Heap>> heaps;
    for (const auto& bytes : model.bytes) {
        heaps.push_back(session.backend->wrap_host(bytes, nullptr, "weight"));
        weights.push_back({heaps.back().get(), 0, bytes.size()});
    }
    heaps.push_back(session.backend->create_heap(4096, Storage::shared, "arena"));
    CompileInputs inputs;
    inputs.program = &model.program;
    inputs.weights = weights;
    inputs.arena = {heaps.back().get(), 0, 4096};
    inputs.max_tokens = inputs.max_outputs = 2;
    inputs.arena_layout = {{0, 256, 0}, 4096};
    EXPECT_NO_THROW(session.backend->compile(inputs));
    inputs.arena_layout.offsets[1] = 252;
    EXPECT_THROW(session.backend->compile(inputs), Error);
    inputs.arena_layout.offsets[1] = 4096 - 252;
    EXPECT_THROW(session.backend->compile(inputs), Error) << "beyond the arena";
    inputs.arena_layout.offsets.pop_back();
    EXPECT_THROW(session.backend->compile(inputs), Error) << "a layout of other values";
}

TEST(CpuBackend, RefusesACacheTypeWithoutKernels) {
    Session::Options options;
    options.kv = DType::Q4_0;
    EXPECT_THROW(Session(small_model(), options), UnsupportedModelError);
}

}  // namespace
}  // namespace metallic::testing
