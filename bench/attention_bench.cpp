// Attention over pages on one core, for each instruction set and cache type: decoding (rows:1) at several lengths of
// history (GB/s of keys and values), and a prompt (rows:512; GFLOP/s over the visible pairs). One iteration is one
// layer; decoding walks through more layers than caches hold. The context states what plain reads of memory reach, the
// counter "read" the share of it.
#include <string>

#include "backend/cpu/isa/vector_kernels.h"
#include "backend/kv_layout.h"
#include "bench_support.h"

namespace metallic::bench {
namespace {

using cpu::AttentionTile;
using cpu::VectorKernels;

constexpr uint32_t kKvHeads = 8;

struct Case {
    KvPair types;
    uint32_t history;  // tokens, the queries' own included
    uint32_t rows;     // 1: decoding
    uint32_t group_heads;
    uint32_t head_size;

    size_t row_floats() const { return size_t{kKvHeads} * group_heads * head_size; }
};

class Layers {
  public:
    Layers(const Case& which, const VectorKernels& kernels) : c_(which), kernels_(kernels) {
        const size_t count = c_.rows > 1 ? 1 : std::max<size_t>(1, kBeyondCaches / layer_bytes());
        std::mt19937 random(1);
        fill_pages(count * pages_per_layer_, random);
        std::normal_distribution<float> normal;
        q_.resize(c_.rows * c_.row_floats());
        for (float& v : q_) v = normal(random);
        out_.resize(q_.size());
        tile_rows_ = std::min(c_.rows, std::max(1u, 128 / c_.group_heads));
        scratch_ = allocate(kernels_.attention_scratch_bytes(tile_rows_, c_.group_heads, c_.head_size));
    }

    size_t layer_bytes() const { return pages_per_layer_ * layout_.page_bytes; }

    void attend(size_t layer) {
        AttentionTile t{};
        t.q_stride = t.out_stride = c_.row_floats();
        t.group_heads = c_.group_heads;
        t.head_size = c_.head_size;
        t.scale = 0.125f;
        t.key_rows = layout_.key_rows;
        t.value_rows = layout_.value_rows;
        t.pages = pages_.data() + (layer * pages_per_layer_) % pages_.size();
        for (uint32_t row = 0; row < c_.rows; row += tile_rows_) {
            t.rows = std::min(tile_rows_, c_.rows - row);
            t.position = c_.history - c_.rows + row;
            for (uint32_t head = 0; head < kKvHeads; ++head) {
                const size_t at = row * c_.row_floats() + size_t{head} * c_.group_heads * c_.head_size;
                t.q = q_.data() + at;
                t.out = out_.data() + at;
                t.keys_offset = layout_.keys(0, head);
                t.values_offset = layout_.values(0, head);
                kernels_.attention(t, scratch_.get());
            }
        }
    }

  private:
    // `count` pages of the same random rows, in random order.
    void fill_pages(size_t count, std::mt19937& random) {
        std::normal_distribution<float> normal;
        std::vector<uint8_t> page(layout_.page_bytes);
        std::vector<float> x(c_.head_size);
        const auto fill = [&](const KvRows& rows, size_t at, size_t end) {
            for (; at < end; at += rows.row_bytes) {
                for (float& v : x) v = normal(random);
                kernels_.store_kv(rows, x.data(), x.size(), page.data() + at);
            }
        };
        fill(layout_.key_rows, 0, layout_.values(0, 0));
        fill(layout_.value_rows, layout_.values(0, 0), page.size());
        memory_ = allocate(count * page.size());
        for (size_t i = 0; i < count; ++i) {
            uint8_t* at = memory_.get() + i * page.size();
            std::memcpy(at, page.data(), page.size());
            pages_.push_back(reinterpret_cast<uintptr_t>(at));
        }
        std::shuffle(pages_.begin(), pages_.end(), random);
    }

    const Case c_;
    const VectorKernels& kernels_;
    const KvLayout layout_ = KvLayout::of({0, kKvHeads, c_.head_size, 1}, c_.types);
    const size_t pages_per_layer_ = (c_.history + kPageTokens - 1) / kPageTokens;
    uint32_t tile_rows_ = 1;
    Memory memory_, scratch_;
    std::vector<uint64_t> pages_;
    std::vector<float> q_, out_;
};

std::string types_name(KvPair types) {
    const std::string keys(dtype_info(types.keys).name), values(dtype_info(types.values).name);
    return keys == values ? keys : keys + "_" + values;
}

void add(const cpu::Isa& isa, const Case& c, double read_gb) {
    const std::string name = std::string("attention/") + isa.name + "/" + types_name(c.types) +
                             "/history:" + std::to_string(c.history) + "/rows:" + std::to_string(c.rows) +
                             "/heads:" + std::to_string(kKvHeads) + "x" + std::to_string(c.group_heads) + "x" +
                             std::to_string(c.head_size);
    const auto run = [c, read_gb, kernels = isa.vector](benchmark::State& state) {
        Layers layers(c, *kernels);
        const double seconds = mean_seconds(state, [&](size_t i) { layers.attend(i); });
        const double pairs = c.rows * (c.history - (c.rows - 1) * 0.5);
        state.counters["GFLOP/s"] = 4e-9 * pairs * static_cast<double>(c.row_floats()) / seconds;
        if (c.rows > 1) return;
        state.counters["GB/s"] = 1e-9 * static_cast<double>(layers.layer_bytes()) / seconds;
        state.counters["read"] = state.counters["GB/s"] / read_gb;
    };
    benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMillisecond);
}

void add_all() {
    const double read_gb = read_bandwidth();
    benchmark::AddCustomContext("read GB/s", std::to_string(read_gb));
    benchmark::AddCustomContext("read GB/s, scattered blocks of 4 KiB", std::to_string(read_bandwidth(4096)));
    for (const cpu::Isa& isa : measured_isas()) {
        for (const KvPair types : {KvPair(DType::F16), KvPair(DType::Q8_0), KvPair(DType::Q4_0),
                                   KvPair(DType::Q8_0, DType::Q4_0), KvPair(DType::BF16), KvPair(DType::F32)}) {
            for (const uint32_t head_size : {64u, 128u}) {
                for (const uint32_t history : {1024u, 4096u, 32768u})
                    add(isa, {types, history, 1, 4, head_size}, read_gb);
                add(isa, {types, 512, 512, 4, head_size}, read_gb);
            }
            add(isa, {types, 4096, 1, 1, 128}, read_gb);
            add(isa, {types, 4096, 1, 8, 64}, read_gb);
        }
    }
}

}  // namespace
}  // namespace metallic::bench

int main(int argc, char** argv) {
    return metallic::bench::run_benchmarks(argc, argv, metallic::bench::add_all);
}
