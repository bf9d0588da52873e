#pragma once

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cpu/isa/select.h"

// What the benchmarks of the CPU kernels share. Everything is measured on one thread, in the processor time of that
// thread, which other work on the machine disturbs less than the wall clock.
namespace metallic::bench {

inline constexpr size_t kBeyondCaches = size_t{192} << 20;
inline constexpr std::align_val_t kHugePage{size_t{2} << 20};

struct Free {
    void operator()(uint8_t* p) const { ::operator delete(p, kHugePage); }
};
using Memory = std::unique_ptr<uint8_t, Free>;

// In huge pages where the system has them.
inline Memory allocate(size_t bytes) {
    Memory memory(static_cast<uint8_t*>(::operator new(bytes, kHugePage)));
#if defined(MADV_HUGEPAGE)
    madvise(memory.get(), bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

inline double thread_seconds() {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Billions per second at best, of many runs of f, which does `amount` of work.
template <class F>
double best_giga(double amount, F f) {
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 30; ++i) {
        const double start = thread_seconds();
        f();
        least = std::min(least, thread_seconds() - start);
    }
    return 1e-9 * amount / least;
}

// Runs f(i) for i = 0, 1, ... and returns the mean seconds of one.
template <class F>
double mean_seconds(benchmark::State& state, F f) {
    size_t i = 0;
    const double start = thread_seconds();
    for (auto _ : state) f(i++);
    return (thread_seconds() - start) / static_cast<double>(state.iterations());
}

// GB/s of plain reads: of all memory in order, or of blocks in random order, each prefetched while the one before is
// read, which is the most that attention over scattered pages can reach.
inline double read_bandwidth(size_t block = kBeyondCaches) {
    const Memory memory = allocate(kBeyondCaches);
    std::memset(memory.get(), 1, kBeyondCaches);
    std::vector<const uint8_t*> blocks;
    for (size_t at = 0; at < kBeyondCaches; at += block) blocks.push_back(memory.get() + at);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(1));
    return best_giga(kBeyondCaches, [&] {
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
        benchmark::DoNotOptimize(std::accumulate(sums, sums + 32, uint64_t{0}));
    });
}

// The instruction set that METALLIC_CPU_ISA names; without it all, but portable only where there is no other.
inline std::vector<cpu::Isa> measured_isas() {
    const char* wanted = std::getenv("METALLIC_CPU_ISA");
    std::vector<cpu::Isa> isas;
    for (const cpu::Isa& isa : cpu::supported_isas()) {
        const std::string_view name = isa.name;
        if (wanted ? name == wanted : name != "portable" || cpu::supported_isas().size() == 1) isas.push_back(isa);
    }
    return isas;
}

// main(): registers what `add_all` adds and runs what the command line selects.
inline int run_benchmarks(int argc, char** argv, void (*add_all)()) {
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    add_all();
    const size_t run = benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return run == 0;
}

}  // namespace metallic::bench
