#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <set>
#include <thread>

#include "executor_kernels.h"

// Running kernels: identity, barriers, collectives, divergence, limits. No access is checked here.
namespace metalsim::test {
namespace {

class ExecutorRun : public testing::Test {
  protected:
    std::unique_ptr<Executor> executor = create_executor(3);
    void expect_clean(Dispatch& dispatch) { EXPECT_TRUE(dispatch.run(*executor)) << texts(executor->take_reports()); }
    Report expect_one(Dispatch& dispatch) {
        EXPECT_FALSE(dispatch.run(*executor));
        std::vector<Report> reports = executor->take_reports();
        EXPECT_EQ(reports.size(), 1U) << texts(reports);
        return reports.empty() ? Report{} : reports.front();
    }
};

void record_identity(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const MetalsimUint3& at = thread->thread_position_in_grid;
    const MetalsimUint3& grid = thread->threads_per_grid;
    argument<MetalsimThread>(arguments, 0)[(uint64_t{at.z} * grid.y + at.y) * grid.x + at.x] = *thread;
    EXPECT_EQ(thread, metalsim_thread());
}

void expect_equal(const MetalsimUint3& a, const MetalsimUint3& b) {
    EXPECT_TRUE(a.x == b.x && a.y == b.y && a.z == b.z)
        << a.x << " " << a.y << " " << a.z << " is not " << b.x << " " << b.y << " " << b.z;
}

void expect_identity(const MetalsimThread& t, const MetalsimUint3& at, Size3 grid, Size3 group) {
    const MetalsimUint3 position = {at.x / group.x, at.y / group.y, at.z / group.z};
    const MetalsimUint3 inside = {at.x % group.x, at.y % group.y, at.z % group.z};
    const MetalsimUint3 size = {std::min(group.x, grid.x - position.x * group.x),
                                std::min(group.y, grid.y - position.y * group.y),
                                std::min(group.z, grid.z - position.z * group.z)};
    const uint32_t index = (inside.z * size.y + inside.y) * size.x + inside.x;
    const uint32_t count = size.x * size.y * size.z;
    const auto dispatched = static_cast<uint32_t>(group.count());
    expect_equal(t.thread_position_in_grid, at);
    expect_equal(t.threads_per_grid, {grid.x, grid.y, grid.z});
    expect_equal(t.grid_size, {grid.x, grid.y, grid.z});
    expect_equal(t.grid_origin, {0, 0, 0});
    expect_equal(t.thread_position_in_threadgroup, inside);
    expect_equal(t.threads_per_threadgroup, size);
    expect_equal(t.dispatch_threads_per_threadgroup, {group.x, group.y, group.z});
    expect_equal(t.threadgroup_position_in_grid, position);
    expect_equal(t.threadgroups_per_grid, {(grid.x + group.x - 1) / group.x, (grid.y + group.y - 1) / group.y,
                                           (grid.z + group.z - 1) / group.z});
    EXPECT_EQ(t.thread_index_in_threadgroup, index);
    EXPECT_EQ(t.thread_index_in_simdgroup, index % 32);
    EXPECT_EQ(t.simdgroup_index_in_threadgroup, index / 32);
    EXPECT_EQ(t.thread_index_in_quadgroup, index % 4);
    EXPECT_EQ(t.quadgroup_index_in_threadgroup, index / 4);
    EXPECT_EQ(t.simdgroups_per_threadgroup, (count + 31) / 32);
    EXPECT_EQ(t.quadgroups_per_threadgroup, (count + 3) / 4);
    EXPECT_EQ(t.dispatch_simdgroups_per_threadgroup, (dispatched + 31) / 32);
    EXPECT_EQ(t.dispatch_quadgroups_per_threadgroup, (dispatched + 3) / 4);
    EXPECT_EQ(t.threads_per_simdgroup, 32U);
    EXPECT_EQ(t.thread_execution_width, 32U);
}

TEST_F(ExecutorRun, ThreadsKnowTheirPlace) {
    const Size3 grids[] = {{1, 1, 1}, {37, 1, 1}, {19, 7, 3}, {64, 4, 2}, {33, 9, 5}};
    const Size3 groups[] = {{1, 1, 1}, {32, 1, 1}, {8, 4, 2}, {16, 16, 1}, {5, 3, 2}};
    for (const Size3& grid : grids) {
        for (const Size3& group : groups) {
            std::vector<MetalsimThread> seen(grid.count());
            std::memset(static_cast<void*>(seen.data()), 0xff, seen.size() * sizeof(MetalsimThread));
            Dispatch dispatch(&record_identity);
            dispatch.buffer(0, seen).threads(grid, group);
            expect_clean(dispatch);
            uint64_t i = 0;
            for (uint32_t z = 0; z < grid.z; ++z) {
                for (uint32_t y = 0; y < grid.y; ++y) {
                    for (uint32_t x = 0; x < grid.x; ++x) expect_identity(seen[i++], {x, y, z}, grid, group);
                }
            }
            if (HasFailure()) return;
        }
    }
}

TEST_F(ExecutorRun, UniformDispatch) {
    std::vector<MetalsimThread> seen(5 * 12 * 3 * 2);
    Dispatch dispatch(&record_identity);
    dispatch.buffer(0, seen).groups({5, 3, 1}, {12, 1, 2});
    expect_clean(dispatch);
    expect_identity(seen.back(), {59, 2, 1}, {60, 3, 2}, {12, 1, 2});
}

// Every thread reads what another wrote before each of many barriers.
void rotate(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const shared = static_cast<uint32_t*>(threadgroup[0]);
    const uint32_t i = thread->thread_index_in_threadgroup;
    const uint32_t count = thread->threads_per_threadgroup.x;
    uint32_t value = i;
    for (int step = 0; step < 20; ++step) {
        shared[i] = value;
        metalsim_threadgroup_barrier(2);
        value = shared[(i + 1) % count];
        metalsim_threadgroup_barrier(2);
    }
    argument<uint32_t>(arguments, 0)[thread->thread_position_in_grid.x] = value;
}

TEST_F(ExecutorRun, BarriersInGroupsOfAllSizes) {
    for (const uint32_t count : {1U, 2U, 31U, 32U, 33U, 100U, 256U, 1000U, 1024U}) {
        std::vector<uint32_t> out(count * 9, ~0U);
        Dispatch dispatch(&rotate);
        dispatch.buffer(0, out).threadgroup(0, 4096).groups({9, 1, 1}, {count, 1, 1});
        expect_clean(dispatch);
        for (uint32_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], (i % count + 20) % count) << count;
    }
}

[[gnu::noinline]] float reduce(float value, float* shared, const MetalsimThread* thread, int depth) {
    if (depth > 0) return reduce(value + 1, shared, thread, depth - 1);
    value = simd_sum(value);
    if (thread->thread_index_in_simdgroup == 0) shared[thread->simdgroup_index_in_threadgroup] = value;
    metalsim_threadgroup_barrier(2);
    float sum = 0;
    for (uint32_t i = 0; i < thread->simdgroups_per_threadgroup; ++i) sum += shared[i];
    metalsim_threadgroup_barrier(2);
    return sum;
}

void nested(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    static const char site = 0;
    auto* const shared = static_cast<float*>(metalsim_threadgroup_storage(&site, 128, 4));
    float sum = 0;
    for (int depth = 0; depth < 4; ++depth) sum += reduce(1, shared, thread, depth);
    argument<float>(arguments, 0)[thread->thread_position_in_grid.x] = sum;
}

TEST_F(ExecutorRun, BarriersAndSumsInNestedCalls) {
    std::vector<float> out(1024 * 4);
    Dispatch dispatch(&nested);
    dispatch.buffer(0, out).groups({4, 1, 1}, {1024, 1, 1});
    expect_clean(dispatch);
    for (const float value : out) ASSERT_EQ(value, 1024.0F * (1 + 2 + 3 + 4));
}

void sum_of_lanes(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t i = thread->thread_position_in_grid.x;
    argument<float>(arguments, 0)[i] = simd_sum(static_cast<float>(i));
    argument<float>(arguments, 1)[i] = quad_sum(static_cast<float>(i));
}

TEST_F(ExecutorRun, SumsOverSimdgroupsAndQuads) {
    std::vector<float> simd(75), quad(75);
    Dispatch dispatch(&sum_of_lanes);
    dispatch.buffer(0, simd).buffer(1, quad).threads({75, 1, 1}, {75, 1, 1});
    expect_clean(dispatch);
    const auto sum = [](uint32_t first, uint32_t last) {
        float total = 0;
        for (uint32_t i = first; i < last; ++i) total += static_cast<float>(i);
        return total;
    };
    for (uint32_t i = 0; i < 75; ++i) {
        ASSERT_EQ(simd[i], sum(i / 32 * 32, std::min(75U, i / 32 * 32 + 32))) << i;
        ASSERT_EQ(quad[i], sum(i / 4 * 4, std::min(75U, i / 4 * 4 + 4))) << i;
    }
}

// Branches, a loop with a different number of turns per lane, and lanes that leave early.
METALSIM_AS_WRITTEN
void diverge(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t lane = thread->thread_index_in_simdgroup;
    auto* const out = argument<uint32_t>(arguments, 0) + lane * 4;
    if (lane % 2 == 0) {
        out[0] = active_mask();
    } else {
        out[0] = active_mask();
    }
    for (uint32_t i = 0; i <= lane; ++i) out[1] = active_mask();
    out[2] = active_mask();
    if (lane >= 20) return;
    out[3] = active_mask();
}

TEST_F(ExecutorRun, DivergedLanesAreInactive) {
    std::vector<uint32_t> out(32 * 4);
    Dispatch dispatch(&diverge);
    dispatch.buffer(0, out).groups({1, 1, 1}, {32, 1, 1});
    expect_clean(dispatch);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        EXPECT_EQ(out[lane * 4], lane % 2 == 0 ? 0x55555555U : 0xaaaaaaaaU);
        EXPECT_EQ(out[lane * 4 + 1], ~0U << lane) << lane;
        EXPECT_EQ(out[lane * 4 + 2], ~0U);
        EXPECT_EQ(out[lane * 4 + 3], lane < 20 ? (1U << 20) - 1 : 0);
    }
}

