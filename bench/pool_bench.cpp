// Costs of the pool and of page tables: what a sequence pays to grow.
#include <benchmark/benchmark.h>

#include <memory>
#include <vector>

#include "fake_backend.h"
#include "kv/sequence.h"
#include "memory/pool.h"

namespace metallic {
namespace {

// One allocation and its release, among `range(0)` others of mixed sizes that stay.
void allocate_and_free(benchmark::State& state) {
    Pool pool(std::make_shared<test::FakeBackend>(), 0);
    std::vector<Allocation> others;
    for (int64_t i = 0; i < state.range(0); ++i) {
        others.push_back(pool.allocate_bytes(1024 * (1 + static_cast<uint64_t>(i) % 7), Tag::kv, "others"));
    }
    for (size_t i = 0; i < others.size(); i += 2) others[i].reset();
    for (auto _ : state) {
        const Allocation allocation = pool.allocate_bytes(3000, Tag::activations, "bench");
        benchmark::DoNotOptimize(allocation.view().offset);
    }
}
BENCHMARK(allocate_and_free)->Arg(0)->Arg(100)->Arg(2000);

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
