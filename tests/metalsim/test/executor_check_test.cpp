#include "executor_check.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <thread>

// Every check: a planted fault is reported with its kernel, thread, buffer, offset and scope, and the same kernel
// without the fault is not.
namespace metalsim::test {
namespace {

// ---- where ----

TEST_F(ExecutorCheck, OutOfBoundsOfABuffer) {
    Buffer in(*executor, "in"), out(*executor, "out", false, false, 2 * kCount);
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, in.at(), kCount).buffer(1, out.at(), 2 * kCount).threads({kCount / 4, 1, 1}, {64, 1, 1});
    expect_clean(copy);
    copy.threads({kCount / 4 + 1, 1, 1}, {64, 1, 1});
    Report report = expect_one(copy, Problem::out_of_bounds);
    EXPECT_EQ(report.kernel, "copy");
    EXPECT_EQ(report.thread.x, kCount / 4);
    EXPECT_EQ(report.buffer, "in");
    EXPECT_EQ(report.offset, kCount);
    EXPECT_EQ(report.bytes, 4U);
    expect_mentions(report, {"a read", "0 bytes past the end"});
    // Straddling the end.
    copy.buffer(0, in.at(2), kCount - 2).threads({kCount / 4, 1, 1}, {64, 1, 1});
    report = expect_one(copy, Problem::out_of_bounds);
    EXPECT_EQ(report.buffer, "in");
    EXPECT_EQ(report.offset, kCount - 2);
    copy.buffer(0, in.at(), kCount).buffer(1, out.at() - 4, 0).threads({1, 1, 1}, {1, 1, 1});
    report = expect_one(copy, Problem::out_of_bounds);
    expect_mentions(report, {"a write", "offset 0 of out", "4 bytes before the start"});
    copy.buffer(1, nullptr, 0);
    expect_mentions(expect_one(copy, Problem::out_of_bounds), {"null pointer"});
    std::vector<float> stray(1);
    copy.buffer(1, stray);
    EXPECT_EQ(expect_one(copy, Problem::out_of_bounds).thread.x, 0U);
}

TEST_F(ExecutorCheck, AFaultEndsTheLaunchAndNothingIsWritten) {
    Buffer in(*executor, "in", true, false, 4000000), out(*executor, "out", false, false, kCount);
    std::memset(out.storage.data(), 7, out.storage.size());
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, in.at(), 4000000).buffer(1, out.at(kCount), 0).threads({1000000, 1, 1}, {1024, 1, 1});
    for (int i = 0; i < 20; ++i) {
        const Report report = expect_one(copy, Problem::out_of_bounds);
        EXPECT_EQ(report.thread.x % 1024, 0U);
    }
    EXPECT_EQ(*out.at(kCount), 7);
    copy.buffer(1, out.at(), kCount).threads({kCount / 4, 1, 1}, {1024, 1, 1});
    expect_clean(copy);
}

struct Page {
    float* bytes;
};
void gather(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t i = thread->thread_position_in_grid.x;
    float* const page = get(&argument<Page>(arguments, 0)[i].bytes);
    put(argument<float>(arguments, 1) + i, get(page));
}

TEST_F(ExecutorCheck, PointersInsideBuffersAreFollowed) {
    Buffer table(*executor, "table"), out(*executor, "out"), page(*executor, "page");
    auto* const pages = reinterpret_cast<float**>(table.at());
    for (uint32_t i = 0; i < 40; ++i) pages[i] = reinterpret_cast<float*>(page.at(i * 8));
    Dispatch walk = dispatch(&gather, "gather");
    walk.buffer(0, table.at(), kCount).buffer(1, out.at(), kCount).groups({1, 1, 1}, {40, 1, 1});
    expect_clean(walk);
    pages[33] = reinterpret_cast<float*>(page.at(kCount + 12));
    const Report report = expect_one(walk, Problem::out_of_bounds);
    EXPECT_EQ(report.thread.x, 33U);
    EXPECT_EQ(report.buffer, "page");
    EXPECT_EQ(report.offset, kCount + 12U);
}