METALSIM_AS_WRITTEN
void diverge_in_quads(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t lane = thread->thread_index_in_simdgroup;
    float sum = 0;
    if (lane % 4 != 3) sum = quad_sum(static_cast<float>(lane));
    if (lane % 8 < 4) sum += simd_sum(1);
    sum += quad_sum(100);
    argument<float>(arguments, 0)[lane] = sum;
}

TEST_F(ExecutorRun, QuadsDivergeApart) {
    std::vector<float> out(32);
    Dispatch dispatch(&diverge_in_quads);
    dispatch.buffer(0, out).groups({1, 1, 1}, {32, 1, 1});
    expect_clean(dispatch);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        const float base = static_cast<float>(lane / 4 * 4);
        const float expected = (lane % 4 != 3 ? 3 * base + 3 : 0) + (lane % 8 < 4 ? 16.0F : 0.0F) + 400;
        EXPECT_EQ(out[lane], expected) << lane;
    }
}

METALSIM_AS_WRITTEN
void simd_barriers(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const shared = static_cast<uint32_t*>(threadgroup[0]) + thread->simdgroup_index_in_threadgroup * 32;
    const uint32_t lane = thread->thread_index_in_simdgroup;
    uint32_t value = lane;
    // Simdgroups take different numbers of turns.
    for (uint32_t i = 0; i <= thread->simdgroup_index_in_threadgroup; ++i) {
        shared[lane] = value;
        metalsim_simdgroup_barrier(2);
        value = shared[(lane + 1) % 32];
        metalsim_simdgroup_barrier(2);
    }
    argument<uint32_t>(arguments, 0)[thread->thread_position_in_grid.x] = value;
}

