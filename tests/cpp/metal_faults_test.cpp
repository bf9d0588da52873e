#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "memory/pool.h"
#include "metal_checks.h"
#include "placed_model.h"
#include "runtime/model.h"
#include "small_model.h"

// What goes wrong on a device, on a simulated one: after each fault the backend serves the next request.
#if __has_include("metalsim/control.h")

namespace metallic::testing {
namespace {

namespace fs = std::filesystem;
using metalsim::Fault;
using metalsim::FaultKind;

// The last path that was unused; removed with all that is in it.
class Folder {
  public:
    Folder() {
        std::string name = fs::temp_directory_path() / "metallic.XXXXXX";
        path = mkdtemp(name.data());
    }
    ~Folder() { fs::remove_all(path); }
    std::vector<fs::path> files() const {
        std::vector<fs::path> found;
        for (const auto& entry : fs::directory_iterator(path)) found.push_back(entry.path());
        return found;
    }
    fs::path path;
};

class MetalFaults : public ::testing::Test {
  protected:
    void SetUp() override {
        metalsim::clear_faults();
        metalsim::set_device({});
        setenv("METALLIC_CACHE", cache.path.c_str(), 1);
        options.device = "metal";
    }
    void TearDown() override {
        metalsim::clear_faults();
        metalsim::set_device({});
        unsetenv("METALLIC_CACHE");
        for (const metalsim::Report& report : metalsim::take_reports()) ADD_FAILURE() << report.text();
    }

