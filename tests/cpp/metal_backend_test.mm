#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>

#include "backend/metal/ops/copy.h"
#include "core/error.h"
#include "gguf_builder.h"
#include "memory/pool.h"
#include "metal_kernels.h"
#include "runtime/weights.h"
#include "small_model.h"

// What the Metal backend adds to the seam: storage, transfers, submissions in flight, barriers, the ledger. On any
// device that supports Metal 3.
namespace metallic::testing {
namespace {

std::vector<std::byte> pattern(uint64_t bytes, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::byte> data(bytes);
    for (std::byte& byte : data) byte = static_cast<std::byte>(random());
    return data;
}

class Variable {
  public:
    Variable(const char* name, const char* value) : name_(name) {
        if (const char* before = std::getenv(name)) before_ = before, set_ = true;
        setenv(name, value, 1);
    }
    ~Variable() { set_ ? setenv(name_, before_.c_str(), 1) : unsetenv(name_); }

  private:
    const char* const name_;
    std::string before_;
    bool set_ = false;
};

// A file of `bytes`, mapped; unlinked at once.
class Mapping {
  public:
    explicit Mapping(const std::vector<std::byte>& bytes) : bytes_(bytes.size()) {
        std::FILE* file = std::tmpfile();
        if (std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) ADD_FAILURE() << "cannot write a file";
        std::fflush(file);
        data_ = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, fileno(file), 0);
        std::fclose(file);
    }
    ~Mapping() { munmap(data_, bytes_); }
    std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), bytes_}; }

  private:
    size_t bytes_;
    void* data_;
};

class MetalBackend : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!metal::find_device()) GTEST_SKIP() << "there is no Metal device";
        backend = create_backend({"metal", 0});
    }

    // A heap of this storage that holds the bytes.
    std::shared_ptr<Heap> heap(Storage storage, const std::vector<std::byte>& bytes) {
        if (storage == Storage::mapped) {
            auto mapping = std::make_shared<Mapping>(bytes);
            return backend->wrap_host(mapping->bytes(), mapping, "mapped", HostMemory::mapping);
        }
        auto made = backend->create_heap(bytes.size(), storage, "made");
        backend->upload(bytes, {made.get(), 0, bytes.size()});
        return made;
    }
    std::vector<std::byte> read(const BufferView& view) {
        const auto seen = backend->create_heap(view.bytes, Storage::shared, "seen");
        backend->copy(view, {seen.get(), 0, view.bytes});
        return {seen->host(), seen->host() + view.bytes};
    }

    std::unique_ptr<Backend> backend;
};

// ---- storage ------------------------------------------------------------------------------------------------------

TEST_F(MetalBackend, DescribesTheDevice) {
    const DeviceInfo& info = backend->device();
    EXPECT_EQ(info.backend, "metal");
    EXPECT_FALSE(info.name.empty());
    EXPECT_NE(info.detail.find("metal3"), std::string::npos);
    EXPECT_GT(info.memory_bytes, uint64_t{1} << 20);
    EXPECT_GT(info.max_buffer_bytes, uint64_t{1} << 20);
    EXPECT_EQ(list_devices().front().name, info.name) << "the best device comes first";
    EXPECT_EQ(create_backend({"auto", 0})->device().backend, "metal");
}

TEST_F(MetalBackend, CopiesBetweenAllStorages) {
    const std::vector<std::byte> bytes = pattern(5000, 1);
    struct Range {
        uint64_t from, to, count;
    };
    for (const Storage from : {Storage::shared, Storage::exclusive, Storage::mapped}) {
        for (const Storage to : {Storage::shared, Storage::exclusive}) {
            for (const Range r : {Range{0, 0, 5000}, Range{4, 8, 1000}, Range{3, 5, 17}, Range{4, 8, 3}, Range{1, 0, 4},
                                  Range{4999, 0, 1}, Range{7, 4996, 4}, Range{100, 50, 0}}) {
                const std::vector<std::byte> old = pattern(5000, 2);
                const auto source = heap(from, bytes), target = heap(to, old);
                backend->copy({source.get(), r.from, r.count}, {target.get(), r.to, r.count});
                std::vector<std::byte> wanted = old;
                std::copy_n(bytes.begin() + static_cast<long>(r.from), r.count,
                            wanted.begin() + static_cast<long>(r.to));
                EXPECT_EQ(read({target.get(), 0, 5000}), wanted) << int(from) << int(to) << " " << r.from;
            }
        }
    }
}

