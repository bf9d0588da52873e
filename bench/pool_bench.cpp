// Costs of the pool and of page tables: what a sequence pays to grow.
#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <vector>

#include "fake_backend.h"
#include "kv/sequence.h"
#include "memory/pool.h"

namespace metallic {
namespace {

// Sizes as a model takes them, in an order that nothing can predict: from a row of logits to a slab of pages.
std::vector<uint64_t> mixed_sizes() {
    std::vector<uint64_t> sizes(4096);
    std::mt19937 random(1);
    for (uint64_t& bytes : sizes) bytes = (uint64_t{1} << (8 + random() % 12)) + random() % 4096;
    return sizes;
}

// `count` allocations of mixed sizes, every other one freed again: heaps with holes.
std::vector<Allocation> fill_with_holes(Pool& pool, int64_t count) {
    std::vector<Allocation> held;
    const std::vector<uint64_t> sizes = mixed_sizes();
    for (int64_t i = 0; i < count; ++i) {
        held.push_back(pool.allocate_bytes(sizes[static_cast<size_t>(i) % sizes.size()], Tag::kv, "others"));
    }
    for (size_t i = 0; i < held.size(); i += 2) held[i].reset();
    return held;
}

// One allocation and its release, the lock and all statistics included, among others that stay.
void allocate_and_free(benchmark::State& state) {
    Pool pool(std::make_shared<test::FakeBackend>(), 0);
    const std::vector<Allocation> others = fill_with_holes(pool, state.range(0));
    const std::vector<uint64_t> sizes = mixed_sizes();
    pool.allocate_bytes(1 << 20, Tag::kv, "warm").reset();
    size_t turn = 0;
    for (auto _ : state) {
        const Allocation allocation = pool.allocate_bytes(sizes[turn++ % sizes.size()], Tag::kv, "bench");
        benchmark::DoNotOptimize(allocation.view().offset);
    }
}
BENCHMARK(allocate_and_free)->Arg(0)->Arg(100)->Arg(2000)->Arg(20000);

// Allocations live for a while: each takes the place of one of 256, chosen at random.
void replace_one_of_many(benchmark::State& state) {
    Pool pool(std::make_shared<test::FakeBackend>(), 0);
    const std::vector<uint64_t> sizes = mixed_sizes();
    std::vector<Allocation> held(256);
    std::mt19937 random(2);
    std::vector<uint8_t> places(4096);
    for (uint8_t& place : places) place = static_cast<uint8_t>(random());
    size_t turn = 0;
    const auto replace = [&] {
        Allocation& place = held[places[turn % places.size()]];
        place.reset();
        place = pool.allocate_bytes(sizes[(turn * 7) % sizes.size()], Tag::activations, "bench");
        ++turn;
    };
    for (int i = 0; i < 100'000; ++i) replace();
    for (auto _ : state) replace();
    state.counters["fragmentation"] = pool.statistics().fragmentation();
    state.counters["used of heaps"] =
        static_cast<double>(pool.statistics().current()) / static_cast<double>(pool.statistics().heap_bytes);
}
BENCHMARK(replace_one_of_many);

// What reading the statistics costs while others wait for the lock.
void read_statistics(benchmark::State& state) {
    Pool pool(std::make_shared<test::FakeBackend>(), 0);
    const std::vector<Allocation> others = fill_with_holes(pool, state.range(0));
    for (auto _ : state) benchmark::DoNotOptimize(pool.statistics());
}
BENCHMARK(read_statistics)->Arg(100)->Arg(20000);

// Pages of a model of 16 layers, 8 kv heads of 64, F16: 1 MiB each.
const KvLayout kLayout = KvLayout::of({0, 8, 64, 16}, DType::F16);

void take_and_give_a_page(benchmark::State& state) {
    auto backend = std::make_shared<test::FakeBackend>();
    Pool pool(backend, 0);
    PageStore store(pool, *backend, kLayout, "kv");
    std::vector<uint64_t> held;
    for (int i = 0; i < 63; ++i) held.push_back(store.take());
    for (auto _ : state) {
        const uint64_t page = store.take();
        benchmark::DoNotOptimize(page);
        store.give(page);
    }
    for (const uint64_t page : held) store.give(page);
}
BENCHMARK(take_and_give_a_page);

// One page, as a context of 131,072 tokens takes them: slabs grow with what is held.
void append_a_page(benchmark::State& state) {
    auto backend = std::make_shared<test::FakeBackend>();
    Pool pool(backend, 0);
    PageStore store(pool, *backend, KvLayout::of({0, 1, 32, 1}, DType::F16), "kv");
    std::vector<uint64_t> pages;
    pages.reserve(4096);
    for (auto _ : state) {
        pages.push_back(store.take());
        if (pages.size() < 4096) continue;
        state.PauseTiming();
        for (const uint64_t page : pages) store.give(page);
        pages.clear();
        state.ResumeTiming();
    }
    for (const uint64_t page : pages) store.give(page);
}
BENCHMARK(append_a_page);

// One token: reserve and commit, as each decoding step does. Most of them find room in the last page.
void append_a_token(benchmark::State& state) {
    auto backend = std::make_shared<test::FakeBackend>();
    Pool pool(backend, 0);
    const KvLayout small = KvLayout::of({0, 1, 32, 1}, DType::F16);
    PageStore full(pool, *backend, small, "kv"), windowed(pool, *backend, small, "kv");
    Sequence sequence({&full, &windowed}, {0, 1024});
    const int32_t token[] = {7};
    for (auto _ : state) {
        const uint32_t length = sequence.length() + 1;
        sequence.reserve(length);
        sequence.commit(1, token);
        if (length == 100000) sequence.clear();
    }
}
BENCHMARK(append_a_token);

}  // namespace
}  // namespace metallic

BENCHMARK_MAIN();
