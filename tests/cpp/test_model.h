#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend/allocator.h"
#include "backend/backend.h"
#include "core/blocks.h"
#include "core/dequantise.h"

// Programs made by hand with random weights, and sessions that run them on a device.
namespace metallic::testing {

// The device that backend-neutral tests run on: METALLIC_TEST_DEVICE, else "cpu".
inline std::string test_device() {
    const char* const device = std::getenv("METALLIC_TEST_DEVICE");
    return device && *device ? device : "cpu";
}

struct TestModel {
    static constexpr uint32_t kVocabulary = 50;

    Program program;
    std::vector<std::vector<std::byte>> bytes;  // by WeightId
    std::mt19937 random{12345};

    ValueId value(uint32_t width, Rows rows = Rows::tokens);
    // Random elements, roughly uniform in `centre` +- `spread`; quantised types have random blocks of that spread
    // around 0.
    WeightId weight(DType dtype, uint64_t cols, uint64_t rows = 1, uint64_t experts = 1, float spread = 1.0f,
                    float centre = 0.0f);
    WeightRows whole(WeightId id) const;
    void step(StepOp op) { program.steps.push_back({std::move(op), 0}); }
    // A value whose rows are rows of a random table, by token.
    ValueId input(uint32_t width, float spread = 1.0f);
    // Makes `id` (of token rows) the logits.
    void finish(ValueId id);
    uint32_t rope(uint32_t dims, RopePairing pairing);
    std::vector<double> elements(WeightId id) const;
};

struct RunSpec {
    uint32_t sequence = 0;
    std::vector<int32_t> tokens;
    bool rope_extended = false;
};

// A compiled model on a device, with pages for its sequences.
// Where a session's plan takes memory from.
class SessionAllocator final : public Allocator {
  public:
    SessionAllocator(std::function<void(uint64_t, Tag)> before, HeapAllocator::CreateHeap create)
        : before_(std::move(before)), heaps_(std::move(create)) {}

    std::shared_ptr<const BufferView> allocate(uint64_t bytes, Storage storage, Tag tag, std::string_view owner,
                                               Contents contents) override {
        if (before_) before_(bytes, tag);
        return heaps_.allocate(bytes, storage, tag, owner, contents);
    }

  private:
    const std::function<void(uint64_t, Tag)> before_;
    HeapAllocator heaps_;
};

class Session {
  public:
    struct Options {
        std::string device = test_device();
        uint32_t threads = 1;  // of the CPU backend
        KvPair kv = DType::F32;
        uint32_t max_tokens = 64;
        uint32_t max_outputs = 64;
        bool alias_queries = false;  // q_out shares q's place
        uint32_t pages = 64;         // of each group, all sequences together
        // None: int8 on the CPU, whose kernels of quantised types are then what runs; elsewhere the backend's choice.
        std::optional<Precision> precision = {};
        // Asked for everything that the plan allocates; may refuse by an exception.
        std::function<void(uint64_t bytes, Tag tag)> before_allocation = {};
    };
    Session(const TestModel& model, const Options& options);

    std::vector<float> forward(const std::vector<RunSpec>& runs, const std::vector<uint32_t>& output_rows,
                               std::function<bool()> interrupted = {});
    // Makes the batch of the next forward without running it.
    Batch prepare(const std::vector<RunSpec>& runs, const std::vector<uint32_t>& output_rows);
    void submit(const Batch& batch) { backend->wait(backend->submit(*plan, batch)); }

    std::unique_ptr<Backend> backend;
    std::unique_ptr<Plan> plan;
    EventRing events{4096};

    // What `prepare` made; tests may spoil it.
    std::vector<int32_t> tokens;
    std::vector<Run> runs;
    std::vector<PageTableView> tables;
    std::vector<uint32_t> outputs;
    std::vector<float> logits;

  private:
    void place_kv();
    std::shared_ptr<Heap> scratch(uint64_t bytes, Storage storage, std::string_view label) const;
    PageTableView table(uint32_t sequence, uint32_t group, uint32_t position, uint32_t length);