TEST_F(ExecutorRun, SimdgroupBarriersHoldOneSimdgroup) {
    std::vector<uint32_t> out(256);
    Dispatch dispatch(&simd_barriers);
    dispatch.buffer(0, out).threadgroup(0, 1024).groups({1, 1, 1}, {256, 1, 1});
    expect_clean(dispatch);
    for (uint32_t i = 0; i < 256; ++i) ASSERT_EQ(out[i], (i % 32 + i / 32 + 1) % 32) << i;
}

METALSIM_AS_WRITTEN
void leaves_before_barrier(const MetalsimArguments*, void* const*, const MetalsimThread* thread) {
    if (thread->thread_index_in_threadgroup == 5) return;
    metalsim_threadgroup_barrier(2);
}

METALSIM_AS_WRITTEN
void two_barriers(const MetalsimArguments*, void* const*, const MetalsimThread* thread) {
    if (thread->thread_index_in_threadgroup < 40) {
        metalsim_threadgroup_barrier(2);
    } else {
        metalsim_threadgroup_barrier(1);
    }
}

METALSIM_AS_WRITTEN
void leaves_before_simd_barrier(const MetalsimArguments*, void* const*, const MetalsimThread* thread) {
    if (thread->thread_index_in_simdgroup == 7) return;
    metalsim_simdgroup_barrier(2);
}