METALSIM_AS_WRITTEN
void shift_in_threadgroup(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    static const char site = 0;
    auto* const variable = static_cast<float*>(metalsim_threadgroup_storage(&site, 256, 4));
    auto* const memory = static_cast<float*>(threadgroup[1]);
    const uint32_t i = thread->thread_index_in_threadgroup;
    const uint32_t shift = get(argument<uint32_t>(arguments, 0));
    put(variable + i, 1.0F);
    put(memory + i + shift, 2.0F);
}

TEST_F(ExecutorCheck, OutOfBoundsOfThreadgroupMemory) {
    Buffer shift(*executor, "shift");
    auto* const by = reinterpret_cast<uint32_t*>(shift.at());
    Dispatch fill = dispatch(&shift_in_threadgroup, "fill");
    fill.buffer(0, by, 4).threadgroup(1, 256).groups({3, 1, 1}, {64, 1, 1});
    *by = 0;
    expect_clean(fill);
    *by = 1;
    const Report report = expect_one(fill, Problem::out_of_bounds);
    EXPECT_EQ(report.buffer, "threadgroup");
    EXPECT_EQ(report.offset, 256U);
    EXPECT_EQ(report.thread.x % 64, 63U);
    *by = 0;
    fill.threadgroup(1, 512).groups({1, 1, 1}, {65, 1, 1});
    expect_mentions(expect_one(fill, Problem::out_of_bounds), {"thread (64, 0, 0)", "offset 256 of threadgroup"});
    *by = 20000000;
    fill.groups({1, 1, 1}, {1, 1, 1});
    expect_one(fill, Problem::out_of_bounds);
}

TEST_F(ExecutorCheck, UseAfterRelease) {
    Buffer in(*executor, "in"), out(*executor, "out");
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, in.at(), kCount).buffer(1, out.at(), kCount).threads({100, 1, 1}, {32, 1, 1});
    expect_clean(copy);
    executor->memory().release(in.id);
    const Report report = expect_one(copy, Problem::use_after_release);
    EXPECT_EQ(report.buffer, "in");
    EXPECT_EQ(report.kernel, "copy");
    EXPECT_EQ(report.offset % 128, 0U);
    executor->memory().forget(in.id);
    EXPECT_NE(expect_one(copy, Problem::out_of_bounds).buffer, "in");
    in.id = executor->memory().add(in.region);
    expect_clean(copy);
}

TEST_F(ExecutorCheck, RegionsInsideRegions) {
    Buffer heap(*executor, "heap", false, false, 65536), out(*executor, "out", false);
    Memory& memory = executor->memory();
    Memory::Region inner;
    inner.base = heap.at(8192);
    inner.bytes = 4096;
    inner.label = "kv";
    inner.initialised = true;
    const Memory::Id kv = memory.add(inner);
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, heap.at(8192), 4096).buffer(1, out.at(), kCount).threads({64, 1, 1}, {32, 1, 1});
    expect_clean(copy);
    // Beside the buffer, but in the heap, where nobody wrote.
    copy.buffer(0, heap.at(4096), 4096);
    Report report = expect_one(copy, Problem::uninitialised_read);
    EXPECT_EQ(report.buffer, "heap");
    EXPECT_EQ(report.offset / 128, 32U);
    memory.rename(kv, "kv page 7");
    memory.release(kv);
    copy.buffer(0, heap.at(8192), 4096);
    report = expect_one(copy, Problem::use_after_release);
    EXPECT_EQ(report.buffer, "kv page 7");
    // A new buffer in the place of the old: none of its bytes are written yet.
    inner.base = heap.at(8192 - 256);
    inner.bytes = 8192;
    inner.label = "next";
    inner.initialised = false;
    const Memory::Id next = memory.add(inner);
    report = expect_one(copy, Problem::uninitialised_read);
    EXPECT_EQ(report.buffer, "next");
    memory.mark_written(heap.at(8192), 4096);
    expect_clean(copy);
    memory.forget(kv);
    memory.forget(next);
}