TEST_F(MetalBackend, CopiesWithinOneHeap) {
    const uint64_t bytes = (uint64_t{20} << 20) + 12;  // more than one staging buffer
    const std::vector<std::byte> data = pattern(bytes, 3);
    for (const Storage storage : {Storage::shared, Storage::exclusive}) {
        for (const bool up : {true, false}) {
            const auto own = heap(storage, data);
            const uint64_t from = up ? 0 : 1000, to = up ? 1000 : 0, count = bytes - 1000;
            backend->copy({own.get(), from, count}, {own.get(), to, count});
            std::vector<std::byte> wanted = data;
            std::memmove(wanted.data() + to, wanted.data() + from, count);
            EXPECT_EQ(read({own.get(), 0, bytes}), wanted) << int(storage) << up;
        }
    }
}

TEST_F(MetalBackend, UploadsWhatIsLargerThanTheStagingRing) {
    const uint64_t bytes = (uint64_t{50} << 20) + 1234;
    const std::vector<std::byte> data = pattern(bytes - 9, 4);
    const auto target = backend->create_heap(bytes, Storage::exclusive, "target");
    backend->upload(data, {target.get(), 5, data.size()});
    const std::vector<std::byte> seen = read({target.get(), 0, bytes});
    EXPECT_TRUE(std::equal(data.begin(), data.end(), seen.begin() + 5));
    EXPECT_TRUE(std::all_of(seen.begin(), seen.begin() + 5, [](std::byte b) { return b == std::byte{0}; }));
    EXPECT_TRUE(std::all_of(seen.end() - 4, seen.end(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST_F(MetalBackend, RefusesTransfersThatDoNotFit) {
    const std::vector<std::byte> bytes = pattern(100, 5);
    const auto target = backend->create_heap(100, Storage::exclusive, "target");
    const auto other = create_backend({"metal", 0});
    const auto foreign = other->create_heap(100, Storage::shared, "foreign");
    EXPECT_THROW(backend->upload(bytes, {target.get(), 1, 100}), Error);
    EXPECT_THROW(backend->upload(bytes, {target.get(), 0, 99}), Error);
    EXPECT_THROW(backend->upload(bytes, {nullptr, 0, 100}), Error);
    EXPECT_THROW(backend->upload(bytes, {heap(Storage::mapped, bytes).get(), 0, 100}), Error);
    EXPECT_THROW(backend->copy({foreign.get(), 0, 100}, {target.get(), 0, 100}), Error);
    EXPECT_NO_THROW(backend->upload(bytes, {target.get(), 0, 100}));
}

TEST_F(MetalBackend, HeapsOutliveTheirBackend) {
    const std::vector<std::byte> bytes = pattern(100, 6);
    const auto shared = heap(Storage::shared, bytes), exclusive = heap(Storage::exclusive, bytes);
    backend.reset();
    EXPECT_EQ(std::memcmp(shared->host(), bytes.data(), 100), 0);
    EXPECT_EQ(exclusive->bytes(), 100u);
}

TEST_F(MetalBackend, WrapsOddRangesOfAMapping) {
    const std::vector<std::byte> bytes = pattern(100001, 7);
    auto mapping = std::make_shared<Mapping>(bytes);
    const std::weak_ptr<Mapping> alive = mapping;
    struct Range {
        uint64_t offset, count;
    };
    for (const Range r : {Range{0, 100001}, Range{1, 100000}, Range{16383, 2}, Range{100000, 1}, Range{5000, 40000}}) {
        const auto view =
            backend->wrap_host(mapping->bytes().subspan(r.offset, r.count), mapping, "file", HostMemory::mapping);
        EXPECT_EQ(view->storage(), Storage::mapped);
        EXPECT_EQ(view->bytes(), r.count);
        EXPECT_EQ(view->host(), mapping->bytes().data() + r.offset) << "no copy";
        const auto target = backend->create_heap(r.count, Storage::exclusive, "target");
        backend->copy({view.get(), 0, r.count}, {target.get(), 0, r.count});
        const std::vector<std::byte> seen = read({target.get(), 0, r.count});
        EXPECT_TRUE(std::equal(seen.begin(), seen.end(), bytes.begin() + static_cast<long>(r.offset)));
    }
    auto view = backend->wrap_host(mapping->bytes(), mapping, "file", HostMemory::mapping);
    mapping.reset();
    EXPECT_FALSE(alive.expired()) << "the view keeps the file mapped";
    view.reset();
    EXPECT_TRUE(alive.expired());
}

TEST_F(MetalBackend, MemoryThatIsNoMappingIsCopied) {
    std::vector<std::byte> bytes = pattern(1000, 8);
    const std::vector<std::byte> wanted = bytes;
    const auto view = backend->wrap_host(std::span(bytes).subspan(3), nullptr, "loose", HostMemory::any);
    std::fill(bytes.begin(), bytes.end(), std::byte{0});
    EXPECT_EQ(view->storage(), Storage::mapped);
    EXPECT_TRUE(std::equal(wanted.begin() + 3, wanted.end(), view->host()));
    EXPECT_EQ(backend->wrap_host({}, nullptr, "nothing", HostMemory::any)->bytes(), 0u);
    EXPECT_EQ(backend->wrap_host({}, nullptr, "nothing", HostMemory::mapping)->bytes(), 0u);
}

TEST_F(MetalBackend, ExclusiveWeightsAreUploadedOnFirstNeed) {
    GgufBuilder builder;
    builder.add_string("general.architecture", "none");
    builder.add_tensor("matrix", {64, 4}, 0, 64 * 4 * sizeof(float)).add_tensor("vector", {64}, 0, 64 * sizeof(float));
    const auto bytes = std::make_shared<std::vector<std::byte>>(builder.build().bytes);
    const auto file = std::make_shared<ModelFile>(ModelFile::from_sources({{"test", *bytes, bytes, nullptr}}));
    const std::span<const std::byte> matrix = file->tensor_bytes(file->tensor("matrix"));
    Program program;
    program.weights = {{"vector", DType::F32, 64, 1, 1}, {"matrix", DType::F32, 64, 4, 1}};

    const std::shared_ptr<Backend> own = create_backend({"metal", 0});
    Pool pool(own, 0);
    const std::optional<Storage> storage[] = {Storage::exclusive, Storage::exclusive};
    Weights weights(file, own, pool, program, storage);
    const WeightId ids[] = {0, 1};
    const std::span<const std::byte> vector = file->tensor_bytes(file->tensor("vector"));
    ASSERT_EQ(weights.views()[0].heap->storage(), Storage::shared) << "plans read vectors when they are compiled";
    EXPECT_EQ(std::memcmp(weights.views()[0].host(), vector.data(), vector.size()), 0);
    ASSERT_EQ(weights.views()[1].heap->storage(), Storage::exclusive);
    EXPECT_GE(pool.statistics().tags[static_cast<int>(Tag::weights)].current, matrix.size());
    const auto seen = own->create_heap(matrix.size(), Storage::shared, "seen");
    const auto matches = [&] {
        own->copy(weights.views()[1], {seen.get(), 0, matrix.size()});
        return std::memcmp(seen->host(), matrix.data(), matrix.size()) == 0;
    };
    EXPECT_FALSE(matches()) << "nothing needed it yet";
    EXPECT_THROW(weights.upload(ids, [] { return true; }), Interrupted);
    EXPECT_FALSE(matches());
    weights.upload({ids, 1}, {});
    EXPECT_FALSE(matches()) << "only the other one was needed";
    weights.upload(ids, {});
    EXPECT_TRUE(matches());

    EXPECT_EQ(weights.evict(), matrix.size() + vector.size());
    EXPECT_EQ(pool.statistics().tags[static_cast<int>(Tag::weights)].current, 0u);
    EXPECT_EQ(weights.views()[1].heap, nullptr);
    weights.restore();
    own->clear(weights.views()[1]);  // it may be the same memory
    EXPECT_FALSE(matches());
    weights.upload(ids, {});
    EXPECT_TRUE(matches());
}

// ---- submissions --------------------------------------------------------------------------------------------------

TEST_F(MetalBackend, SeveralSubmissionsAreInFlight) {
    const TestModel model = small_model();
    Session::Options options;
    options.device = "metal";
    Session session(model, options), wanted(model, options);
    // Tokens one by one: each depends on the pages that those before it wrote.
    const std::vector<int32_t> tokens = some_tokens(7);
    std::vector<std::vector<float>> expected, got(tokens.size());
    for (const int32_t token : tokens) expected.push_back(wanted.forward({{0, {token}}}, {0}));

    const std::vector<uint32_t> outputs{0};
    session.forward({{0, {tokens[0]}}}, {0});  // so that the page is there
    got[0] = session.logits;
    std::vector<Ticket> tickets;
    std::vector<metallic::Run> runs(tokens.size());
    const std::vector<PageTableView> tables = session.tables;
    for (uint32_t i = 1; i < tokens.size(); ++i) {
        got[i].resize(expected[i].size());
        runs[i] = {0, 1, i, false};
        tickets.push_back(session.backend->submit(
            *session.plan, {{&tokens[i], 1}, {&runs[i], 1}, tables, outputs, got[i].data(), {}, nullptr, {}}));
    }
    for (auto ticket = tickets.rbegin(); ticket != tickets.rend(); ++ticket) session.backend->wait(*ticket);
    for (const Ticket ticket : tickets) EXPECT_NO_THROW(session.backend->wait(ticket)) << "a second time";
    for (size_t i = 0; i < tokens.size(); ++i) EXPECT_TRUE(same_bits(got[i], expected[i])) << i;
}

TEST_F(MetalBackend, PlansOfSeveralThreadsShareTheQueue) {
    const TestModel model = small_model();
    Session::Options options;
    options.device = "metal";
    const BatchSpec spec = one_run(20);
    const std::vector<float> wanted = Session(model, options).forward(spec.runs, spec.outputs);
    Session session(model, options);
    std::vector<std::thread> threads;
    for (int t = 0; t < 2; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 5; ++i) {
                if (t == 0) {
                    const Batch batch = session.prepare(spec.runs, spec.outputs);
                    session.submit(batch);
                    EXPECT_TRUE(same_bits(session.logits, wanted));
                } else {
                    const auto bytes = pattern(10000, 11);
                    const auto heap = session.backend->create_heap(bytes.size(), Storage::exclusive, "other");
                    const auto seen = session.backend->create_heap(bytes.size(), Storage::shared, "seen");
                    session.backend->upload(bytes, {heap.get(), 0, bytes.size()});
                    session.backend->copy({heap.get(), 0, bytes.size()}, {seen.get(), 0, bytes.size()});
                    EXPECT_EQ(std::memcmp(seen->host(), bytes.data(), bytes.size()), 0);
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
}

TEST_F(MetalBackend, PlansMayEndBeforeTheirSubmissions) {
    const TestModel model = small_model();
    Session::Options options;
    options.device = "metal";
    Session session(model, options);
    const BatchSpec spec = one_run(10);
    const Batch batch = session.prepare(spec.runs, spec.outputs);
    const Ticket ticket = session.backend->submit(*session.plan, batch);
    session.plan.reset();
    EXPECT_NO_THROW(session.backend->wait(ticket));
    EXPECT_FALSE(std::isnan(session.logits[0])) << "the results are there";
}

TEST_F(MetalBackend, AForkedChildIsRefused) {
    const pid_t child = fork();
    if (child == 0) {
        try {
            backend->create_heap(64, Storage::shared, "child");
        } catch (const DeviceError& error) {
            _exit(error.status == "forked" ? 0 : 1);
        } catch (...) {
        }
        _exit(2);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_NO_THROW(backend->create_heap(64, Storage::shared, "parent"));
}

// ---- the ledger ---------------------------------------------------------------------------------------------------

// A submission in flight whose pages are a heap of their own.
class MetalLedger : public MetalBackend {
  protected:
    void SetUp() override {
        MetalBackend::SetUp();
        if (IsSkipped()) return;
        const ScopeId scope = model_.program.scopes.child(model_.program.scopes.child(0, "forward"), "block");
        for (Step& step : model_.program.steps) step.scope = scope;
        Session::Options options;
        options.device = "metal";
        session = std::make_unique<Session>(model_, options);
        const uint64_t page = KvLayout::of(model_.program.groups[0], options.kv).page_bytes;
        pages = session->backend->create_heap(2 * page, Storage::shared, "kv/group");
        addresses_ = {pages->address(), pages->address() + page};
        const BatchSpec spec = one_run(10);
        const Batch batch = session->prepare(spec.runs, spec.outputs);
        for (size_t g = 0; g < 2; ++g) session->tables[g].pages = &addresses_[g];
        ticket = session->backend->submit(*session->plan, batch);
    }

    const Variable kept{"METALLIC_LEDGER", "1"};
    std::unique_ptr<Session> session;
    std::shared_ptr<Heap> pages;
    Ticket ticket = 0;

  private:
    TestModel model_ = small_model();
    std::vector<uint64_t> addresses_;
};

TEST_F(MetalLedger, RefusesToHandOutMemoryInFlight) {
    const Backend& device = *session->backend;
    const BufferView second{pages.get(), pages->bytes() / 2, 64};
    try {
        device.check_idle(second, "the next one");
        ADD_FAILURE() << "a page in flight was free";
    } catch (const DeviceError& error) {
        EXPECT_NE(std::string(error.what()).find("the next one"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("forward/block"), std::string::npos) << error.what();
        EXPECT_EQ(error.scope, "forward/block");
        EXPECT_EQ(error.status, "in flight");
    }
    const auto idle = session->backend->create_heap(64, Storage::shared, "idle");
    EXPECT_NO_THROW(device.check_idle({idle.get(), 0, 64}, "the next one"));
    session->backend->wait(ticket);
    EXPECT_NO_THROW(device.check_idle(second, "the next one"));
}

TEST_F(MetalLedger, FreeingMemoryInFlightFailsTheSubmission) {
    pages.reset();
    try {
        session->backend->wait(ticket);
        ADD_FAILURE() << "pages were freed in flight, and nobody noticed";
    } catch (const DeviceError& error) {
        EXPECT_NE(std::string(error.what()).find("kv/group"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("forward/block"), std::string::npos) << error.what();
        EXPECT_EQ(error.status, "freed in flight");
    }
    const BatchSpec spec = one_run(10);
    EXPECT_NO_THROW(session->forward(spec.runs, spec.outputs));
}

// ---- barriers -----------------------------------------------------------------------------------------------------

class MetalBarriers : public MetalKernels {
  protected:
    static constexpr uint32_t kCount = 64;

    // Casts from one place to another, in turn; how many barriers there were.
    uint64_t barriers(const std::vector<std::pair<int, int>>& casts) {
        Program program;
        CompileInputs inputs;
        inputs.program = &program;
        const Memory data = memory(16 * kCount * 4);
        uint64_t count = 0;
        run<metal::Cast>(
            inputs, [&](metal::Preparation& p) { return metal::Cast(DType::F16, DType::F32, p); },
            [&](const metal::Cast& cast, metal::Encoder& encoder) {
                const uint64_t before = encoder.barriers();
                for (const auto& [from, to] : casts) {
                    cast.encode(encoder, data.binding.at(uint64_t(from) * kCount * 4, kCount * 2),
                                data.binding.at(uint64_t(to) * kCount * 4, kCount * 4), kCount);
                }
                EXPECT_EQ(encoder.dispatches(), casts.size());
                count = encoder.barriers() - before;
            });
        return count;
    }
};

TEST_F(MetalBarriers, GoWhereOneDispatchDependsOnAnother) {
    EXPECT_EQ(barriers({{0, 1}, {2, 3}, {0, 4}}), 0u) << "independent, reading the same";
    EXPECT_EQ(barriers({{0, 1}, {1, 2}}), 1u) << "a read after a write";
    EXPECT_EQ(barriers({{0, 1}, {2, 0}}), 1u) << "a write after a read";
    EXPECT_EQ(barriers({{0, 1}, {2, 1}}), 1u) << "a write after a write";
    EXPECT_EQ(barriers({{0, 1}, {1, 2}, {0, 3}, {1, 4}}), 1u) << "one barrier covers all before it";
    EXPECT_EQ(barriers({{0, 1}, {1, 2}, {2, 3}, {3, 4}}), 3u);
    // More ranges than are remembered: a barrier more, and none is forgotten.
    std::vector<std::pair<int, int>> many;
    for (int i = 0; i < 200; ++i) many.emplace_back(0, 1 + i % 2);
    EXPECT_EQ(barriers(many), 99u);
}

}  // namespace
}  // namespace metallic::testing