TEST_F(ExecutorRun, ReportsBarrierDivergence) {
    Dispatch ended(&leaves_before_barrier, "ended");
    ended.groups({1, 1, 1}, {64, 1, 1}).scope("forward/block.0");
    Report report = expect_one(ended);
    EXPECT_EQ(report.problem, Problem::barrier_divergence);
    EXPECT_EQ(report.kernel, "ended");
    EXPECT_EQ(report.scope, "forward/block.0");
    EXPECT_NE(report.detail.find("thread (5, 0, 0) has ended"), std::string::npos) << report.text();

    Dispatch apart(&two_barriers, "apart");
    apart.groups({1, 1, 1}, {64, 1, 1});
    report = expect_one(apart);
    EXPECT_EQ(report.problem, Problem::barrier_divergence);
    EXPECT_NE(report.detail.find("thread (40, 0, 0) waits at another"), std::string::npos) << report.text();

    Dispatch simd(&leaves_before_simd_barrier, "simd");
    simd.groups({1, 1, 1}, {32, 1, 1});
    report = expect_one(simd);
    EXPECT_EQ(report.problem, Problem::barrier_divergence);
    EXPECT_NE(report.detail.find("thread (7, 0, 0) has ended"), std::string::npos) << report.text();
}

void many_variables(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    static const char sites[3] = {};
    const uint32_t bytes = *argument<uint32_t>(arguments, 0);
    auto* const a = static_cast<unsigned char*>(metalsim_threadgroup_storage(&sites[0], bytes, 16));
    auto* const b = static_cast<unsigned char*>(metalsim_threadgroup_storage(&sites[1], bytes, 64));
    auto* const c = static_cast<unsigned char*>(threadgroup[3]);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % 64, 0U);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(c) % 16, 0U);
    EXPECT_EQ(threadgroup[0], nullptr);
    for (uint32_t i = thread->thread_index_in_threadgroup; i < bytes; i += 32) a[i] = b[i] = c[i] = 1;
    EXPECT_EQ(a, metalsim_threadgroup_storage(&sites[0], bytes, 16));
    EXPECT_TRUE(a + bytes <= b || b + bytes <= a);
}

TEST_F(ExecutorRun, ThreadgroupMemoryHasALimit) {
    std::vector<uint32_t> bytes = {8192};
    Dispatch dispatch(&many_variables, "variables");
    dispatch.buffer(0, bytes).threadgroup(3, 16384).groups({2, 1, 1}, {32, 1, 1});
    expect_clean(dispatch);
    bytes[0] = 8193;
    EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    bytes[0] = 16;
    dispatch.threadgroup(3, 32768);
    EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    dispatch.threadgroup(2, 16);
    EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    dispatch.threadgroup(2, 0).threadgroup(3, 16);
    expect_clean(dispatch);
}

TEST_F(ExecutorRun, GridsHaveLimits) {
    std::vector<MetalsimThread> seen(4);
    Dispatch dispatch(&record_identity);
    dispatch.buffer(0, seen);
    for (const Size3& threads : {Size3{1025, 1, 1}, Size3{32, 33, 1}, Size3{0, 1, 1}, Size3{1U << 31, 2, 1}}) {
        dispatch.groups({1, 1, 1}, threads);
        EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    }
    dispatch.groups({4, 0, 1}, {1, 1, 1});
    EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    dispatch.groups({1U << 31, 1, 1}, {2, 1, 1});
    EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    dispatch.function().max_total_threads = 3;
    dispatch.groups({1, 1, 1}, {4, 1, 1});
    EXPECT_EQ(expect_one(dispatch).problem, Problem::limit);
    dispatch.groups({1, 1, 1}, {3, 1, 1});
    expect_clean(dispatch);
}

