#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#include "core/error.h"
#include "memory/pool.h"
#include "metal_kernels.h"
#include "small_model.h"

// How long memory lives on a device: what goes while work is under way, and what is given back after a failure. On a
// simulated one, which says what it holds.
#if __has_include("metalsim/control.h")

namespace metallic::testing {
namespace {

using metalsim::Fault;
using metalsim::FaultKind;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// The end of the next command buffer is told late.
Fault slow(uint32_t milliseconds = 120) {
    return {FaultKind::slow_completion, 1, 1, 0, milliseconds};
}

uint64_t allocated() {
    return metalsim::statistics().bytes_allocated;
}

// Rows of a table, looked up by a plan that has its memory from a pool.
struct Lookup {
    Lookup() {
        table.finish(table.input(32));
        weights = backend->wrap_host(table.bytes[0], nullptr, "table", HostMemory::any);
        arena = backend->create_heap(65536, Storage::shared, "arena");
        const BufferView views[] = {{weights.get(), 0, weights->bytes()}};
        CompileInputs inputs;
        inputs.program = &table.program;
        inputs.weights = views;
        inputs.arena_layout = layout_arena(table.program, 4, 4);
        inputs.arena = {arena.get(), 0, arena->bytes()};
        inputs.max_tokens = inputs.max_outputs = 4;
        inputs.allocator = pool.allocator();
        plan = backend->compile(inputs);
    }
    Ticket submit() { return backend->submit(*plan, {tokens, {&rows, 1}, {}, outputs, logits, {}, nullptr, {}}); }
    void run() { backend->wait(submit()); }

    const std::shared_ptr<Backend> backend = create_backend({"metal", 0});
    Pool pool{backend, 0};
    TestModel table;
    std::shared_ptr<Heap> weights, arena;
    std::unique_ptr<Plan> plan;
    const int32_t tokens[3] = {49, 0, 7};
    const metallic::Run rows{0, 3, 0, false};
    const uint32_t outputs[3] = {0, 1, 2};
    float logits[3 * 32] = {};
};

class MetalMemory : public ::testing::Test {
  protected:
    void SetUp() override {
        metalsim::clear_faults();
        metalsim::set_device({});
        options.device = "metal";
    }
    void TearDown() override {
        metalsim::clear_faults();
        metalsim::set_device({});
        for (const metalsim::Report& report : metalsim::take_reports()) ADD_FAILURE() << report.text();
    }
    static void use_device(uint64_t memory, bool residency_sets = true) {
        metalsim::DeviceModel device;
        device.memory_bytes = memory;
        device.residency_sets = residency_sets;
        device.macos_major = residency_sets ? 15 : 13;
        metalsim::set_device(device);
    }