TEST_F(ExecutorCheck, Residency) {
    Buffer heap(*executor, "heap", true, false, 65536), out(*executor, "out"), other(*executor, "other");
    Memory::Region inner;
    inner.base = heap.at(4096);
    inner.bytes = 4096;
    inner.label = "inner";
    inner.initialised = true;
    const Memory::Id id = executor->memory().add(inner);
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, heap.at(4096), 4096).buffer(1, out.at(), kCount).threads({64, 1, 1}, {64, 1, 1});
    std::vector<Memory::Id> resident = {heap.id, out.id};
    copy.resident(resident);
    expect_clean(copy);
    resident = {out.id, id};
    std::sort(resident.begin(), resident.end());
    expect_clean(copy);
    resident = {heap.id, other.id};
    std::sort(resident.begin(), resident.end());
    Report report = expect_one(copy, Problem::not_resident);
    EXPECT_EQ(report.buffer, "out");
    EXPECT_EQ(report.bytes, 4U);
    resident = {out.id};
    report = expect_one(copy, Problem::not_resident);
    EXPECT_EQ(report.buffer, "inner");
    executor->memory().forget(id);
}

TEST_F(ExecutorCheck, WritesToReadOnlyRegions) {
    Buffer in(*executor, "weights", true, true), out(*executor, "out");
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, in.at(), kCount).buffer(1, out.at(), kCount).threads({64, 1, 1}, {64, 1, 1});
    expect_clean(copy);
    copy.buffer(1, in.at(), kCount);
    const Report report = expect_one(copy, Problem::read_only);
    EXPECT_EQ(report.buffer, "weights");
    EXPECT_EQ(report.offset, 0U);
    EXPECT_EQ(report.thread.x, 0U);
}

#if defined(__x86_64__)
void read_vectors(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const auto* const vector = argument<unsigned char>(arguments, 0) + uint64_t{16} * thread->thread_position_in_grid.x;
    services().load[4](vector);
    __asm__ volatile("movaps (%0), %%xmm0" ::"r"(vector) : "xmm0", "memory");
}

TEST_F(ExecutorCheck, MisalignedVectors) {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "the sanitizer reports this fault itself";
#endif
    Buffer in(*executor, "in");
    Dispatch read = dispatch(&read_vectors, "vectors");
    read.buffer(0, in.at(), kCount).groups({1, 1, 1}, {40, 1, 1});
    expect_clean(read);
    read.buffer(0, in.at(4), kCount - 4);
    const Report report = expect_one(read, Problem::misaligned);
    EXPECT_EQ(report.buffer, "in");
    EXPECT_EQ(report.offset, 4U);
    EXPECT_EQ(report.bytes, 16U);
}
#endif

// ---- what nobody wrote ----

TEST_F(ExecutorCheck, UninitialisedReads) {
    Buffer in(*executor, "in", false), out(*executor, "out", false);
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, in.at(), kCount).buffer(1, out.at(), kCount).threads({kCount / 4, 1, 1}, {128, 1, 1});
    EXPECT_EQ(expect_one(copy, Problem::uninitialised_read).buffer, "in");
    // All but two bytes in the middle.
    in.memory.forget(in.id);
    in.id = in.memory.add(in.region);
    in.memory.mark_written(in.at(), 2050);
    in.memory.mark_written(in.at(2052), kCount - 2052);
    const Report report = expect_one(copy, Problem::uninitialised_read);
    EXPECT_EQ(report.thread.x, 512U);
    EXPECT_EQ(report.offset, 2048U);
    in.memory.mark_written(in.at(2050), 2);
    expect_clean(copy);
    // What a kernel stored is initialised, also by byte.
    Buffer last(*executor, "last", false);
    copy.buffer(0, out.at(), kCount).buffer(1, last.at(), kCount);
    expect_clean(copy);
}

