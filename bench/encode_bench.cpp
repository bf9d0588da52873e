// What one decoding step costs the processor on the Metal backend: checking the batch, filling its memory, encoding and
// committing, of a Llama-like model of 28 layers whose kernels do not run. Processor time of the submitting thread.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"
#include "program/builder.h"
#include "program/planner.h"

#if __has_include(<metalsim/control.h>)
#include <metalsim/control.h>
#endif

namespace metallic {
namespace {

constexpr uint32_t kLayers = 28, kWidth = 1024, kHeads = 16, kKvHeads = 8, kHeadSize = 64, kHidden = 3072;
constexpr uint32_t kVocabulary = 1000, kMaxTokens = 64;

double thread_seconds() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

std::vector<Builder::WeightSource> weight_sources() {
    std::vector<Builder::WeightSource> sources{{"token_embd", DType::Q6_K, kWidth, kVocabulary},
                                               {"output_norm", DType::F32, kWidth}};
    for (uint32_t i = 0; i < kLayers; ++i) {
        const std::string layer = "blk." + std::to_string(i) + ".";
        const auto add = [&](const char* name, DType dtype, uint64_t cols, uint64_t rows) {
            sources.push_back({layer + name, dtype, cols, rows});
        };
        add("attn_norm", DType::F32, kWidth, 1);
        add("attn_q", DType::Q4_K, kWidth, kHeads * kHeadSize);
        add("attn_k", DType::Q4_K, kWidth, kKvHeads * kHeadSize);
        add("attn_v", DType::Q6_K, kWidth, kKvHeads * kHeadSize);  // of another type, as in Q4_K_M files
        add("attn_output", DType::Q4_K, kHeads * kHeadSize, kWidth);
        add("ffn_norm", DType::F32, kWidth, 1);
        add("ffn_gate", DType::Q4_K, kWidth, kHidden);
        add("ffn_up", DType::Q4_K, kWidth, kHidden);
        add("ffn_down", DType::Q6_K, kHidden, kWidth);
    }
    return sources;
}

ValueId attention_block(Builder& b, const std::string& layer, ValueId x, RopeId rope, uint32_t group) {
    b.enter_scope("attention");
    const ValueId h = b.rms_norm(x, b.weight(layer + "attn_norm"), 1e-5f, kWidth);
    const ValueId q = b.rope(b.linear(h, b.weight(layer + "attn_q"), {}), rope, kHeadSize);
    const ValueId k = b.rope(b.linear(h, b.weight(layer + "attn_k"), {}), rope, kHeadSize);
    const ValueId v = b.linear(h, b.weight(layer + "attn_v"), {});
    const ValueId mixed = b.attention(q, k, v, group, kHeads, 0.125f, 0.0f, {});
    const ValueId out = b.add(x, b.linear(mixed, b.weight(layer + "attn_output"), {}));
    b.leave_scope();
    return out;
}

ValueId feed_forward_block(Builder& b, const std::string& layer, ValueId x) {
    b.enter_scope("feed_forward");
    const ValueId h = b.rms_norm(x, b.weight(layer + "ffn_norm"), 1e-5f, kWidth);
    const ValueId gate = b.linear(h, b.weight(layer + "ffn_gate"), {});
    const ValueId up = b.linear(h, b.weight(layer + "ffn_up"), {});
    const ValueId active = b.gated_activation(Activation::silu, gate, up);
    const ValueId out = b.add(x, b.linear(active, b.weight(layer + "ffn_down"), {}));
    b.leave_scope();
    return out;
}

Program llama_like() {
    Builder b("bench", weight_sources());
    b.enter_scope("forward");
    RopeTable table;
    table.dims = kHeadSize;
    table.base.inverse_frequencies.assign(kHeadSize / 2, 0.1f);
    const RopeId rope = b.rope_table(table);
    const uint32_t group = b.cache_group(kKvHeads, kHeadSize, 0);
    ValueId x = b.embedding(b.weight("token_embd"), 1.0f);
    for (uint32_t i = 0; i < kLayers; ++i) {
        const std::string layer = "blk." + std::to_string(i) + ".";
        b.enter_scope("block." + std::to_string(i));
        x = attention_block(b, layer, x, rope, group);
        x = feed_forward_block(b, layer, x);
        b.leave_scope();
    }
    x = b.rms_norm(x, b.weight("output_norm"), 1e-5f, kWidth);
    b.output(b.linear(x, b.weight("token_embd"), {}));
    b.leave_scope();
    return plan_program(b.finish());
}

// The model, compiled, with a sequence of `length` tokens in the cache and one token to come.
class Decoder {
  public:
    explicit Decoder(uint32_t length) : backend_(create_backend({"metal", 0})), program_(llama_like()) {
        for (const Weight& weight : program_.weights) {
            const uint64_t bytes = row_bytes(weight.dtype, weight.cols) * weight.rows;
            weights_.push_back({heap(bytes), 0, bytes});
        }
        const KvLayout layout = KvLayout::of(program_.groups[0], DType::F16);
        const uint32_t pages = length / kPageTokens + 1;
        Heap* const kv = heap(layout.page_bytes);
        pages_.assign(pages, kv->address());  // the same page over and over: nobody reads it
        CompileInputs inputs;
        inputs.program = &program_;
        inputs.weights = weights_;
        inputs.kv = {&layout, 1};
        inputs.arena_layout = layout_arena(program_, kMaxTokens, 1);
        inputs.arena = {heap(inputs.arena_layout.bytes), 0, inputs.arena_layout.bytes};
        inputs.max_tokens = kMaxTokens;
        inputs.max_outputs = 1;
        inputs.events = &events_;
        plan_ = backend_->compile(inputs);
        run_ = {0, 1, length, false};
        table_ = {pages_.data(), 0, pages};
        logits_.resize(kVocabulary);
    }