    const TestModel model = small_model();
    Session::Options options;
    const BatchSpec spec = one_run(12);
};

// ---- while work is under way --------------------------------------------------------------------------------------

// Whoever waits for the work lets go of what waits for it: nobody else may come.
TEST_F(MetalMemory, WhatGoesIsGoneAfterTransfersOfSharedMemory) {
    const auto backend = create_backend({"metal", 0});
    const std::vector<std::byte> data(1000, std::byte{3});
    std::vector<std::byte> seen(data.size());
    const auto kept = backend->create_heap(data.size(), Storage::shared, "kept");
    const BufferView view{kept.get(), 0, data.size()};
    const std::function<void()> transfers[] = {[&] { backend->upload(data, view); },
                                               [&] { backend->download(view, seen); }, [&] { backend->clear(view); }};
    const uint64_t before = allocated();
    for (const auto& transfer : transfers) {
        metalsim::inject(slow());
        backend->create_heap(6 * kMiB, Storage::exclusive, "filled with zeros when it goes");
        EXPECT_GE(allocated(), before + 6 * kMiB) << "the fill is under way";
        transfer();
        EXPECT_EQ(allocated(), before);
    }
}

TEST_F(MetalMemory, WhatGoesIsGoneAfterAPlanThatHadWork) {
    Lookup lookup;
    lookup.run();  // makes what the plan keeps
    auto heap = lookup.backend->create_heap(6 * kMiB, Storage::shared, "goes");
    const uint64_t before = allocated();
    metalsim::inject(slow());
    lookup.submit();
    heap.reset();
    EXPECT_EQ(allocated(), before) << "the batch is under way";
    lookup.plan.reset();
    EXPECT_LE(allocated(), before - 6 * kMiB);
}

TEST_F(MetalMemory, WhatGoesIsGoneAfterTheFirstUseOfAHeap) {
    const auto backend = create_backend({"metal", 0});
    const std::vector<std::byte> none;
    auto heap = backend->create_heap(6 * kMiB, Storage::shared, "goes");
    const uint64_t before = allocated();
    metalsim::inject(slow());
    const auto filled = backend->create_heap(4096, Storage::exclusive, "filled with zeros");
    heap.reset();
    EXPECT_GE(allocated(), before) << "the fill is under way";
    backend->upload(none, {filled.get(), 0, 0});  // waits for no more than the fill
    EXPECT_LE(allocated(), before - 5 * kMiB);
}

// A view of the mapping must not outlive it.
TEST_F(MetalMemory, AMappingOutlivesItsBuffers) {
    const auto backend = create_backend({"metal", 0});
    for (const bool busy : {false, true}) {
        const uint64_t before = metalsim::statistics().buffers_alive;
        std::vector<uint64_t> buffers;
        auto* const memory = static_cast<std::byte*>(std::aligned_alloc(65536, 65536));
        std::shared_ptr<const void> owner(memory, [&](const void* p) {
            buffers.push_back(metalsim::statistics().buffers_alive - before);
            std::free(const_cast<void*>(p));
        });
        auto file = backend->wrap_host({memory, 65536}, std::move(owner), "model.gguf", HostMemory::mapping);
        std::shared_ptr<Heap> filled;
        if (busy) {
            metalsim::inject(slow());
            filled = backend->create_heap(4096, Storage::exclusive, "filled with zeros");
        }
        file.reset();
        EXPECT_EQ(buffers.size(), busy ? 0u : 1u);
        if (busy) backend->upload({}, {filled.get(), 0, 0});
        ASSERT_EQ(buffers.size(), 1u);
        EXPECT_EQ(buffers[0], busy ? 1u : 0u) << "unmapped before the buffer that shows it was released";
    }
}

// Where there are no residency sets every encoder names all heaps, and keeps none of them.
TEST_F(MetalMemory, EncodersNameNoHeapThatGoesBeforeTheyEnd) {
    use_device(8192 * kMiB, false);
    Session session(model, options);
    const std::vector<float> wanted = session.forward(spec.runs, spec.outputs);
    auto heap = session.backend->create_heap(6 * kMiB, Storage::shared, "goes");
    const Batch batch = session.prepare({{1, spec.runs[0].tokens}}, spec.outputs);
    metalsim::inject({FaultKind::slow_completion, 1, 2, 0, 120});
    const Ticket first = session.backend->submit(*session.plan, batch);
    heap.reset();
    const Ticket second = session.backend->submit(*session.plan, batch);
    EXPECT_NO_THROW(session.backend->wait(first));
    EXPECT_NO_THROW(session.backend->wait(second));
    EXPECT_TRUE(same_bits(session.logits, wanted));
}

// The same of one that is open when the heap goes, and of one that is dropped.
TEST_F(MetalMemory, AHeapGoesWhenTheEncoderThatNamesItHasEnded) {
    use_device(10 * kMiB, false);
    const auto context = std::make_shared<metal::Context>(metal::find_device(), metal::ShaderSources{});
    using Commands = metal::Context::Commands;
    metal::Completion completion(context->progress());
    const auto make = [&] {
        return metal::allocate_heap(context, 6 * kMiB, Storage::shared, "goes", Contents::undefined);
    };
    for (const bool committed : {true, false, true}) {
        auto heap = make();
        uint64_t number = 0;
        {
            Commands commands(*context, @"names the heap", Commands::Lifetimes::kept_by_caller);
            commands.compute(@"names the heap", nil);
            heap.reset();
            EXPECT_GE(allocated(), 6 * kMiB);
            metalsim::inject(slow());
            if (committed) number = commands.commit(completion);
        }
        EXPECT_EQ(allocated() >= 6 * kMiB, committed);
        EXPECT_NO_THROW(make()) << "there is room once the encoder has ended";
        completion.wait(number);
        EXPECT_FALSE(completion.outcome().error);
        metalsim::clear_faults();
    }
}

// Two threads wait for the same memory; who comes second finds that it has gone already.
TEST_F(MetalMemory, MemoryThatAnotherThreadReleasesIsSeen) {
    use_device(10 * kMiB);
    const auto backend = create_backend({"metal", 0});
    const auto kept = backend->create_heap(4096, Storage::shared, "kept");
    const std::vector<std::byte> data(4096);
    for (int i = 0; i < 40; ++i) {
        metalsim::inject(slow(10));
        backend->create_heap(6 * kMiB, Storage::exclusive, "filled with zeros when it goes");
        std::thread other([&] { backend->upload(data, {kept.get(), 0, data.size()}); });
        EXPECT_NO_THROW(backend->create_heap(6 * kMiB, Storage::shared, "next"));
        other.join();
        metalsim::clear_faults();
    }
}

// What a submission writes to memory that the host sees too is copied when it is there.
TEST_F(MetalMemory, CopiesOfSharedMemoryWaitForTheWorkThatWritesIt) {
    Lookup lookup;
    Backend& backend = *lookup.backend;
    const uint64_t bytes = lookup.arena->bytes();
    const auto target = backend.create_heap(bytes, Storage::exclusive, "target");
    const BufferView from{lookup.arena.get(), 0, bytes}, to{target.get(), 0, bytes};
    backend.clear(from);
    backend.clear(to);
    metalsim::inject(slow());
    const auto filled = backend.create_heap(4096, Storage::exclusive, "filled with zeros");  // keeps the device busy
    const Ticket ticket = lookup.submit();
    backend.copy(from, to);
    backend.wait(ticket);
    std::vector<std::byte> seen(bytes);
    backend.download(to, seen);
    EXPECT_TRUE(std::any_of(seen.begin(), seen.end(), [](std::byte b) { return b != std::byte{0}; }));
    EXPECT_EQ(std::memcmp(seen.data(), lookup.arena->host(), bytes), 0);
}

// ---- after a refusal ----------------------------------------------------------------------------------------------

// The heap is there and its buffer is refused: the next attempt must not need both.
TEST_F(MetalMemory, AHeapWithoutABufferMakesRoomForTheNext) {
    use_device(10 * kMiB);
    const auto backend = create_backend({"metal", 0});
    metalsim::inject(slow());
    backend->create_heap(4096, Storage::exclusive, "filled with zeros when it goes");
    metalsim::inject({FaultKind::buffer_allocation});
    EXPECT_NO_THROW(backend->create_heap(6 * kMiB, Storage::shared, "next"));
}

// Slots that are free keep their memory for the next submissions, unless it is needed.
TEST_F(MetalMemory, FreeSlotsGiveWayToABatchThatNeedsTheirMemory) {
    use_device(256 * kMiB);
    options.max_tokens = options.max_outputs = 1024;
    Session session(model, options);
    const std::vector<float> wanted = session.forward({{0, {7}}}, {0});
    const Batch small = session.prepare({{1, {7}}}, {0});
    std::vector<Ticket> tickets;
    metalsim::inject(slow());
    for (int i = 0; i < 3; ++i) tickets.push_back(session.backend->submit(*session.plan, small));
    for (const Ticket ticket : tickets) session.backend->wait(ticket);
    std::vector<std::shared_ptr<Heap>> rest;
    for (uint64_t bytes = 64 * kMiB; bytes >= 4096;) {
        try {
            rest.push_back(session.backend->create_heap(bytes, Storage::shared, "the rest", Contents::undefined));
        } catch (const OutOfMemory&) {
            bytes /= 2;
        }
    }
    std::vector<LogitEdit> edits(6000, LogitEdit::bias_of(3, 0.0f));
    const Selection selection{1, edits, {}};
    Candidate candidate;
    Batch large = session.prepare({{2, {7}}}, {0});
    large.selections = {&selection, 1};
    large.candidates = &candidate;
    EXPECT_NO_THROW(session.submit(large));
    EXPECT_EQ(candidate.logit, *std::max_element(wanted.begin(), wanted.end()));
}

}  // namespace
}  // namespace metallic::testing

#endif