    const Folder cache;
    const TestModel model = small_model();
    Session::Options options;
    const BatchSpec spec = one_run(12);
};

// ---- memory -------------------------------------------------------------------------------------------------------

TEST_F(MetalFaults, ARefusedHeapIsOutOfMemory) {
    const auto backend = create_backend({"metal", 0});
    std::vector<std::shared_ptr<Heap>> held;  // none waits for its work to go
    for (const FaultKind kind : {FaultKind::heap_allocation, FaultKind::buffer_allocation}) {
        for (const Storage storage : {Storage::shared, Storage::exclusive}) {
            metalsim::inject({kind});
            try {
                backend->create_heap(5000, storage, "kv/group.0");
                ADD_FAILURE() << "a heap without memory";
            } catch (const OutOfMemory& error) {
                EXPECT_EQ(error.needed, 5000u);
                EXPECT_EQ(error.owner, "kv/group.0");
                EXPECT_LE(error.available, backend->device().memory_bytes);
            }
            EXPECT_NO_THROW(held.push_back(backend->create_heap(5000, storage, "kv/group.0")));
        }
    }
}

TEST_F(MetalFaults, HeapsStayWithinTheWorkingSet) {
    metalsim::DeviceModel device;
    device.memory_bytes = uint64_t{10} << 20;
    device.max_buffer_bytes = uint64_t{8} << 20;
    metalsim::set_device(device);
    const auto backend = create_backend({"metal", 0});
    EXPECT_THROW(backend->create_heap(uint64_t{9} << 20, Storage::shared, "too long"), OutOfMemory);
    for (int i = 0; i < 5; ++i) {
        const auto half = backend->create_heap(uint64_t{6} << 20, Storage::shared, "half");
        EXPECT_THROW(backend->create_heap(uint64_t{6} << 20, Storage::shared, "other half"), OutOfMemory);
    }
}

// The device waits 120 ms before it says that work has ended.
TEST_F(MetalFaults, AHeapWaitsForTheWorkThatMayUseAnother) {
    metalsim::DeviceModel device;
    device.memory_bytes = uint64_t{10} << 20;
    metalsim::set_device(device);
    const auto backend = create_backend({"metal", 0});
    const uint64_t bytes = uint64_t{6} << 20;
    const Fault slow{FaultKind::slow_completion, 1, 1, 0, 120};
    for (const Storage storage : {Storage::shared, Storage::exclusive}) {
        metalsim::inject(slow);
        backend->create_heap(bytes, Storage::exclusive, "filled with zeros when it goes");
        EXPECT_NO_THROW(backend->create_heap(bytes, storage, "next"));
    }
}

TEST_F(MetalFaults, AHeapThatADriverRefusesWaitsForTheWorkThatMayUseAnother) {
    const auto backend = create_backend({"metal", 0});
    const uint64_t before = metalsim::statistics().bytes_allocated;
    metalsim::inject({FaultKind::slow_completion, 1, 1, 0, 120});
    backend->create_heap(uint64_t{6} << 20, Storage::exclusive, "filled with zeros when it goes");
    metalsim::inject({FaultKind::heap_allocation});
    const auto next = backend->create_heap(5000, Storage::shared, "next");
    EXPECT_LT(metalsim::statistics().bytes_allocated, before + (uint64_t{1} << 20));
}

TEST_F(MetalFaults, MemoryThatGoesWhileWorkRunsIsGoneOnceThatWasWaitedFor) {
    Session session(model, options);
    session.forward(spec.runs, spec.outputs);
    const uint64_t before = metalsim::statistics().bytes_allocated;
    auto heap = session.backend->create_heap(uint64_t{6} << 20, Storage::shared, "goes");
    metalsim::inject({FaultKind::slow_completion, 1, 1, 0, 120});
    Batch batch = session.prepare({{1, spec.runs[0].tokens}}, spec.outputs);
    batch.interrupted = [&] {
        heap.reset();
        return false;
    };
    session.submit(batch);
    EXPECT_FALSE(heap);
    EXPECT_LE(metalsim::statistics().bytes_allocated, before);
}

// All copies or some of a model are gone, and what goes wrong does so on the way back.
TEST_F(MetalFaults, WeightsComeBackWhateverFailsOnTheWay) {
    const PlacedModel source;
    ModelOptions placed;
    placed.context_length = 256;
    placed.batch_tokens = 16;
    placed.precision = Precision::float32;
    placed.placement = PlacementRules::parse("private");
    const auto loaded = Model::load(source.file, create_backend({"metal", 0}), source.program, placed);
    const auto sequence = loaded->create_sequence();
    const std::vector<int32_t> prompt{1, 2, 3, 4, 5};
    const RunRequest request{sequence.get(), prompt};
    const auto forward = [&] {
        EXPECT_TRUE(loaded->truncate(*sequence, 0));
        std::vector<float> logits(PlacedModel::kVocabulary);
        loaded->forward({&request, 1}, logits.data(), {});
        return logits;
    };
    const std::vector<float> wanted = forward();
    const uint64_t held = loaded->memory().tags[static_cast<int>(Tag::weights)].current;
    const auto bytes = [&](MemoryAction action) { return loaded->memory_log().count(action).bytes; };
    for (const Fault fault : {Fault{FaultKind::heap_allocation}, Fault{FaultKind::buffer_allocation},
                              Fault{FaultKind::command_buffer, 1, 1, 8}, Fault{FaultKind::command_buffer, 1, 1, 1}}) {
        int failed = 0;
        for (uint64_t nth = 1; nth <= 8; ++nth) {
            for (const std::optional<uint64_t> need : {std::optional<uint64_t>(), std::optional<uint64_t>(1)}) {
                ASSERT_GT(loaded->evict_weights(need), 0u);
                Fault at = fault;
                at.nth = nth;
                metalsim::inject(at);
                try {
                    EXPECT_EQ(forward(), wanted);
                } catch (const Error&) {
                    ++failed;
                }
                metalsim::clear_faults();
                EXPECT_EQ(forward(), wanted) << "fault " << static_cast<int>(fault.kind) << " at " << nth;
                EXPECT_EQ(loaded->memory().tags[static_cast<int>(Tag::weights)].current, held);
                EXPECT_EQ(bytes(MemoryAction::evict_weights), bytes(MemoryAction::restore_weights));
            }
        }
        EXPECT_TRUE(failed > 3 || fault.kind != FaultKind::command_buffer) << failed;
    }
}

TEST_F(MetalFaults, AMappingLongerThanABufferIsSeenThroughSeveral) {
    metalsim::DeviceModel device;
    device.memory_bytes = uint64_t{64} << 20;
    device.max_buffer_bytes = uint64_t{1} << 20;
    metalsim::set_device(device);
    const auto backend = create_backend({"metal", 0});
    const uint64_t bytes = uint64_t{5} << 20;
    auto* const memory = static_cast<std::byte*>(std::aligned_alloc(65536, bytes));
    for (uint64_t i = 0; i < bytes; ++i) memory[i] = static_cast<std::byte>(i * 7 >> 3);
    const std::shared_ptr<const void> owner(memory, [](const void* p) { std::free(const_cast<void*>(p)); });
    const auto file = backend->wrap_host({memory, bytes}, owner, "model.gguf", HostMemory::mapping);

    // Rows of a table anywhere in the file, also across what was the end of a buffer.
    for (const uint64_t offset : {uint64_t{0}, uint64_t{0x100000 - 512}, uint64_t{0x2ffff0}, bytes - 50 * 32 * 4}) {
        TestModel table;
        table.finish(table.input(32));
        std::memcpy(memory + offset, table.bytes[0].data(), table.bytes[0].size());
        const BufferView weights[] = {{file.get(), offset, table.bytes[0].size()}};
        const auto arena = backend->create_heap(65536, Storage::shared, "arena");
        EventRing events{2};
        CompileInputs inputs;
        inputs.program = &table.program;
        inputs.weights = weights;
        inputs.arena_layout = layout_arena(table.program, 4, 4);
        inputs.arena = {arena.get(), 0, arena->bytes()};
        inputs.max_tokens = inputs.max_outputs = 4;
        inputs.events = &events;
        const auto plan = backend->compile(inputs);
        const int32_t tokens[] = {49, 0, 7};
        const metallic::Run run{0, 3, 0, false};
        const uint32_t outputs[] = {0, 1, 2};
        float logits[3 * 32] = {};
        backend->wait(backend->submit(*plan, {tokens, {&run, 1}, {}, outputs, logits, {}, nullptr, {}}));
        const std::vector<double> wanted = table.elements(0);
        for (uint32_t i = 0; i < 96; ++i) {
            EXPECT_EQ(double{logits[i]}, wanted[static_cast<size_t>(tokens[i / 32]) * 32 + i % 32]);
        }
    }
    TestModel large;
    large.finish(large.value(1));
    large.program.weights = {{"large", DType::F32, 1 << 18, 2, 1}};
    EmbeddingStep step{0, 1.0f, 0};
    large.program.values[0].width = 1 << 18;
    large.program.steps.insert(large.program.steps.begin(), Step{step, 0});
    const BufferView weights[] = {{file.get(), 0, uint64_t{2} << 20}};
    const auto arena = backend->create_heap(uint64_t{1} << 20, Storage::shared, "arena");
    CompileInputs inputs;
    inputs.program = &large.program;
    inputs.weights = weights;
    inputs.arena_layout = layout_arena(large.program, 1, 1);
    inputs.arena = {arena.get(), 0, arena->bytes()};
    inputs.max_tokens = inputs.max_outputs = 1;
    EXPECT_THROW(backend->compile(inputs), Error) << "a tensor longer than any buffer";
}

TEST_F(MetalFaults, StagingIsBoundedAndGivenBack) {
    for (const uint64_t bytes : {uint64_t{100} << 20, uint64_t{9} << 20, uint64_t{100}}) {
        const std::shared_ptr<Backend> backend = create_backend({"metal", 0});
        Pool pool(backend, 0);
        const std::vector<std::byte> data(bytes, std::byte{1});
        const auto target = backend->create_heap(bytes, Storage::exclusive, "target");
        for (int i = 0; i < 2; ++i) {
            backend->upload(data, {target.get(), 0, bytes});
            const TagUse staging = pool.statistics().tags[static_cast<size_t>(Tag::staging)];
            EXPECT_EQ(staging.current, 0u);
            EXPECT_GE(staging.peak, std::min(uint64_t{32} << 20, bytes));
            EXPECT_LE(staging.peak, std::min(uint64_t{32} << 20, bytes + (uint64_t{64} << 10)));
        }
    }
}

TEST_F(MetalFaults, StagingMakesDoWithWhatThereIs) {
    const uint64_t bytes = (uint64_t{5} << 20) + 3;
    std::vector<std::byte> data(bytes), seen(bytes);
    for (uint64_t i = 0; i < bytes; ++i) data[i] = static_cast<std::byte>(i * 31 >> 4);
    for (const uint64_t room : {uint64_t{40} << 10, uint64_t{1} << 20, uint64_t{7} << 20}) {
        metalsim::DeviceModel device;
        device.memory_bytes = bytes + 16384 + room;
        metalsim::set_device(device);
        const auto backend = create_backend({"metal", 0});
        const auto target = backend->create_heap(bytes, Storage::exclusive, "target");
        backend->upload(data, {target.get(), 0, bytes});
        backend->download({target.get(), 0, bytes}, seen);
        EXPECT_TRUE(seen == data);
        backend->copy({target.get(), 0, bytes - 5}, {target.get(), 5, bytes - 5});
        backend->download({target.get(), 5, bytes - 5}, std::span(seen).subspan(5));
        EXPECT_TRUE(std::equal(data.begin(), data.end() - 5, seen.begin() + 5));
    }
}

TEST_F(MetalFaults, AFailedTransferIsReportedAndCanBeRepeated) {
    const auto backend = create_backend({"metal", 0});
    const std::vector<std::byte> data(100000, std::byte{5});
    const auto target = backend->create_heap(data.size(), Storage::exclusive, "target");
    const auto seen = backend->create_heap(data.size(), Storage::shared, "seen");
    const BufferView view{target.get(), 0, data.size()};
    backend->upload(data, view);
    metalsim::inject({FaultKind::command_buffer, 1, 1, 1});
    EXPECT_THROW(backend->upload(data, view), DeviceError);
    backend->upload(data, view);
    metalsim::inject({FaultKind::command_buffer, 1, 1, 8});
    EXPECT_THROW(backend->copy(view, {seen.get(), 0, data.size()}), OutOfMemory);
    backend->copy(view, {seen.get(), 0, data.size()});
    EXPECT_EQ(std::memcmp(seen->host(), data.data(), data.size()), 0);
}

TEST_F(MetalFaults, AFailedZeroFillIsRepeatedOnFirstUse) {
    const auto backend = create_backend({"metal", 0});
    const auto seen = backend->create_heap(1000, Storage::shared, "seen");
    std::fill_n(seen->host(), 1000, std::byte{1});
    metalsim::inject({FaultKind::command_buffer, 1, 1, 2});
    const auto heap = backend->create_heap(1000, Storage::exclusive, "heap");
    EXPECT_THROW(backend->copy({heap.get(), 0, 1000}, {seen.get(), 0, 1000}), DeviceError);
    EXPECT_NO_THROW(backend->copy({heap.get(), 0, 1000}, {seen.get(), 0, 1000}));
    EXPECT_TRUE(std::all_of(seen->host(), seen->host() + 1000, [](std::byte b) { return b == std::byte{0}; }));
}

// ---- command buffers ----------------------------------------------------------------------------------------------

TEST_F(MetalFaults, EveryErrorOfACommandBufferIsTypedAndPasses) {
    Session session(model, options);
    const std::vector<float> wanted = session.forward(spec.runs, spec.outputs);
    const std::pair<int64_t, const char*> codes[] = {
        {1, "internal"},      {2, "timeout"},          {3, "page fault"},     {4, "access revoked"},
        {7, "not permitted"}, {9, "invalid resource"}, {12, "stack overflow"}};
    for (const auto& [code, status] : codes) {
        metalsim::inject({FaultKind::command_buffer, 1, 1, code});
        try {
            session.submit(session.prepare({{1, spec.runs[0].tokens}}, spec.outputs));
            ADD_FAILURE() << "error " << code << " was not seen";
        } catch (const DeviceError& error) {
            EXPECT_EQ(error.status, status);
        }
        EXPECT_TRUE(std::isnan(session.logits[0])) << "no results of a failed batch";
        session.submit(session.prepare({{1, spec.runs[0].tokens}}, spec.outputs));
        EXPECT_TRUE(same_bits(session.logits, wanted)) << "after error " << code;
    }
    metalsim::inject({FaultKind::command_buffer, 1, 1, 8});
    try {
        session.submit(session.prepare({{1, spec.runs[0].tokens}}, spec.outputs));
        ADD_FAILURE() << "memory was not missed";
    } catch (const OutOfMemory& error) {
        EXPECT_GT(error.needed, 0u);
    }
    session.submit(session.prepare({{1, spec.runs[0].tokens}}, spec.outputs));
    EXPECT_TRUE(same_bits(session.logits, wanted));
}

TEST_F(MetalFaults, ErrorsNameTheirScope) {
    TestModel scoped = small_model();
    const ScopeId block = scoped.program.scopes.child(scoped.program.scopes.child(0, "forward"), "block.0");
    for (Step& step : scoped.program.steps) step.scope = block;
    for (const char* const ledger : {"0", "1"}) {
        setenv("METALLIC_LEDGER", ledger, 1);
        Session session(scoped, options);
        unsetenv("METALLIC_LEDGER");
        metalsim::inject({FaultKind::command_buffer, 1, 1, 3});
        try {
            session.forward(spec.runs, spec.outputs);
            ADD_FAILURE() << "no error";
        } catch (const DeviceError& error) {
            EXPECT_EQ(error.scope.substr(0, 7), "forward") << error.what();
            EXPECT_NE(std::string(error.what()).find(error.scope), std::string::npos);
        }
    }
}

TEST_F(MetalFaults, ErrorsBelongToTheirTickets) {
    Session session(model, options);
    const Batch batch = session.prepare(spec.runs, spec.outputs);
    metalsim::inject({FaultKind::command_buffer, 2, 1, 1});
    std::vector<Ticket> tickets;
    for (int i = 0; i < 5; ++i) tickets.push_back(session.backend->submit(*session.plan, batch));
    EXPECT_NO_THROW(session.backend->wait(tickets[4]));
    EXPECT_THROW(session.backend->wait(tickets[1]), DeviceError);
    for (const int i : {0, 2, 3}) EXPECT_NO_THROW(session.backend->wait(tickets[static_cast<size_t>(i)]));
}

TEST_F(MetalFaults, ALostDeviceSaysSoFromThenOn) {
    Session session(model, options);
    metalsim::inject({FaultKind::device_lost});
    const auto lost = [](const auto& call) {
        try {
            call();
            ADD_FAILURE() << "the device is gone";
        } catch (const DeviceError& error) {
            EXPECT_EQ(error.status, "device removed");
        }
    };
    lost([&] { session.forward(spec.runs, spec.outputs); });
    lost([&] { session.forward(spec.runs, spec.outputs); });
    lost([&] { session.backend->create_heap(64, Storage::shared, "late"); });
    const std::vector<std::byte> data(64);
    const auto backend = session.backend.get();
    lost([&] { backend->upload(data, {nullptr, 0, 64}); });
    metalsim::clear_faults();
    metalsim::set_device({});
    EXPECT_NO_THROW(Session(model, options).forward(spec.runs, spec.outputs)) << "a new backend works";
}

TEST_F(MetalFaults, ASlowSubmissionCanBeInterrupted) {
    Session session(model, options);
    const std::vector<float> wanted = session.forward(spec.runs, spec.outputs);
    const Fault slow{FaultKind::slow_completion, 1, 1, 0, 120};
    int polls = 0;
    metalsim::inject(slow);
    Batch batch = session.prepare({{1, spec.runs[0].tokens}}, spec.outputs);
    batch.interrupted = [&] { return ++polls == 2; };
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THROW(session.submit(batch), Interrupted);
    EXPECT_EQ(polls, 2);
    EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100)) << "the GPU was done";