    // Seconds of the submission.
    double step() {
        const Batch batch{{&token_, 1}, {&run_, 1}, {&table_, 1}, {&output_, 1}, logits_.data(), {}, nullptr, {}};
        const double start = thread_seconds();
        const Ticket ticket = backend_->submit(*plan_, batch);
        const double seconds = thread_seconds() - start;
        backend_->wait(ticket);
        return seconds;
    }

  private:
    Heap* heap(uint64_t bytes) {
        heaps_.push_back(backend_->create_heap(bytes, Storage::shared, "bench"));
        return heaps_.back().get();
    }

    std::unique_ptr<Backend> backend_;
    const Program program_;
    std::vector<std::shared_ptr<Heap>> heaps_;
    std::vector<BufferView> weights_;
    std::vector<uint64_t> pages_;
    EventRing events_{2};
    std::unique_ptr<Plan> plan_;
    int32_t token_ = 1;
    uint32_t output_ = 0;
    Run run_;
    PageTableView table_;
    std::vector<float> logits_;
};

void encode_a_token(benchmark::State& state) {
#if __has_include(<metalsim/control.h>)
    metalsim::set_mode(metalsim::Mode::none);
#endif
    std::unique_ptr<Decoder> decoder;
    try {
        decoder = std::make_unique<Decoder>(static_cast<uint32_t>(state.range(0)));
        for (int i = 0; i < 10; ++i) decoder->step();
    } catch (const Error& error) {
        state.SkipWithError(error.what());
        return;
    }
#if __has_include(<metalsim/control.h>)
    const metalsim::Statistics before = metalsim::statistics();
#endif
    for (auto _ : state) state.SetIterationTime(decoder->step());
#if __has_include(<metalsim/control.h>)
    const metalsim::Statistics after = metalsim::statistics();
    const double steps = static_cast<double>(state.iterations());
    state.counters["dispatches"] = static_cast<double>(after.dispatches - before.dispatches) / steps;
    state.counters["barriers"] = static_cast<double>(after.barriers - before.barriers) / steps;
    state.counters["retains"] = static_cast<double>(after.retains - before.retains) / steps;
#endif
}
BENCHMARK(encode_a_token)->UseManualTime()->Unit(benchmark::kMicrosecond)->Arg(100)->Arg(4000)->Arg(32000);

}  // namespace
}  // namespace metallic

BENCHMARK_MAIN();