METALSIM_AS_WRITTEN
void read_threadgroup(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const memory = static_cast<uint16_t*>(threadgroup[0]);
    const uint32_t i = thread->thread_index_in_threadgroup;
    const uint32_t missing = get(argument<uint32_t>(arguments, 0));
    if (i != missing || thread->threadgroup_position_in_grid.x == 0) put(memory + i, static_cast<uint16_t>(i));
    metalsim_threadgroup_barrier(2);
    put(argument<uint16_t>(arguments, 1) + thread->thread_position_in_grid.x, get(memory + 63 - i));
}

TEST_F(ExecutorCheck, UninitialisedThreadgroupMemory) {
    executor = create_executor(1);  // both threadgroups in the same memory
    Buffer missing(*executor, "missing"), out(*executor, "out", false);
    auto* const which = reinterpret_cast<uint32_t*>(missing.at());
    *which = 64;
    Dispatch read = dispatch(&read_threadgroup, "read");
    read.buffer(0, which, 4).buffer(1, out.at(), kCount).threadgroup(0, 128).groups({2, 1, 1}, {64, 1, 1});
    expect_clean(read);
    *which = 10;  // in the second threadgroup alone: what the first wrote there does not count
    const Report report = expect_one(read, Problem::uninitialised_read);
    EXPECT_EQ(report.buffer, "threadgroup");
    EXPECT_EQ(report.offset, 20U);
    EXPECT_EQ(report.bytes, 2U);
    EXPECT_EQ(report.thread.x, 64U + 53);
}

// ---- the rest ----

METALSIM_AS_WRITTEN
void constants_and_locals(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    static const float table[4] = {1, 2, 3, 4};
    float local[8];
    for (uint32_t i = 0; i < 8; ++i) put(local + i, get(table + i % 4));
    get(&thread->thread_position_in_grid.x);
    get(&arguments->buffers[0]);
    get(&threadgroup[0]);
    get(metalsim_function_constants());
    get(&services().load[2]);
    put(argument<float>(arguments, 0) + thread->thread_position_in_grid.x, get(local + 5));
}

void writes_code(const MetalsimArguments* arguments, void* const*, const MetalsimThread*) {
    services().store[2](arguments->buffers[0]);
}

TEST_F(ExecutorCheck, ConstantsLocalsAndArgumentsAreFine) {
    Buffer out(*executor, "out", false);
    const unsigned char block[4] = {};
    Dispatch run = dispatch(&constants_and_locals, "constants");
    run.buffer(0, out.at(), kCount).groups({3, 1, 1}, {64, 1, 1});
    run.arguments().function_constants = block;
    expect_clean(run);
    Dispatch bad = dispatch(&writes_code, "code");
    bad.buffer(0, reinterpret_cast<void*>(&writes_code), 4).groups({1, 1, 1}, {1, 1, 1});
    expect_one(bad, Problem::out_of_bounds);
}

void copy_range(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint64_t i = thread->thread_position_in_grid.x;
    unsigned char* const from = argument<unsigned char>(arguments, 0) + i * 1000;
    unsigned char* const to = argument<unsigned char>(arguments, 1) + i * 1000;
    metalsim_check_range(from, 1000, 0);
    metalsim_check_range(to, 1000, 1);
    std::memcpy(to, from, 1000);
}

TEST_F(ExecutorCheck, Ranges) {
    Buffer in(*executor, "in", false, false, 20000), out(*executor, "out", false, false, 20000);
    in.memory.mark_written(in.at(), 20000);
    Dispatch run = dispatch(&copy_range, "copy");
    run.buffer(0, in.at(), 20000).buffer(1, out.at(), 20000).groups({20, 1, 1}, {1, 1, 1});
    expect_clean(run);
    run.buffer(1, out.at(1), 0);
    const Report report = expect_one(run, Problem::out_of_bounds);
    EXPECT_EQ(report.bytes, 1000U);
    EXPECT_EQ(report.offset, 19001U);
}

void fails_everywhere(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    for (uint32_t i = 0; i < 40; ++i) {
        get(argument<float>(arguments, i % 2) + thread->thread_position_in_grid.x);
    }
}

