// Attention over pages on one core: decoding at several lengths of history (GB/s of keys and values read, beside what a
// plain read of memory reaches) and prompts (GFLOP/s over the visible pairs), for each cache type and instruction set.
//     attention_bench [--isa NAME] [--quick] [--json FILE]
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/isa/select.h"
#include "backend/cpu/isa/vector_kernels.h"
#include "backend/kv_layout.h"

namespace {

using namespace metallic;
using namespace metallic::cpu;

constexpr size_t kBeyondCaches = size_t{192} << 20;

struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
};
using Memory = std::unique_ptr<uint8_t, Free>;
Memory allocate(size_t bytes) {
    constexpr size_t kHuge = size_t{2} << 20;
    const size_t whole = (bytes + kHuge - 1) / kHuge * kHuge;
    Memory memory(static_cast<uint8_t*>(std::aligned_alloc(kHuge, whole)));
    if (!memory) {
        std::fprintf(stderr, "no memory for %zu bytes\n", bytes);
        std::exit(1);
    }
#if defined(MADV_HUGEPAGE)
    madvise(memory.get(), whole, MADV_HUGEPAGE);
#endif
    return memory;
}

// Of this thread's processor time, which other work on the machine disturbs less than the wall clock.
double seconds_now() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

template <class F>
double least_seconds(int repeats, F f) {
    double least = 1e30;
    for (int i = 0; i < repeats; ++i) {
        const double start = seconds_now();
        f();
        least = std::min(least, seconds_now() - start);
    }
    return least;
}

// GB/s of plain reads: of all memory in order, or of blocks in random order, each prefetched while the one before is
// read, which is the most that attention over scattered pages can reach.
double read_bandwidth(size_t block) {
    const Memory memory = allocate(kBeyondCaches);
    std::memset(memory.get(), 1, kBeyondCaches);
    std::vector<const uint8_t*> blocks;
    for (size_t at = 0; at < kBeyondCaches; at += block) blocks.push_back(memory.get() + at);
    std::mt19937 random(1);
    if (block < kBeyondCaches) std::shuffle(blocks.begin(), blocks.end(), random);
    volatile uint64_t sink = 0;
    const double seconds = least_seconds(5, [&] {
        uint64_t sums[32] = {};
        for (size_t i = 0; i < blocks.size(); ++i) {
            const auto* words = reinterpret_cast<const uint64_t*>(blocks[i]);
            const uint8_t* next = i + 1 < blocks.size() ? blocks[i + 1] : nullptr;
            for (size_t w = 0; w < block / 8; w += 32) {
                for (size_t line = 0; next != nullptr && line < 256; line += 64) {
                    __builtin_prefetch(next + 8 * w + line, 0, 2);
                }
                for (size_t k = 0; k < 32; ++k) sums[k] += words[w + k];
            }
        }
        sink = std::accumulate(sums, sums + 32, uint64_t{0});
    });
    return static_cast<double>(kBeyondCaches) / seconds / 1e9;
}

struct Case {
    DType dtype;
    uint32_t history;  // tokens, the queries' own included
    uint32_t rows;     // 1: decoding
    uint32_t kv_heads;
    uint32_t group_heads;
    uint32_t head_size;
};

struct Result {
    double milliseconds;  // per layer
    double gigabytes;     // per second, of keys and values
    double gigaflops;     // per second
};

class Bench {
  public:
    Bench(const Case& which, const VectorKernels& kernels) : c_(which), kernels_(kernels) {
        pages_per_layer_ = (c_.history + kPageTokens - 1) / kPageTokens;
        layout_ = KvLayout::of({0, c_.kv_heads, c_.head_size, 1}, c_.dtype);
        const size_t layer_bytes = pages_per_layer_ * layout_.page_bytes;
        layers_ = c_.rows > 1 ? 1 : std::max<size_t>(1, kBeyondCaches / layer_bytes);
        const size_t count = layers_ * pages_per_layer_;
        memory_ = allocate(count * layout_.page_bytes);
        std::mt19937 random(1);
        std::normal_distribution<float> normal;
        std::vector<uint8_t> page(layout_.page_bytes);
        std::vector<float> x(c_.head_size);
        for (size_t at = 0; at < page.size(); at += layout_.row_bytes) {
            for (float& v : x) v = normal(random);
            kernels_.store_kv(c_.dtype, x.data(), x.size(), page.data() + at);
        }
        std::vector<size_t> order(count);
        std::iota(order.begin(), order.end(), size_t{0});
        std::shuffle(order.begin(), order.end(), random);
        for (const size_t place : order) {
            uint8_t* at = memory_.get() + place * layout_.page_bytes;
            std::memcpy(at, page.data(), page.size());
            pages_.push_back(reinterpret_cast<uintptr_t>(at));
        }
        q_.resize(size_t{c_.rows} * stride());
        for (float& v : q_) v = normal(random);
        out_.resize(q_.size());
        tile_rows_ = std::min(c_.rows, std::max(1u, 128 / c_.group_heads));
        scratch_ = allocate(kernels_.attention_scratch_bytes(tile_rows_, c_.group_heads, c_.head_size));
    }