    metalsim::inject(slow);
    batch.interrupted = []() -> bool { throw RequestError("the callback's own"); };
    EXPECT_THROW(session.submit(batch), RequestError);

    metalsim::inject(slow);
    polls = 0;
    batch.interrupted = [&] { return ++polls < 0; };
    session.submit(batch);
    EXPECT_GE(polls, 2);
    EXPECT_TRUE(same_bits(session.logits, wanted));
}

// ---- libraries ----------------------------------------------------------------------------------------------------

TEST_F(MetalFaults, KernelsThatDoNotCompileAreReported) {
    for (const FaultKind kind : {FaultKind::library, FaultKind::pipeline}) {
        Session session(model, options);
        const auto again = [&] { Session fresh(model, options); };
        metalsim::inject({kind, 1, 100});
        EXPECT_THROW(again(), DeviceError);
        metalsim::clear_faults();
        EXPECT_NO_THROW(again());
    }
}

TEST_F(MetalFaults, TheArchiveSparesTheNextProcessTheWork) {
    const std::vector<float> wanted = Session(model, options).forward(spec.runs, spec.outputs);
    const std::vector<fs::path> files = cache.files();
    ASSERT_GE(files.size(), 3u) << "one a family";
    uint64_t hits = metalsim::statistics().archive_hits;
    EXPECT_TRUE(same_bits(Session(model, options).forward(spec.runs, spec.outputs), wanted));
    const uint64_t every = metalsim::statistics().archive_hits - hits;
    EXPECT_GE(every, files.size());

    // Damaged files are replaced.
    for (const fs::path& file : files) std::ofstream(file, std::ios::trunc) << "no archive";
    EXPECT_TRUE(same_bits(Session(model, options).forward(spec.runs, spec.outputs), wanted));
    hits = metalsim::statistics().archive_hits;
    EXPECT_TRUE(same_bits(Session(model, options).forward(spec.runs, spec.outputs), wanted));
    EXPECT_EQ(metalsim::statistics().archive_hits - hits, every);
    EXPECT_EQ(cache.files().size(), files.size()) << "no drafts are left";
}

