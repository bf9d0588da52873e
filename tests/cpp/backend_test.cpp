#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cpu/ops/sampling.h"
#include "core/error.h"
#include "small_model.h"

// What every backend holds to, on the device under test.
namespace metallic::testing {
namespace {

// ---- heaps and copies -------------------------------------------------------------------------------------------

TEST(Backend, IsTheDeviceAskedFor) {
    EXPECT_EQ(create_backend({test_device(), 1})->device().backend, test_device());
}

TEST(Backend, HeapsAreZeroedAndAligned) {
    const auto backend = create_backend({test_device(), 1});
    for (const uint64_t bytes : {uint64_t{1}, uint64_t{100000}, uint64_t{9} << 20}) {
        const auto heap = backend->create_heap(bytes, Storage::shared, "test");
        EXPECT_EQ(heap->bytes(), bytes);
        EXPECT_EQ(heap->address() % 64, 0u);
        EXPECT_TRUE(std::all_of(heap->host(), heap->host() + bytes, [](std::byte b) { return b == std::byte{0}; }));
        heap->host()[bytes - 1] = std::byte{1};
    }
    EXPECT_EQ(backend->create_heap(64, Storage::exclusive, "test")->host(), nullptr);
    EXPECT_THROW(backend->create_heap(64, Storage::mapped, "test"), Error);
}

TEST(Backend, ExclusiveHeapsAreZeroedToo) {
    const auto backend = create_backend({test_device(), 1});
    const auto heap = backend->create_heap(5000, Storage::exclusive, "test");
    const auto seen = backend->create_heap(5000, Storage::shared, "seen");
    std::fill_n(seen->host(), 5000, std::byte{1});
    backend->copy({heap.get(), 0, 5000}, {seen.get(), 0, 5000});
    EXPECT_TRUE(std::all_of(seen->host(), seen->host() + 5000, [](std::byte b) { return b == std::byte{0}; }));
}

TEST(Backend, TooLargeAHeapIsRefusedWithItsOwner) {
    const auto backend = create_backend({test_device(), 1});
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
}

TEST(Backend, CopiesBetweenHeaps) {
    const auto backend = create_backend({test_device(), 1});
    const std::vector<std::byte> bytes(100, std::byte{7});
    const auto source = backend->wrap_host(bytes, nullptr, "source", HostMemory::any);
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

TEST(Backend, BytesComeBackAsTheyWereSent) {
    const auto backend = create_backend({test_device(), 1});
    std::vector<std::byte> sent(70001), got(70001);
    for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i * 37 >> 3);
    for (const Storage storage : {Storage::shared, Storage::exclusive}) {
        const auto heap = backend->create_heap(80000, storage, "test");
        backend->upload(sent, {heap.get(), 3, sent.size()});
        backend->download({heap.get(), 3, got.size()}, got);
        EXPECT_EQ(sent, got);
        EXPECT_THROW(backend->download({heap.get(), 3, 4}, got), Error);
        EXPECT_THROW(backend->download({heap.get(), 79999, got.size()}, got), Error);
    }
}

TEST(Backend, ClearsAnyRange) {
    const auto backend = create_backend({test_device(), 1});
    const std::vector<std::byte> ones(30000, std::byte{1});
    for (const Storage storage : {Storage::shared, Storage::exclusive}) {
        const auto heap = backend->create_heap(ones.size(), storage, "test", Contents::undefined);
        for (const auto& [offset, bytes] : std::vector<std::pair<uint64_t, uint64_t>>{
                 {0, 30000}, {1, 29998}, {3, 1}, {2, 3}, {4, 4}, {7, 14001}, {29999, 1}, {100, 0}}) {
            backend->upload(ones, {heap.get(), 0, ones.size()});
            backend->clear({heap.get(), offset, bytes});
            std::vector<std::byte> expected = ones, got(ones.size());
            std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(offset), bytes, std::byte{0});
            backend->download({heap.get(), 0, got.size()}, got);
            EXPECT_EQ(got, expected) << offset << " " << bytes;
        }
        EXPECT_THROW(backend->clear({heap.get(), 29999, 2}), Error);
        EXPECT_THROW(backend->clear({heap.get(), ~uint64_t{0}, 2}), Error);
    }
    const auto mapped = backend->wrap_host(ones, nullptr, "mapped", HostMemory::any);
    EXPECT_THROW(backend->clear({mapped.get(), 0, 10}), Error);
}

// ---- a plan's own memory ----------------------------------------------------------------------------------------

TEST(Backend, PlansTakeMemoryWhereTheyAreTold) {
    const TestModel model = small_model();
    Session::Options options;
    uint64_t taken = 0;
    options.before_allocation = [&](uint64_t bytes, Tag tag) {
        taken += bytes;
        EXPECT_NE(tag, Tag::kv);
    };
    const Session session(model, options);
    EXPECT_GT(taken, 0u);
    options.before_allocation = [](uint64_t bytes, Tag) { throw OutOfMemory("no more", bytes, 0, "plan"); };
    EXPECT_THROW(Session(model, options), OutOfMemory);
}

// What most batches need is taken when the plan is made; others may take more, and what is refused fails that
// submission alone.
TEST(Backend, RefusedMemoryFailsOneSubmission) {
    const TestModel model = small_model();
    Session::Options options;
    bool refusing = false;
    options.before_allocation = [&](uint64_t bytes, Tag) {
        if (refusing) throw OutOfMemory("no more", bytes, 0, "plan");
    };
    Session session(model, options), whole(model, {});
    const BatchSpec small{{{0, some_tokens(1, 1)}}, {0}},
        large{{{1, some_tokens(60, 2)}, {2, some_tokens(4, 3)}}, {59}};
    const auto expect_equal = [&](const BatchSpec& spec) {
        EXPECT_TRUE(same_bits(session.forward(spec.runs, spec.outputs), whole.forward(spec.runs, spec.outputs)));
    };
    std::vector<uint32_t> rows(64);
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<Selection> selections(rows.size(), Selection{256, {}, {}});
    std::vector<Candidate> candidates(rows.size() * candidate_stride(selections));
    const auto select = [&] {
        Batch batch = session.prepare(large.runs, rows);
        batch.selections = selections;
        batch.candidates = candidates.data();
        session.submit(batch);
    };
    refusing = true;
    expect_equal(small);
    expect_equal(large);
    EXPECT_THROW(select(), OutOfMemory);
    refusing = false;
    expect_equal(small);
    select();
    refusing = true;
    select();  // there is enough for what was there before
    expect_equal(large);
}

// Where there is no memory for a second submission in flight, it waits for the first.
TEST(Backend, SubmissionsWaitForMemory) {
    const TestModel model = small_model();
    Session::Options options;
    bool refusing = false;
    options.before_allocation = [&](uint64_t bytes, Tag) {
        if (refusing) throw OutOfMemory("no more", bytes, 0, "plan");
    };
    Session session(model, options), whole(model, {});
    session.forward({{0, some_tokens(3, 1)}}, {2});
    whole.forward({{0, some_tokens(3, 1)}}, {2});
    refusing = true;
    struct Sent {
        std::vector<int32_t> tokens;
        std::vector<metallic::Run> runs;
        std::vector<PageTableView> tables;
        std::vector<uint32_t> outputs;
        std::vector<float> logits;
        Ticket ticket = 0;
    };
    std::vector<Sent> all(5);
    for (uint32_t i = 0; i < all.size(); ++i) {
        Sent& sent = all[i];
        session.prepare({{i + 1, some_tokens(5, i + 2)}}, {4});
        sent = {session.tokens, session.runs, session.tables, session.outputs, session.logits};
        sent.ticket = session.backend->submit(
            *session.plan,
            Batch{sent.tokens, sent.runs, sent.tables, sent.outputs, sent.logits.data(), {}, nullptr, {}});
    }
    for (uint32_t i = 0; i < all.size(); ++i) {
        session.backend->wait(all[i].ticket);
        EXPECT_TRUE(same_bits(all[i].logits, whole.forward({{i + 1, some_tokens(5, i + 2)}}, {4}))) << i;
    }
}

// ---- submissions ------------------------------------------------------------------------------------------------

TEST(Backend, RefusesBatchesThatThePlanCannotServe) {
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
    std::vector<Candidate> candidates(12);
    std::vector<Selection> selections(3);
    const auto refuses_selections = [&](const char* what, const auto& spoil) {
        refuses(what, [&](Batch& b) {
            selections.assign(3, Selection{4, {}, {}});
            b.selections = selections, b.candidates = candidates.data(), b.logits = nullptr;
            spoil(b);
        });
    };
    Batch good_selections = session.prepare(specs, outputs);
    selections.assign(3, Selection{4, {}, {}});
    good_selections.selections = selections, good_selections.candidates = candidates.data();
    EXPECT_NO_THROW(session.submit(good_selections));
    const std::vector<LogitEdit> outside_edit{LogitEdit::bias_of(32, 1.0f)}, infinite{LogitEdit::bias_of(1, INFINITY)},
        descending_edits{LogitEdit::ban_of(3), LogitEdit::ban_of(2)},
        no_factor{{1, LogitEdit::Kind::penalty, 0, true, 0.0, 0.0}};
    refuses_selections("too few selections", [&](Batch& b) { b.selections = b.selections.first(2); });
    refuses_selections("nowhere for candidates", [](Batch& b) { b.candidates = nullptr; });
    refuses_selections("no candidates", [&](Batch&) { selections[1].k = 0; });
    refuses_selections("too many candidates", [&](Batch&) { selections[1].k = kMostCandidates + 1; });
    refuses_selections("an edit outside", [&](Batch&) { selections[2].edits = outside_edit; });
    refuses_selections("an infinite edit", [&](Batch&) { selections[2].edits = infinite; });
    refuses_selections("descending edits", [&](Batch&) { selections[2].edits = descending_edits; });
    refuses_selections("a penalty by nought", [&](Batch&) { selections[2].edits = no_factor; });
    refuses("a page between addresses", [&](Batch&) { const_cast<uint64_t*>(session.tables[3].pages)[0] += 8; });
    refuses("a missing page", [&](Batch&) { const_cast<uint64_t*>(session.tables[3].pages)[0] = 0; });
    EXPECT_EQ(refused, 28);
    // The plan still serves: the reference has seen nothing of all this.
    Session fresh(model, options);
    const BatchSpec good{{{5, some_tokens(33, 1)}}, {32}};
    EXPECT_TRUE(same_bits(session.forward(good.runs, good.outputs), fresh.forward(good.runs, good.outputs)));
}

// As many candidates as each row wants, of its own edited logits and mask, and no logits.
TEST(Backend, GivesCandidatesInsteadOfLogits) {
    const TestModel model = small_model();
    Session session(model, {});
    const std::vector<RunSpec> specs{{0, some_tokens(33, 1)}, {1, some_tokens(2, 2)}};
    const std::vector<uint32_t> outputs{0, 32, 34};
    Batch batch = session.prepare(specs, outputs);
    session.submit(batch);
    const std::vector<float> logits = session.logits;
    const std::vector<LogitEdit> edits{
        LogitEdit::bias_of(0, 5.0f), {3, LogitEdit::Kind::penalty, 0, true, 1.3, 0.2}, LogitEdit::ban_of(31)};
    const std::vector<uint32_t> mask{0x00ff00f1u};
    for (const auto& ks : {std::vector<uint32_t>{1, 1, 1}, {5, 1, 32}, {256, 3, 2}}) {
        const std::vector<Selection> selections{{ks[0], {}, {}}, {ks[1], edits, {}}, {ks[2], edits, mask}};
        const size_t stride = candidate_stride(selections);
        std::vector<Candidate> got(3 * stride, {-7, 0.0f});
        batch = session.prepare(specs, outputs);
        batch.selections = selections;
        batch.candidates = got.data();
        session.submit(batch);
        EXPECT_TRUE(std::isnan(session.logits[0])) << "nobody asked for logits";
        for (size_t row = 0; row < 3; ++row) {
            std::vector<float> own(logits.begin() + static_cast<ptrdiff_t>(row * 32),
                                   logits.begin() + static_cast<ptrdiff_t>(row * 32 + 32));
            std::vector<Candidate> wanted(ks[row]);
            cpu::select_candidates(own, selections[row], wanted);
            ASSERT_GE(wanted[0].token, 0);
            for (size_t i = 0; i < ks[row]; ++i) {
                EXPECT_EQ(got[row * stride + i].token, wanted[i].token) << "row " << row << ", " << i;
                EXPECT_EQ(got[row * stride + i].logit, wanted[i].logit) << "row " << row << ", " << i;
            }
        }
    }
    // Logits are as before: edits changed no others' row.
    EXPECT_TRUE(same_bits(session.forward(specs, outputs), logits));
}

TEST(Backend, SaysItsPrecision) {
    const TestModel model = small_model();
    Session::Options options;
    for (const Precision asked : {Precision::automatic, Precision::float32}) {
        options.precision = asked;
        EXPECT_EQ(Session(model, options).plan->precision(), Precision::float32);
    }
}

TEST(Backend, SubmissionsFromSeveralThreadsTakeTurns) {
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

TEST(Backend, TicketsOfOthersAreRefused) {
    const auto backend = create_backend({test_device(), 1});
    EXPECT_THROW(backend->wait(0), Error);
    EXPECT_THROW(backend->wait(1), Error);
    const TestModel model = small_model();
    Session session(model, {});
    session.forward(one_run(2).runs, {0});
    EXPECT_NO_THROW(session.backend->wait(1));
    EXPECT_THROW(session.backend->wait(2), Error);
}

// ---- compilation ------------------------------------------------------------------------------------------------

template <typename Step>
Step& step_of(TestModel& model) {
    for (metallic::Step& step : model.program.steps) {
        if (auto* found = std::get_if<Step>(&step.op)) return *found;
    }
    throw std::logic_error("no such step");
}

TEST(Backend, RefusesProgramsThatDoNotFitTheirInputs) {
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

TEST(Backend, RefusesAnOutputUponAnInput) {
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
        heaps.push_back(session.backend->wrap_host(bytes, nullptr, "weight", HostMemory::any));
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

TEST(Backend, RefusesACacheTypeWithoutKernels) {
    Session::Options options;
    options.kv = DType::Q5_0;
    EXPECT_THROW(Session(small_model(), options), UnsupportedModelError);
}

}  // namespace
}  // namespace metallic::testing