TEST_F(ExecutorCheck, LargeRegionsCostWhatIsTouched) {
    constexpr uint64_t kGigabyte = uint64_t{1} << 30;
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* const at = mmap(nullptr, kGigabyte, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    const auto peak = [] {
        rusage usage{};
        getrusage(RUSAGE_SELF, &usage);
        return usage.ru_maxrss;  // kilobytes
    };
    const long before = peak();
    Memory::Region region;
    region.base = at;
    region.bytes = kGigabyte;
    region.label = "heap";
    const Memory::Id id = executor->memory().add(region);
    auto* const last = static_cast<unsigned char*>(at) + kGigabyte - kCount;
    Buffer in(*executor, "in");
    Dispatch copy = dispatch(&copy_floats, "copy");
    copy.buffer(0, in.at(), kCount).buffer(1, last, kCount).threads({kCount / 4, 1, 1}, {64, 1, 1});
    expect_clean(copy);
    copy.buffer(0, last, kCount).buffer(1, in.at(), kCount);
    expect_clean(copy);
    copy.buffer(0, last - 64, kCount);
    EXPECT_EQ(expect_one(copy, Problem::uninitialised_read).offset, kGigabyte - kCount - 64);
    executor->touch(at, kGigabyte / 4, true, "fill");
    EXPECT_LT(peak() - before, 16 << 10);
    executor->memory().forget(id);
    munmap(at, kGigabyte);
}

// So many launches that what was remembered of the first is forgotten: nothing else may change.
TEST_F(ExecutorCheck, VeryManyLaunches) {
    Buffer in(*executor, "in"), out(*executor, "out", false);
    Dispatch forth = dispatch(&copy_floats, "forth"), back = dispatch(&copy_floats, "back");
    forth.buffer(0, in.at(), kCount).buffer(1, out.at(), kCount).threads({8, 1, 1}, {8, 1, 1});
    back.buffer(0, out.at(), kCount).buffer(1, in.at(), kCount).threads({8, 1, 1}, {8, 1, 1});
    for (int i = 0; i < 20000; ++i) {
        executor->order();
        ASSERT_TRUE(forth.run(*executor)) << i << texts(executor->take_reports());
        executor->order();
        ASSERT_TRUE(back.run(*executor)) << i << texts(executor->take_reports());
        if (i % 500 != 0) continue;
        ASSERT_FALSE(forth.run(*executor)) << i;
        for (const Report& report : executor->take_reports()) ASSERT_EQ(report.problem, Problem::dispatch_hazard);
    }
}

TEST_F(ExecutorCheck, ReportsAreMerged) {
    Buffer a(*executor, "a", false, false, 1 << 20), b(*executor, "b", false, false, 1 << 20);
    Dispatch run = dispatch(&fails_everywhere, "fails");
    run.buffer(0, a.at(), 1 << 20).buffer(1, b.at(), 1 << 20).groups({100, 1, 1}, {512, 1, 1});
    EXPECT_FALSE(run.run(*executor));
    const size_t count = executor->take_reports().size();
    EXPECT_GE(count, 2U);
    EXPECT_LE(count, kMaxReports);
}

// Host threads with memory of their own: no order() is needed between their launches.
TEST_F(ExecutorCheck, LaunchesOfSeveralThreadsOverlap) {
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            for (int turn = 0; turn < 40; ++turn) {
                Buffer in(*executor, "in"), out(*executor, "out", false);
                Dispatch run = dispatch(&copy_floats, "copy");
                run.buffer(0, in.at(), kCount).buffer(1, out.at(), kCount).threads({kCount / 4, 1, 1}, {100, 1, 1});
                wrong += !run.run(*executor);
                run.buffer(0, out.at(), kCount).buffer(1, in.at(), kCount);
                executor->order();
                wrong += !run.run(*executor);
                executor->order();
                run.buffer(0, in.at(t), kCount).buffer(1, out.at(), kCount);
                wrong += t % 4 == 0 ? !run.run(*executor) : run.run(*executor);  // out of bounds
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
    for (const Report& report : executor->take_reports()) {
        EXPECT_EQ(report.problem, Problem::out_of_bounds) << report.text();
    }
}

}  // namespace
}  // namespace metalsim::test