TEST_F(MetalFaults, WithoutAPlaceForArchivesItWorksToo) {
    const fs::path file = cache.path / "file";
    std::ofstream(file) << "not a folder";
    for (const fs::path& place : {file / "below", fs::path("/proc/nowhere"), fs::path()}) {
        setenv("METALLIC_CACHE", place.c_str(), 1);
        EXPECT_NO_THROW(Session(model, options).forward(spec.runs, spec.outputs)) << place;
    }
}

// ---- kinds of devices ---------------------------------------------------------------------------------------------

TEST_F(MetalFaults, ADeviceWithoutMetal3IsNone) {
    metalsim::DeviceModel device;
    device.metal3 = false;
    metalsim::set_device(device);
    for (const DeviceInfo& info : list_devices()) EXPECT_NE(info.backend, "metal");
    EXPECT_EQ(create_backend({"auto", 1})->device().backend, "cpu");
    try {
        create_backend({"metal", 0});
        ADD_FAILURE() << "a device that lacks what is needed";
    } catch (const DeviceError& error) {
        EXPECT_NE(std::string(error.what()).find("Metal 3"), std::string::npos);
    }
}

TEST_F(MetalFaults, EveryAccessIsResidentWithAndWithoutSets) {
    std::vector<float> first;
    for (const bool sets : {true, false}) {
        metalsim::DeviceModel device;
        device.residency_sets = sets;
        device.macos_major = sets ? 15 : 13;
        metalsim::set_device(device);
        const Checks checks(true);
        Session session(model, options);
        const std::vector<float> got = session.forward(spec.runs, spec.outputs);
        if (first.empty()) first = got;
        EXPECT_TRUE(same_bits(got, first));
    }
}