    const TestModel& model_;
    const Options options_;
    std::vector<std::shared_ptr<Heap>> heaps_;
    std::vector<BufferView> weights_;
    std::vector<KvLayout> layouts_;
    std::vector<BufferView> kv_;
    std::vector<uint32_t> pages_used_;
    std::map<std::pair<uint32_t, uint32_t>, std::vector<uint64_t>> pages_;
    std::map<uint32_t, uint32_t> lengths_;
};

// Random bytes make every other field of a block valid; only its scales must be small and finite.
inline void set_scales(DType dtype, std::byte* block, float spread) {
    const auto put = [&](size_t offset, float value) {
        const half_t h = to_half(value);
        std::memcpy(block + offset, &h, sizeof(h));
    };
    switch (dtype) {
        case DType::Q4_0:
            return put(offsetof(BlockQ4_0, d), spread / 8);
        case DType::Q4_1:
            put(offsetof(BlockQ4_1, d), spread / 8);
            return put(offsetof(BlockQ4_1, m), -spread);
        case DType::Q5_0:
            return put(offsetof(BlockQ5_0, d), spread / 16);
        case DType::Q5_1:
            put(offsetof(BlockQ5_1, d), spread / 16);
            return put(offsetof(BlockQ5_1, m), -spread);
        case DType::Q8_0:
            return put(offsetof(BlockQ8_0, d), spread / 127);
        case DType::IQ4_NL:
            return put(offsetof(BlockIQ4_NL, d), spread / 127);
        case DType::MXFP4:  // 2^(e - 127) times at most 6
            *block = static_cast<std::byte>(127 + std::ilogb(spread / 6));
            return;
        case DType::Q2_K:
            put(offsetof(BlockQ2_K, d), spread / (15 * 2));
            return put(offsetof(BlockQ2_K, dmin), spread / 15);
        case DType::Q3_K:
            return put(offsetof(BlockQ3_K, d), spread / (32 * 4));
        case DType::Q4_K:
            put(offsetof(BlockQ4_K, d), spread / (63 * 8));
            return put(offsetof(BlockQ4_K, dmin), spread / 63);
        case DType::Q5_K:
            put(offsetof(BlockQ5_K, d), spread / (63 * 16));
            return put(offsetof(BlockQ5_K, dmin), spread / 63);
        case DType::Q6_K:
            return put(offsetof(BlockQ6_K, d), spread / (128 * 32));
        case DType::IQ4_XS:
            return put(offsetof(BlockIQ4_XS, d), spread / (32 * 127));
        default:
            throw std::logic_error("no test blocks of this type");
    }
}

inline ValueId TestModel::value(uint32_t width, Rows rows) {
    program.values.push_back({width, rows});
    return static_cast<ValueId>(program.values.size() - 1);
}

inline WeightId TestModel::weight(DType dtype, uint64_t cols, uint64_t rows, uint64_t experts, float spread,
                                  float centre) {
    const DTypeInfo& info = dtype_info(dtype);
    const WeightId id = static_cast<WeightId>(program.weights.size());
    program.weights.push_back({"weight." + std::to_string(id), dtype, cols, rows, experts});
    std::vector<std::byte>& out = bytes.emplace_back(row_bytes(dtype, cols) * rows * experts);
    std::uniform_real_distribution<float> uniform(centre - spread, centre + spread);
    if (info.quantised) {
        for (std::byte& byte : out) byte = static_cast<std::byte>(random() & 0xff);
        for (size_t at = 0; at < out.size(); at += info.block_bytes) set_scales(dtype, out.data() + at, spread);
        return id;
    }
    for (size_t at = 0; at < out.size(); at += info.block_bytes) {
        const float x = uniform(random);
        const half_t h = to_half(x);
        const bf16_t b = to_bf16(x);
        if (dtype == DType::F32) std::memcpy(out.data() + at, &x, sizeof(x));
        if (dtype == DType::F16) std::memcpy(out.data() + at, &h, sizeof(h));
        if (dtype == DType::BF16) std::memcpy(out.data() + at, &b, sizeof(b));
    }
    return id;
}

inline WeightRows TestModel::whole(WeightId id) const {
    return {id, 0, static_cast<uint32_t>(program.weights[id].rows)};
}

inline ValueId TestModel::input(uint32_t width, float spread) {
    const WeightId table = weight(DType::F32, width, kVocabulary, 1, spread);
    const ValueId out = value(width);
    step(EmbeddingStep{table, 1.0f, out});
    return out;
}

inline void TestModel::finish(ValueId id) {
    program.logits = value(program.values[id].width, Rows::outputs);
    step(SelectStep{id, program.logits});
}

inline uint32_t TestModel::rope(uint32_t dims, RopePairing pairing) {
    RopeTable table;
    table.pairing = pairing;
    table.dims = dims;
    for (uint32_t i = 0; i < dims / 2; ++i) {
        const float frequency = static_cast<float>(std::pow(100.0, -2.0 * i / dims));
        table.base.inverse_frequencies.push_back(frequency);
        table.extended.inverse_frequencies.push_back(frequency / 3);
    }
    table.extended.magnitude = 1.25f;
    program.ropes.push_back(table);
    return static_cast<uint32_t>(program.ropes.size() - 1);
}

inline std::vector<double> TestModel::elements(WeightId id) const {
    const Weight& w = program.weights[id];
    std::vector<float> row(w.cols);
    std::vector<double> all;
    for (uint64_t r = 0; r < w.rows * w.experts; ++r) {
        dequantise_row(w.dtype, bytes[id].data() + r * row_bytes(w.dtype, w.cols), w.cols, row.data());
        all.insert(all.end(), row.begin(), row.end());
    }
    return all;
}

inline Session::Session(const TestModel& model, const Options& options) : model_(model), options_(options) {
    backend = create_backend({options.device, options.threads});
    const Program& program = model.program;
    for (const auto& bytes : model.bytes) {
        heaps_.push_back(backend->wrap_host(bytes, nullptr, "weight", HostMemory::any));
        weights_.push_back({heaps_.back().get(), 0, bytes.size()});
    }
    CompileInputs inputs;
    inputs.program = &program;
    inputs.weights = weights_;
    inputs.arena_layout.offsets.assign(program.values.size(), ArenaLayout::kUnplaced);
    uint64_t& bytes = inputs.arena_layout.bytes;
    for (ValueId id = 0; id < program.values.size(); ++id) {
        if (id == program.logits) continue;
        inputs.arena_layout.offsets[id] = bytes;
        const uint64_t rows = program.values[id].rows == Rows::tokens ? options.max_tokens : options.max_outputs;
        bytes += (rows * program.values[id].width * sizeof(float) + 63) / 64 * 64;
    }
    for (const Step& step : program.steps) {
        const auto* write = std::get_if<KvWriteStep>(&step.op);
        if (!options.alias_queries || !write || write->q == kNone) continue;
        inputs.arena_layout.offsets[write->q_out] = inputs.arena_layout.offsets[write->q];
    }
    heaps_.push_back(backend->create_heap(bytes, Storage::exclusive, "arena"));
    inputs.arena = {heaps_.back().get(), 0, bytes};
    inputs.max_tokens = options.max_tokens;
    inputs.max_outputs = options.max_outputs;
    inputs.precision = options.precision.value_or(options.device == "cpu" ? Precision::int8 : Precision::automatic);
    inputs.events = &events;
    inputs.allocator = std::make_shared<SessionAllocator>(
        options.before_allocation, [this](uint64_t bytes, Storage storage, std::string_view label, Contents) {
            return scratch(bytes, storage, label);
        });
    place_kv();
    inputs.kv = layouts_;
    plan = backend->compile(inputs);
}

// Whatever scratch held before must not matter. On Metal the simulated device finds what reads bytes nobody wrote.
inline std::shared_ptr<Heap> Session::scratch(uint64_t bytes, Storage storage, std::string_view label) const {
    auto heap = backend->create_heap(bytes, storage, label, Contents::undefined);
    if (options_.device == "cpu") std::memset(reinterpret_cast<void*>(heap->address()), 0xff, bytes);
    return heap;
}

inline void Session::place_kv() {
    for (const CacheGroup& group : model_.program.groups) {
        layouts_.push_back(KvLayout::of(group, options_.kv));
        const uint64_t bytes = layouts_.back().page_bytes * options_.pages;
        heaps_.push_back(backend->create_heap(bytes, Storage::shared, "kv"));
        // Whatever a page held before must not matter.
        std::memset(heaps_.back()->host(), 0xff, bytes);
        kv_.push_back({heaps_.back().get(), 0, bytes});
        pages_used_.push_back(0);
    }
}

inline PageTableView Session::table(uint32_t sequence, uint32_t group, uint32_t position, uint32_t length) {
    std::vector<uint64_t>& pages = pages_[{sequence, group}];
    while (pages.size() * kPageTokens < position + length) {
        if (pages_used_[group] == options_.pages) throw std::logic_error("the test's pages are used up");
        // From the end, so that neighbours in a table are no neighbours in memory.
        const uint64_t index = options_.pages - 1 - pages_used_[group]++;
        pages.push_back(kv_[group].address() + index * layouts_[group].page_bytes);
    }
    const uint32_t window = model_.program.groups[group].window;
    const uint32_t first = window && position >= window ? (position - window + 1) / kPageTokens : 0;
    return {pages.data() + first, first, static_cast<uint32_t>(pages.size()) - first};
}

inline Batch Session::prepare(const std::vector<RunSpec>& specs, const std::vector<uint32_t>& output_rows) {
    tokens.clear(), runs.clear(), tables.clear();
    for (const RunSpec& spec : specs) {
        const uint32_t length = static_cast<uint32_t>(spec.tokens.size());
        const uint32_t position = lengths_[spec.sequence];
        runs.push_back({static_cast<uint32_t>(tokens.size()), length, position, spec.rope_extended});
        for (uint32_t g = 0; g < layouts_.size(); ++g) tables.push_back(table(spec.sequence, g, position, length));
        tokens.insert(tokens.end(), spec.tokens.begin(), spec.tokens.end());
    }
    outputs = output_rows;
    logits.assign(outputs.size() * model_.program.values[model_.program.logits].width, std::nanf(""));
    return {tokens, runs, tables, outputs, logits.data(), {}, nullptr, {}};
}

inline std::vector<float> Session::forward(const std::vector<RunSpec>& specs, const std::vector<uint32_t>& output_rows,
                                           std::function<bool()> interrupted) {
    Batch batch = prepare(specs, output_rows);
    batch.interrupted = std::move(interrupted);
    submit(batch);
    for (const RunSpec& spec : specs) lengths_[spec.sequence] += static_cast<uint32_t>(spec.tokens.size());
    return logits;
}

}  // namespace metallic::testing