TEST_F(ExecutorRun, ArgumentsAreAligned) {
    alignas(16) static unsigned char bytes[sizeof(MetalsimThread) + 16];
    Dispatch dispatch(&record_identity, "aligned");
    msl::Argument out;
    out.name = "out";
    out.alignment = 4;
    dispatch.function().arguments.push_back(out);
    dispatch.buffer(0, bytes + 2, sizeof(MetalsimThread)).groups({1, 1, 1}, {1, 1, 1});
    const Report report = expect_one(dispatch);
    EXPECT_EQ(report.problem, Problem::misaligned);
    EXPECT_NE(report.detail.find("argument out (buffer 0)"), std::string::npos) << report.text();
    dispatch.buffer(0, bytes + 4, sizeof(MetalsimThread));
    expect_clean(dispatch);
}

void constants(const MetalsimArguments* arguments, void* const*, const MetalsimThread*) {
    argument<unsigned char>(arguments, 0)[0] = metalsim_function_constants()[2];
}

TEST_F(ExecutorRun, FunctionConstantsArePassed) {
    const unsigned char block[] = {1, 2, 42};
    std::vector<unsigned char> out(1);
    Dispatch dispatch(&constants);
    dispatch.buffer(0, out).groups({1, 1, 1}, {1, 1, 1});
    dispatch.arguments().function_constants = block;
    expect_clean(dispatch);
    EXPECT_EQ(out[0], 42);
}

[[gnu::noinline]] uint32_t deep(uint32_t depth, volatile uint32_t* out) {
    volatile unsigned char frame[512];
    frame[depth % 512] = 1;
    if (depth == 0) return 0;
    const uint32_t below = deep(depth - 1, out);
    *out = below + frame[depth % 512];
    return *out;
}

void overflow(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    if (thread->thread_position_in_grid.x != 33) return;
    uint32_t sink = 0;
    *argument<uint32_t>(arguments, 0) = deep(*argument<uint32_t>(arguments, 0), &sink);
}

void wild(const MetalsimArguments*, void* const*, const MetalsimThread* thread) {
    volatile uintptr_t nowhere = 16;
    if (thread->thread_position_in_grid.x == 3) *reinterpret_cast<volatile int*>(nowhere) = 1;
    metalsim_threadgroup_barrier(2);
}

TEST_F(ExecutorRun, FaultsOfTheProcessorBecomeReports) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the sanitizer reports these faults itself";
#endif
    std::vector<uint32_t> depth = {20};
    Dispatch stack(&overflow, "overflow");
    stack.buffer(0, depth).groups({1, 1, 1}, {64, 1, 1});
    expect_clean(stack);
    depth[0] = 100000;
    const Report report = expect_one(stack);
    EXPECT_EQ(report.problem, Problem::limit);
    EXPECT_EQ(report.thread.x, 33U);

    Dispatch pointer(&wild, "wild");
    pointer.groups({1, 1, 1}, {64, 1, 1});
    for (int i = 0; i < 3; ++i) {
        const Report bad = expect_one(pointer);
        EXPECT_EQ(bad.problem, Problem::out_of_bounds);
        EXPECT_EQ(bad.thread.x, 3U);
    }
    std::vector<uint32_t> out(1024);
    Dispatch after(&rotate);
    after.buffer(0, out).threadgroup(0, 4096).groups({1, 1, 1}, {1024, 1, 1});
    expect_clean(after);
}

void count_thread(const MetalsimArguments* arguments, void* const*, const MetalsimThread*) {
    reinterpret_cast<std::atomic<uint32_t>*>(arguments->buffers[0])->fetch_add(1);
}