TEST_F(MetalFaults, StepsAreTimedWhereTheDeviceCan) {
    for (const bool counters : {true, false}) {
        metalsim::DeviceModel device;
        device.counter_sampling = counters;
        metalsim::set_device(device);
        Session session(model, options);
        const std::vector<float> wanted = session.forward(spec.runs, spec.outputs);
        EXPECT_EQ(session.events.recorded(), 0u) << "nobody looks";
        session.events.set_enabled(true);
        session.submit(session.prepare({{1, spec.runs[0].tokens}}, spec.outputs));
        EXPECT_TRUE(same_bits(session.logits, wanted)) << "being watched changes nothing";
        uint64_t steps = 0, submissions = 0, last = 0;
        for (const Event& event : session.events.snapshot()) {
            (event.kind == EventKind::step ? steps : submissions) += 1;
            if (event.kind != EventKind::step) continue;
            EXPECT_GE(event.start_ns, last);
            EXPECT_EQ(event.amount, spec.outputs.size());
            last = event.start_ns;
        }
        EXPECT_EQ(submissions, 1u);
        EXPECT_EQ(steps, counters ? model.program.steps.size() : 0);
    }
}

// ---- the hot path -------------------------------------------------------------------------------------------------

TEST_F(MetalFaults, EncodingAStepRetainsNothing) {
    const auto retains = [&](int layers) {
        TestModel chain;
        ValueId x = chain.input(32);
        for (int i = 0; i < layers; ++i) {
            const ValueId y = chain.value(32);
            chain.step(UnaryStep{UnaryOp::scale, 1.0f, x, y});
            x = y;
        }
        chain.finish(x);
        Session session(chain, options);
        for (int i = 0; i < 4; ++i) session.submit(session.prepare(spec.runs, spec.outputs));
        const metalsim::Statistics before = metalsim::statistics();
        session.submit(session.prepare(spec.runs, spec.outputs));
        const metalsim::Statistics after = metalsim::statistics();
        EXPECT_EQ(after.encoders - before.encoders, 1u);
        return after.retains - before.retains;
    };
    EXPECT_EQ(retains(1), retains(20));
}

}  // namespace
}  // namespace metallic::testing

#endif