    Result run(int repeats) {
        const double seconds = least_seconds(repeats,
                                             [this] {
                                                 for (size_t layer = 0; layer < layers_; ++layer) one_layer(layer);
                                             }) /
                               static_cast<double>(layers_);
        const double pairs = static_cast<double>(c_.rows) * (c_.history - (c_.rows - 1) * 0.5);
        const double flops = 4.0 * pairs * c_.kv_heads * c_.group_heads * c_.head_size;
        const double bytes = static_cast<double>(pages_per_layer_) * static_cast<double>(layout_.page_bytes);
        return {seconds * 1e3, bytes / seconds / 1e9, flops / seconds / 1e9};
    }

  private:
    size_t stride() const { return size_t{c_.kv_heads} * c_.group_heads * c_.head_size; }

    void one_layer(size_t layer) {
        AttentionTile t{};
        t.q_stride = t.out_stride = stride();
        t.group_heads = c_.group_heads;
        t.head_size = c_.head_size;
        t.scale = 0.125f;
        t.kv_dtype = c_.dtype;
        t.kv_row_bytes = layout_.row_bytes;
        t.pages = pages_.data() + layer * pages_per_layer_;
        for (uint32_t row = 0; row < c_.rows; row += tile_rows_) {
            t.rows = std::min(tile_rows_, c_.rows - row);
            t.position = c_.history - c_.rows + row;
            for (uint32_t head = 0; head < c_.kv_heads; ++head) {
                const size_t at = row * stride() + size_t{head} * c_.group_heads * c_.head_size;
                t.q = q_.data() + at;
                t.out = out_.data() + at;
                t.keys_offset = layout_.keys(0, head);
                t.values_offset = layout_.values(0, head);
                kernels_.attention(t, scratch_.get());
            }
        }
    }

    const Case c_;
    const VectorKernels& kernels_;
    KvLayout layout_;
    size_t layers_ = 1, pages_per_layer_ = 0;
    uint32_t tile_rows_ = 1;
    Memory memory_, scratch_;
    std::vector<uint64_t> pages_;
    std::vector<float> q_, out_;
};

std::vector<Case> cases(bool quick) {
    std::vector<Case> all;
    for (const DType dtype : {DType::F16, DType::Q8_0, DType::BF16, DType::F32}) {
        for (const uint32_t history : {1024u, 4096u, 32768u}) {
            if (quick && history != 4096) continue;
            for (const uint32_t head_size : {64u, 128u}) all.push_back({dtype, history, 1, 8, 4, head_size});
        }
        if (!quick) {
            all.push_back({dtype, 4096, 1, 8, 1, 128});
            all.push_back({dtype, 4096, 1, 8, 8, 64});
        }
        all.push_back({dtype, 512, 512, 8, 4, 64});
        all.push_back({dtype, 512, 512, 8, 4, 128});
    }
    return all;
}

void write_json(const char* path, const std::string& rows, double bandwidth, double scattered) {
    FILE* file = std::fopen(path, "w");
    if (file == nullptr) {
        std::fprintf(stderr, "cannot write %s\n", path);
        std::exit(1);
    }
    std::fprintf(file, "{\"read_gb_s\": %.2f, \"scattered_read_gb_s\": %.2f, \"results\": [%s]}\n", bandwidth,
                 scattered, rows.c_str());
    std::fclose(file);
}

}  // namespace

int main(int argc, char** argv) {
    const char* json = nullptr;
    std::string wanted;
    bool quick = false;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--quick") {
            quick = true;
        } else if (argument == "--isa" && i + 1 < argc) {
            wanted = argv[++i];
        } else if (argument == "--json" && i + 1 < argc) {
            json = argv[++i];
        } else {
            std::fprintf(stderr, "usage: %s [--isa NAME] [--quick] [--json FILE]\n", argv[0]);
            return 2;
        }
    }
    const double bandwidth = read_bandwidth(kBeyondCaches), scattered = read_bandwidth(4096);
    std::printf("plain read: %.1f GB/s, of scattered blocks of 4 KiB: %.1f GB/s\n", bandwidth, scattered);
    std::string rows;
    for (const Isa& isa : supported_isas()) {
        if (!wanted.empty() && wanted != isa.name) continue;
        if (wanted.empty() && supported_isas().size() > 1 && std::string(isa.name) == "portable") continue;
        for (const Case& c : cases(quick)) {
            const Result r = Bench(c, *isa.vector).run(c.rows > 1 ? 7 : 4);
            char line[512];
            std::snprintf(
                line, sizeof line,
                "{\"isa\": \"%s\", \"kv\": \"%s\", \"history\": %u, \"rows\": %u, \"kv_heads\": %u, "
                "\"group\": %u, \"head_size\": %u, \"ms_per_layer\": %.4f, \"gb_s\": %.2f, \"of_read\": %.2f, "
                "\"gflop_s\": %.2f}",
                isa.name, std::string(dtype_info(c.dtype).name).c_str(), c.history, c.rows, c.kv_heads, c.group_heads,
                c.head_size, r.milliseconds, r.gigabytes, r.gigabytes / bandwidth, r.gigaflops);
            std::printf("%s\n", line);
            std::fflush(stdout);
            rows += std::string(rows.empty() ? "" : ",\n") + line;
        }
    }
    if (rows.empty()) {
        std::fprintf(stderr, "this processor or build has no %s\n", wanted.c_str());
        return 1;
    }
    if (json != nullptr) write_json(json, rows, bandwidth, scattered);
    return 0;
}