void which_worker(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const auto id = std::hash<std::thread::id>()(std::this_thread::get_id());
    argument<size_t>(arguments, 0)[thread->threadgroup_position_in_grid.x] = id;
    if (thread->threadgroup_position_in_grid.x % 16 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

TEST_F(ExecutorRun, ThreadgroupsSpreadOverWorkers) {
    std::vector<uint32_t> count(1);
    Dispatch many(&count_thread);
    many.buffer(0, count).groups({300, 20, 5}, {3, 1, 1});
    expect_clean(many);
    EXPECT_EQ(count[0], 300U * 20 * 5 * 3);

    std::vector<size_t> workers(256);
    Dispatch spread(&which_worker);
    spread.buffer(0, workers).groups({256, 1, 1}, {1, 1, 1});
    expect_clean(spread);
    EXPECT_GT(std::set<size_t>(workers.begin(), workers.end()).size(), 1U);
}

void chaos(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    static const char site = 0;
    auto* const shared = static_cast<float*>(metalsim_threadgroup_storage(&site, 1024, 16));
    const uint32_t i = thread->thread_index_in_threadgroup;
    float value = argument<float>(arguments, 0)[thread->thread_position_in_grid.x];
    for (int turn = 0; turn < 6; ++turn) {
        if ((i + static_cast<uint32_t>(turn)) % 3 != 0) value += 0.5F * simd_sum(value);
        shared[i] = value;
        metalsim_threadgroup_barrier(2);
        value = 0.25F * (shared[(i * 7 + 1) % thread->threads_per_threadgroup.x] + quad_sum(value));
        metalsim_threadgroup_barrier(2);
    }
    argument<float>(arguments, 1)[thread->thread_position_in_grid.x] = value;
}

TEST_F(ExecutorRun, ResultsAreTheSameEveryTime) {
    std::vector<float> in(256 * 11), first(in.size()), out(in.size());
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 97) * 0.01F;
    for (int turn = 0; turn < 8; ++turn) {
        const auto fresh = create_executor(static_cast<uint32_t>(turn % 4 + 1));
        Dispatch dispatch(&chaos);
        dispatch.buffer(0, in).buffer(1, out).groups({11, 1, 1}, {256, 1, 1});
        ASSERT_TRUE(dispatch.run(*fresh));
        if (turn == 0) first = out;
        ASSERT_EQ(std::memcmp(first.data(), out.data(), out.size() * sizeof(float)), 0);
    }
}

#if defined(__SANITIZE_THREAD__)
constexpr uint32_t kTurns = 2;  // a switch of fibers costs microseconds there
#else
constexpr uint32_t kTurns = 60;
#endif

TEST_F(ExecutorRun, LaunchesOfSeveralThreadsOverlap) {
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (uint32_t t = 0; t < 6; ++t) {
        threads.emplace_back([&, t] {
            for (uint32_t turn = 0; turn < kTurns; ++turn) {
                const uint32_t count = 1 + (t * 131 + turn * 37) % 300;
                std::vector<uint32_t> out(size_t{count} * 5, ~0U);
                Dispatch dispatch(&rotate);
                dispatch.buffer(0, out).threadgroup(0, 4096).groups({5, 1, 1}, {count, 1, 1});
                if (!dispatch.run(*executor)) ++wrong;
                for (uint32_t i = 0; i < out.size(); ++i) wrong += out[i] != (i % count + 20) % count;
                if (turn % 10 == 0) {
                    Dispatch bad(&leaves_before_barrier);
                    bad.groups({3, 1, 1}, {40, 1, 1});
                    if (bad.run(*executor)) ++wrong;
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(executor->take_reports().size(), 6U * ((kTurns + 9) / 10));
}

TEST(ExecutorReports, SayEverythingOnOneLine) {
    Report report;
    report.problem = Problem::out_of_bounds;
    report.kernel = "matvec";
    report.thread = {1, 2, 3};
    report.buffer = "weights";
    report.offset = 4096;
    report.bytes = 16;
    report.scope = "forward/block.3";
    report.detail = "a read past the end";
    const std::string text = report.text();
    for (const char* part : {"out_of_bounds", "matvec", "(1, 2, 3)", "weights", "4096", "16 bytes", "forward/block.3",
                             "a read past the end"}) {
        EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
    }
    EXPECT_EQ(text.find('\n'), std::string::npos);
    const auto executor = create_executor(1);
    executor->report(report);
    EXPECT_EQ(executor->take_reports().size(), 1U);
    EXPECT_TRUE(executor->take_reports().empty());
}

}  // namespace
}  // namespace metalsim::test
