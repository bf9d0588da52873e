#include <benchmark/benchmark.h>

#include <vector>

#include "executor/executor.h"
#include "executor_kernels.h"

namespace metalsim::test {
namespace {

constexpr uint32_t kRepeats = 1000;

void empty(const MetalsimArguments*, void* const*, const MetalsimThread*) {}

void nothing(const void* const*, void* const*, uint32_t, const void*) {}

void switches(const MetalsimArguments*, void* const*, const MetalsimThread*) {
    for (uint32_t i = 0; i < kRepeats; ++i) metalsim_simdgroup_collective(&nothing, nullptr, nullptr, nullptr);
}

void sums(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    float value = static_cast<float>(thread->thread_index_in_simdgroup);
    for (uint32_t i = 0; i < kRepeats; ++i) value = simd_sum(value) * 0.03125f;
    static_cast<float*>(arguments->buffers[0])[thread->thread_position_in_grid.x] = value;
}

void barriers(const MetalsimArguments*, void* const*, const MetalsimThread*) {
    for (uint32_t i = 0; i < kRepeats; ++i) metalsim_threadgroup_barrier(2);
}

void per_item(benchmark::State& state, const char* name, double items) {
    state.counters[name] =
        benchmark::Counter(items, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

// A collective that does nothing: 32 switches and the bookkeeping around them.
void fiber_switch(benchmark::State& state) {
    const auto executor = create_executor(1);
    Dispatch dispatch(&switches);
    dispatch.groups({1, 1, 1}, {32, 1, 1});
    for (auto _ : state) dispatch.run(*executor);
    per_item(state, "s_per_switch", kRepeats * 32.0);
}
BENCHMARK(fiber_switch);

void simd_sum_of_32_lanes(benchmark::State& state) {
    const auto executor = create_executor(1);
    std::vector<float> out(256);
    Dispatch dispatch(&sums);
    dispatch.buffer(0, out).groups({1, 1, 1}, {static_cast<uint32_t>(state.range(0)), 1, 1});
    for (auto _ : state) dispatch.run(*executor);
    per_item(state, "s_per_simd_sum", kRepeats * static_cast<double>(state.range(0)) / 32);
}
BENCHMARK(simd_sum_of_32_lanes)->Arg(32)->Arg(256);

void threadgroup_barrier(benchmark::State& state) {
    const auto executor = create_executor(1);
    Dispatch dispatch(&barriers);
    dispatch.groups({1, 1, 1}, {static_cast<uint32_t>(state.range(0)), 1, 1});
    for (auto _ : state) dispatch.run(*executor);
    per_item(state, "s_per_thread_and_barrier", kRepeats * static_cast<double>(state.range(0)));
}
BENCHMARK(threadgroup_barrier)->Arg(32)->Arg(256)->Arg(1024);

// One thread; then what a thread costs.
void empty_dispatch(benchmark::State& state) {
    const auto executor = create_executor(static_cast<uint32_t>(state.range(0)));
    Dispatch dispatch(&empty);
    dispatch.groups({static_cast<uint32_t>(state.range(1)), 1, 1}, {static_cast<uint32_t>(state.range(2)), 1, 1});
    for (auto _ : state) dispatch.run(*executor);
    per_item(state, "s_per_thread", static_cast<double>(state.range(1) * state.range(2)));
}
BENCHMARK(empty_dispatch)
    ->ArgNames({"workers", "groups", "threads"})
    ->Args({1, 1, 1})
    ->Args({2, 1, 1})
    ->Args({2, 2, 1})
    ->Args({1, 64, 256})
    ->Args({2, 64, 256})
    ->UseRealTime();

// Every thread reads and adds up columns of a matrix, as a matrix-vector product does.
void checked_reads(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const auto* const in = argument<float>(arguments, 0) + thread->thread_position_in_grid.x;
    float sum = 0;
    for (uint32_t i = 0; i < kRepeats; ++i) sum += get(in + uint64_t{i} * 256);
    put(argument<float>(arguments, 1) + thread->thread_position_in_grid.x, sum);
}

void checked_copies(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t first = thread->thread_position_in_grid.x;
    for (uint32_t i = 0; i < kRepeats; ++i) {
        const uint64_t at = uint64_t{i} * 256 + first;
        put(argument<float>(arguments, 1) + at, get(argument<float>(arguments, 0) + at));
    }
}

void checked_threadgroup(const MetalsimArguments*, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const memory = static_cast<float*>(threadgroup[0]);
    const uint32_t i = thread->thread_index_in_threadgroup;
    put(memory + i, 1.0F);
    for (uint32_t turn = 0; turn < kRepeats / 10; ++turn) {
        metalsim_threadgroup_barrier(2);
        float sum = 0;
        for (uint32_t k = 1; k < 10; ++k) sum += get(memory + (i + k) % 256);
        metalsim_threadgroup_barrier(2);
        put(memory + i, sum);
    }
}

void checked(benchmark::State& state, MetalsimKernel kernel, double accesses) {
    const auto executor = create_executor(1);
    std::vector<float> in(kRepeats * 256), out(kRepeats * 256);
    for (auto* values : {&in, &out}) {
        Memory::Region region;
        region.base = values->data();
        region.bytes = values->size() * sizeof(float);
        region.label = "values";
        region.initialised = true;
        executor->memory().add(region);
    }
    Dispatch dispatch(kernel);
    dispatch.buffer(0, in).buffer(1, out).threadgroup(0, 1024).groups({1, 1, 1}, {256, 1, 1});
    for (auto _ : state) {
        if (!dispatch.run(*executor)) state.SkipWithError("reported");
        executor->order();
    }
    per_item(state, "s_per_access", accesses);
}
void checked_device_read(benchmark::State& state) {
    checked(state, &checked_reads, kRepeats * 256.0);
}
void checked_device_copy(benchmark::State& state) {
    checked(state, &checked_copies, kRepeats * 512.0);
}
void checked_threadgroup_memory(benchmark::State& state) {
    checked(state, &checked_threadgroup, kRepeats * 256.0);
}
BENCHMARK(checked_device_read);
BENCHMARK(checked_device_copy);
BENCHMARK(checked_threadgroup_memory);

}  // namespace
}  // namespace metalsim::test

BENCHMARK_MAIN();
