#include "executor_check.h"

// Accesses of the same bytes that nothing orders: by threads of a dispatch, by dispatches and by blits.
namespace metalsim::test {
namespace {

// ---- order between threads ----

struct RacePlan {
    uint32_t barrier;  // 0 none, 1 threadgroup, 2 simdgroup, 3 a collective
    uint32_t flags;
    uint32_t distance;  // how far the reader is from the writer
    uint32_t device;    // in device memory
};

template <class T>
METALSIM_AS_WRITTEN void exchange(const MetalsimArguments* arguments, void* const* threadgroup,
                                  const MetalsimThread* thread) {
    const auto* const plan = argument<RacePlan>(arguments, 0);
    const uint32_t i = thread->thread_index_in_threadgroup;
    const uint32_t count = thread->threads_per_threadgroup.x;
    T* const memory = plan->device ? argument<T>(arguments, 2) + thread->threadgroup_position_in_grid.x * count
                                   : static_cast<T*>(threadgroup[0]);
    put(memory + i, static_cast<T>(0));
    metalsim_threadgroup_barrier(3);
    put(memory + i, static_cast<T>(i));
    if (plan->barrier == 1) metalsim_threadgroup_barrier(plan->flags);
    if (plan->barrier == 2) metalsim_simdgroup_barrier(plan->flags);
    if (plan->barrier == 3) simd_sum(1);
    const T value = get(memory + (i / 32 * 32 + (i + plan->distance) % 32) % count);
    put(argument<T>(arguments, 1) + thread->thread_position_in_grid.x, value);
}

class ExecutorRace : public ExecutorCheck {
  protected:
    Buffer plan{*executor, "plan"};
    Buffer out{*executor, "out", false, false, 65536};
    Buffer device{*executor, "exchange", false, false, 65536};
    bool races(RacePlan what, MetalsimKernel kernel) {
        std::memcpy(plan.at(), &what, sizeof what);
        executor->order();
        Dispatch run = dispatch(kernel, "exchange");
        run.buffer(0, plan.at(), sizeof what).buffer(1, out.at(), 65536).buffer(2, device.at(), 65536);
        run.threadgroup(0, 1024).groups({5, 1, 1}, {128, 1, 1});
        const bool clean = run.run(*executor);
        const std::vector<Report> reports = executor->take_reports();
        EXPECT_EQ(clean, reports.empty());
        for (const Report& report : reports) {
            EXPECT_EQ(report.problem, Problem::thread_race) << report.text();
            EXPECT_EQ(report.buffer, what.device ? "exchange" : "threadgroup");
            EXPECT_NE(report.detail.find("of the same threadgroup"), std::string::npos) << report.text();
        }
        return !clean;
    }
    template <class T>
    void expect_rules() {
        const MetalsimKernel kernel = &exchange<T>;
        for (const uint32_t device_memory : {0U, 1U}) {
            const uint32_t right = device_memory ? 1 : 2;
            EXPECT_FALSE(races({0, 0, 0, device_memory}, kernel)) << "neighbours are no race";
            EXPECT_TRUE(races({0, 0, 1, device_memory}, kernel));
            EXPECT_FALSE(races({1, right, 1, device_memory}, kernel));
            EXPECT_FALSE(races({1, 3, 1, device_memory}, kernel));
            EXPECT_TRUE(races({1, 0, 1, device_memory}, kernel)) << "mem_none orders no memory";
            EXPECT_TRUE(races({1, 3 - right, 1, device_memory}, kernel)) << "the other memory's flag";
            EXPECT_FALSE(races({2, right, 1, device_memory}, kernel));
            EXPECT_TRUE(races({2, 0, 1, device_memory}, kernel));
            EXPECT_TRUE(races({3, 0, 1, device_memory}, kernel)) << "a collective orders no memory";
        }
    }
};

TEST_F(ExecutorRace, BarriersOrderWhatTheirFlagsSay) {
    expect_rules<float>();
}
TEST_F(ExecutorRace, HalvesAndBytesNextToEachOtherAreApart) {
    expect_rules<uint16_t>();
    expect_rules<uint8_t>();
}
TEST_F(ExecutorRace, WideAccesses) {
    expect_rules<uint64_t>();
}

METALSIM_AS_WRITTEN
void across_simdgroups(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const memory = static_cast<uint32_t*>(threadgroup[0]);
    const uint32_t i = thread->thread_index_in_threadgroup;
    put(memory + i, 0U);
    metalsim_threadgroup_barrier(2);
    put(memory + i, i);
    metalsim_simdgroup_barrier(2);
    const uint32_t by = get(argument<uint32_t>(arguments, 0));
    put(argument<uint32_t>(arguments, 1) + i, get(memory + (i + by) % 64));
}

TEST_F(ExecutorCheck, SimdgroupBarriersOrderNoOtherSimdgroup) {
    Buffer by(*executor, "by"), out(*executor, "out", false);
    auto* const distance = reinterpret_cast<uint32_t*>(by.at());
    *distance = 32;
    Dispatch run = dispatch(&across_simdgroups, "across");
    run.buffer(0, distance, 4).buffer(1, out.at(), kCount).threadgroup(0, 256).groups({1, 1, 1}, {64, 1, 1});
    executor->order();
    EXPECT_FALSE(run.run(*executor));
    for (const Report& report : executor->take_reports()) {
        EXPECT_EQ(report.problem, Problem::thread_race) << report.text();
        EXPECT_EQ(report.buffer, "threadgroup");
    }
    *distance = 0;
    expect_clean(run);
}

METALSIM_AS_WRITTEN
void write_after_read(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const memory = static_cast<uint32_t*>(threadgroup[0]);
    const uint32_t i = thread->thread_index_in_threadgroup;
    if (i == 0) put(memory, 1U);
    metalsim_threadgroup_barrier(2);
    const uint32_t value = get(memory);
    if (get(argument<uint32_t>(arguments, 0)) != 0) metalsim_threadgroup_barrier(2);
    if (i == 17) put(memory, value + 1);
}

TEST_F(ExecutorCheck, WriteAfterReadsOfManyThreads) {
    Buffer flag(*executor, "flag");
    auto* const barrier = reinterpret_cast<uint32_t*>(flag.at());
    for (const uint32_t threads : {32U, 64U, 256U}) {
        Dispatch run = dispatch(&write_after_read, "war");
        run.buffer(0, barrier, 4).threadgroup(0, 16).groups({3, 1, 1}, {threads, 1, 1});
        *barrier = 0;
        const Report report = expect_one(run, Problem::thread_race);
        EXPECT_EQ(report.offset, 0U);
        *barrier = 1;
        expect_clean(run);
    }
}

METALSIM_AS_WRITTEN
void histogram(const MetalsimArguments* arguments, void* const* threadgroup, const MetalsimThread* thread) {
    auto* const local = static_cast<uint32_t*>(threadgroup[0]);
    auto* const global = argument<uint32_t>(arguments, 0);
    const uint32_t i = thread->thread_index_in_threadgroup;
    const uint32_t plain = get(argument<uint32_t>(arguments, 1));
    if (i < 4) put(local + i, 0U);
    metalsim_threadgroup_barrier(2);
    add_atomically(local + i % 4, 1);
    if (plain == 1) get(local + i % 4);
    metalsim_threadgroup_barrier(2);
    if (i < 4) add_atomically(global + i, get(local + i));
    if (plain == 2 && i == 0) put(global, 5U);
}

TEST_F(ExecutorCheck, AtomicsRaceWithPlainAccessesOnly) {
    Buffer global(*executor, "histogram"), flag(*executor, "flag");
    auto* const plain = reinterpret_cast<uint32_t*>(flag.at());
    Dispatch run = dispatch(&histogram, "histogram");
    run.buffer(0, global.at(), kCount).buffer(1, plain, 4).threadgroup(0, 16).groups({6, 1, 1}, {128, 1, 1});
    *plain = 0;
    expect_clean(run);
    EXPECT_EQ(*reinterpret_cast<uint32_t*>(global.at()), 6U * 32);
    *plain = 1;
    EXPECT_EQ(expect_one(run, Problem::thread_race).buffer, "threadgroup");
    *plain = 2;
    const Report report = expect_one(run, Problem::thread_race);
    EXPECT_EQ(report.buffer, "histogram");
    expect_mentions(report, {"of another threadgroup of this dispatch"});
}

template <class T>
void write_own(const MetalsimArguments* arguments, void* const*, const MetalsimThread* thread) {
    const uint32_t shift = get(argument<uint32_t>(arguments, 0));
    const uint32_t i = thread->thread_position_in_grid.x;
    const uint32_t same = thread->thread_index_in_threadgroup;
    put(argument<T>(arguments, 1) + (shift == 0 ? i : same), static_cast<T>(i));
}

TEST_F(ExecutorCheck, ThreadgroupsThatWriteTheSameBytes) {
    Buffer flag(*executor, "flag"), out(*executor, "out", false, false, 65536);
    auto* const same = reinterpret_cast<uint32_t*>(flag.at());
    for (const MetalsimKernel kernel : {&write_own<uint32_t>, &write_own<uint16_t>, &write_own<uint8_t>}) {
        Dispatch run = dispatch(kernel, "write");
        // An odd size: neighbours in different threadgroups share granules.
        run.buffer(0, same, 4).buffer(1, out.at(), 65536).groups({50, 1, 1}, {37, 1, 1});
        *same = 0;
        expect_clean(run);
        *same = 1;
        const Report report = expect_one(run, Problem::thread_race);
        EXPECT_EQ(report.buffer, "out");
        expect_mentions(report, {"a write, and a write by thread", "of another threadgroup of this dispatch"});
    }
}

// ---- order between dispatches ----

class ExecutorHazard : public ExecutorCheck {
  protected:
    ExecutorHazard() { ordered = false; }
    Buffer a{*executor, "a"}, b{*executor, "b"}, c{*executor, "c"};
    Dispatch copy(Buffer& from, Buffer& to, const char* name) {
        Dispatch out = dispatch(&copy_floats, name);
        out.buffer(0, from.at(), kCount).buffer(1, to.at(), kCount).threads({kCount / 4, 1, 1}, {96, 1, 1});
        return out;
    }
    void expect_hazard(Dispatch& second, const char* buffer, std::initializer_list<const char*> parts) {
        const bool clean = second.run(*executor);
        const std::vector<Report> reports = executor->take_reports();
        ASSERT_FALSE(clean);
        ASSERT_FALSE(reports.empty());
        for (const Report& report : reports) {
            EXPECT_EQ(report.problem, Problem::dispatch_hazard) << report.text();
            EXPECT_EQ(report.buffer, buffer);
            EXPECT_LT(report.offset, kCount);
            expect_mentions(report, parts);
        }
        executor->order();
    }
};

TEST_F(ExecutorHazard, ReadAfterWrite) {
    Dispatch first = copy(a, b, "first"), second = copy(b, c, "second");
    expect_clean(first);
    expect_hazard(second, "b", {"a read, and a write by thread", "of kernel first", "kernel second"});
    expect_clean(first);
    executor->order();
    expect_clean(second);
}

TEST_F(ExecutorHazard, WriteAfterRead) {
    Dispatch first = copy(a, b, "first"), second = copy(c, a, "second");
    expect_clean(first);
    expect_hazard(second, "a", {"a write, and a read by thread", "of kernel first"});
    expect_clean(first);
    executor->order();
    expect_clean(second);
}

TEST_F(ExecutorHazard, WriteAfterWrite) {
    Dispatch first = copy(a, b, "first"), second = copy(c, b, "second");
    expect_clean(first);
    expect_hazard(second, "b", {"a write, and a write by thread", "of kernel first"});
}

TEST_F(ExecutorHazard, ReadersDoNotHideEachOther) {
    Dispatch first = copy(a, b, "first"), second = copy(a, c, "second");
    expect_clean(first);
    expect_clean(second);  // both read a
    Dispatch third = copy(b, a, "third");
    EXPECT_FALSE(third.run(*executor));
    bool found = false;
    for (const Report& report : executor->take_reports()) found |= report.buffer == "a";
    EXPECT_TRUE(found);
}

TEST_F(ExecutorHazard, DisjointHalvesAreNone) {
    Dispatch first = copy(a, b, "first"), second = copy(c, b, "second");
    first.threads({512, 1, 1}, {96, 1, 1});
    second.buffer(0, c.at(), kCount).buffer(1, b.at(2048), kCount - 2048).threads({512, 1, 1}, {96, 1, 1});
    expect_clean(first);
    expect_clean(second);
}

TEST_F(ExecutorHazard, Blits) {
    Dispatch first = copy(a, b, "first");
    expect_clean(first);
    executor->touch(b.at(100), 50, false, "blit/read");
    std::vector<Report> reports = executor->take_reports();
    ASSERT_EQ(reports.size(), 1U);
    EXPECT_EQ(reports[0].problem, Problem::dispatch_hazard);
    EXPECT_EQ(reports[0].buffer, "b");
    EXPECT_EQ(reports[0].offset, 100U);
    EXPECT_EQ(reports[0].scope, "blit/read");
    executor->order();
    executor->touch(b.at(), kCount, false, "blit");
    executor->touch(c.at(), kCount, true, "blit");
    EXPECT_TRUE(executor->take_reports().empty());
    expect_hazard(first, "b", {"a write, and a read by a blit in blit"});
    executor->touch(a.at(), kCount, true, "blit");
    executor->touch(a.at(4), 4, true, "blit");
    reports = executor->take_reports();
    ASSERT_EQ(reports.size(), 1U);
    EXPECT_EQ(reports[0].offset, 4U);
}

TEST_F(ExecutorHazard, BlitsOfLargeRangesInitialise) {
    Buffer large(*executor, "large", false, false, 1 << 20);
    executor->touch(large.at(), 1 << 20, true, "fill");
    executor->order();
    Dispatch read = dispatch(&copy_floats, "read");
    read.buffer(0, large.at(500000), 500000).buffer(1, b.at(), kCount).threads({1024, 1, 1}, {128, 1, 1});
    expect_clean(read);
    executor->touch(large.at(), 1 << 20, true, "fill again");
    const std::vector<Report> reports = executor->take_reports();
    ASSERT_EQ(reports.size(), 1U);
    EXPECT_EQ(reports[0].offset, 500000U);
}

}  // namespace
}  // namespace metalsim::test
