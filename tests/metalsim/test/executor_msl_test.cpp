#include <gtest/gtest.h>

#include <map>

#include "executor_kernels.h"
#include "msl/library.h"

// The executor under kernels in the Metal Shading Language, as shaders are run.
namespace metalsim::test {
namespace {

constexpr const char* kSource = R"(
#include <metal_stdlib>
using namespace metal;

kernel void diverge(device uint* out [[buffer(0)]], uint lane [[thread_index_in_simdgroup]]) {
    device uint* o = out + lane * 4;
    if (lane % 2 == 0) {
        o[0] = uint(ulong(simd_active_threads_mask()));
    } else {
        o[0] = uint(ulong(simd_active_threads_mask()));
    }
    for (uint i = 0; i <= lane; ++i) o[1] = uint(ulong(simd_active_threads_mask()));
    o[2] = uint(ulong(simd_active_threads_mask()));
    if (lane >= 20) return;
    o[3] = uint(ulong(simd_active_threads_mask()));
}

// A short branch before each barrier, which a compiler would like to make two barriers of.
kernel void histogram(device atomic_uint* global [[buffer(0)]], threadgroup atomic_uint* local [[threadgroup(0)]],
                      uint i [[thread_index_in_threadgroup]]) {
    if (i < 4) atomic_store_explicit(&local[i], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&local[i % 4], 1u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < 4) {
        const uint count = atomic_load_explicit(&local[i], memory_order_relaxed);
        atomic_fetch_add_explicit(&global[i], count, memory_order_relaxed);
    }
}

constant uint barrier_kind [[function_constant(0)]];

kernel void exchange(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                     uint i [[thread_index_in_threadgroup]], uint at [[thread_position_in_grid]]) {
    threadgroup float memory[128];
    memory[i] = 0;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    memory[i] = in[at];
    if (barrier_kind == 1) threadgroup_barrier(mem_flags::mem_threadgroup);
    if (barrier_kind == 2) simdgroup_barrier(mem_flags::mem_threadgroup);
    if (barrier_kind == 3) simdgroup_barrier(mem_flags::mem_none);
    out[at] = memory[i ^ 1];
}

kernel void skips_writes(device const float* in [[buffer(0)]], device half* out [[buffer(1)]],
                         uint i [[thread_index_in_threadgroup]], uint at [[thread_position_in_grid]]) {
    threadgroup half memory[64];
    if (in[at] >= 0) memory[i] = half(in[at]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[at] = memory[63 - i];
}

kernel void copy(device const float4* in [[buffer(0)]], device float4* out [[buffer(1)]],
                 uint at [[thread_position_in_grid]]) {
    out[at] = in[at];
}

kernel void leaves(device const float* in [[buffer(0)]], uint at [[thread_position_in_grid]]) {
    if (in[at] > 5) return;
    threadgroup_barrier(mem_flags::mem_device);
}
)";

std::shared_ptr<const msl::Library> library(bool checked) {
    static std::map<bool, std::shared_ptr<const msl::Library>> made;
    std::shared_ptr<const msl::Library>& entry = made[checked];
    if (entry == nullptr) {
        msl::Options options;
        options.checked = checked;
        entry = msl::compile(kSource, options);
    }
    return entry;
}

class ExecutorMsl : public testing::TestWithParam<bool> {
  protected:
    std::unique_ptr<Executor> executor = create_executor(2);
    std::vector<float> in = std::vector<float>(256, 1), out = std::vector<float>(256);
    std::vector<unsigned char> constants = std::vector<unsigned char>(64);
    void SetUp() override {
        add(in, "in");
        add(out, "out");
    }
    template <class T>
    void add(std::vector<T>& values, const char* label, bool initialised = true) {
        Memory::Region region;
        region.base = values.data();
        region.bytes = values.size() * sizeof(T);
        region.label = label;
        region.initialised = initialised;
        executor->memory().add(region);
    }
    Dispatch dispatch(const char* name) {
        Dispatch made(nullptr, name);
        made.function() = *library(GetParam())->find(name);
        made.arguments().function_constants = constants.data();
        made.scope("scope");
        return made;
    }
    void set_barrier(uint32_t kind) {
        const msl::FunctionConstant& constant = library(GetParam())->constants().at(0);
        std::memcpy(&constants.at(constant.offset), &kind, sizeof kind);
        constants.at(constant.defined) = 1;
    }
    std::vector<Report> reports(Dispatch& what) {
        executor->order();
        const bool clean = what.run(*executor);
        std::vector<Report> all = executor->take_reports();
        EXPECT_EQ(clean, all.empty());
        return all;
    }
    void expect_clean(Dispatch& what) {
        const std::vector<Report> all = reports(what);
        EXPECT_TRUE(all.empty()) << texts(all);
    }
    Report expect_one(Dispatch& what, Problem problem, const char* kernel) {
        const std::vector<Report> all = reports(what);
        EXPECT_EQ(all.size(), 1U) << texts(all);
        if (all.empty()) return {};
        EXPECT_STREQ(problem_name(all[0].problem), problem_name(problem)) << texts(all);
        EXPECT_EQ(all[0].kernel, kernel);
        EXPECT_EQ(all[0].scope, "scope");
        return all[0];
    }
};
INSTANTIATE_TEST_SUITE_P(Modes, ExecutorMsl, testing::Bool(),
                         [](const auto& mode) { return mode.param ? "Checked" : "Host"; });

TEST_P(ExecutorMsl, DivergedLanesAreInactive) {
    std::vector<uint32_t> masks(32 * 4);
    add(masks, "masks");
    Dispatch run = dispatch("diverge");
    run.buffer(0, masks).groups({1, 1, 1}, {32, 1, 1});
    expect_clean(run);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        EXPECT_EQ(masks[lane * 4], lane % 2 == 0 ? 0x55555555U : 0xaaaaaaaaU);
        EXPECT_EQ(masks[lane * 4 + 1], ~0U << lane) << lane;
        EXPECT_EQ(masks[lane * 4 + 2], ~0U);
        EXPECT_EQ(masks[lane * 4 + 3], lane < 20 ? (1U << 20) - 1 : 0);
    }
}

TEST_P(ExecutorMsl, AtomicsAndBarriersBehindBranches) {
    std::vector<uint32_t> global(4);
    add(global, "histogram");
    Dispatch run = dispatch("histogram");
    run.buffer(0, global).threadgroup(0, 16).groups({6, 1, 1}, {128, 1, 1});
    expect_clean(run);
    EXPECT_EQ(global, std::vector<uint32_t>(4, 6U * 32));
}

TEST_P(ExecutorMsl, BarriersBetweenNeighbours) {
    for (uint32_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
    Dispatch run = dispatch("exchange");
    run.buffer(0, in).buffer(1, out).groups({2, 1, 1}, {128, 1, 1});
    for (const uint32_t kind : {1U, 2U}) {
        set_barrier(kind);
        expect_clean(run);
        for (uint32_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], static_cast<float>(i ^ 1));
    }
    if (!GetParam()) return;
    for (const uint32_t kind : {0U, 3U}) {
        set_barrier(kind);
        const Report report = expect_one(run, Problem::thread_race, "exchange");
        EXPECT_EQ(report.buffer, "threadgroup");
    }
}

TEST_P(ExecutorMsl, UninitialisedThreadgroupMemory) {
    std::vector<uint16_t> halves(64);
    add(halves, "halves", false);
    Dispatch run = dispatch("skips_writes");
    run.buffer(0, in).buffer(1, halves).groups({1, 1, 1}, {64, 1, 1});
    expect_clean(run);
    if (!GetParam()) return;
    in[20] = -1;
    const Report report = expect_one(run, Problem::uninitialised_read, "skips_writes");
    EXPECT_EQ(report.offset, 40U);
    EXPECT_EQ(report.bytes, 2U);
    EXPECT_EQ(report.thread.x, 43U);
}

TEST_P(ExecutorMsl, BoundsOfBuffers) {
    Dispatch run = dispatch("copy");
    run.buffer(0, in).buffer(1, out).threads({64, 1, 1}, {32, 1, 1});
    expect_clean(run);
    if (!GetParam()) return;
    run.threads({65, 1, 1}, {64, 1, 1});
    const Report report = expect_one(run, Problem::out_of_bounds, "copy");
    EXPECT_EQ(report.thread.x, 64U);
    EXPECT_EQ(report.bytes, 16U);
}

TEST_P(ExecutorMsl, AlignmentOfArguments) {
    Dispatch run = dispatch("copy");
    run.buffer(0, in.data() + 1, 1020).buffer(1, out).threads({4, 1, 1}, {4, 1, 1});
    const Report report = expect_one(run, Problem::misaligned, "copy");
    EXPECT_NE(report.detail.find("argument in"), std::string::npos) << report.text();
}

TEST_P(ExecutorMsl, HazardsBetweenDispatches) {
    Dispatch first = dispatch("copy"), second = dispatch("copy");
    first.buffer(0, in).buffer(1, out).threads({64, 1, 1}, {32, 1, 1});
    second.buffer(0, out).buffer(1, in).threads({64, 1, 1}, {32, 1, 1});
    expect_clean(first);
    expect_clean(second);
    EXPECT_EQ(first.run(*executor), !GetParam());  // without an order between
    for (const Report& report : executor->take_reports()) EXPECT_EQ(report.problem, Problem::dispatch_hazard);
}

TEST_P(ExecutorMsl, BarrierDivergence) {
    Dispatch run = dispatch("leaves");
    run.buffer(0, in).groups({2, 1, 1}, {128, 1, 1});
    expect_clean(run);
    in[130] = 6;
    const Report report = expect_one(run, Problem::barrier_divergence, "leaves");
    EXPECT_NE(report.detail.find("thread (130, 0, 0) has ended"), std::string::npos) << report.text();
}

}  // namespace
}  // namespace metalsim::test
