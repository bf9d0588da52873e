#include <gtest/gtest.h>

#include <numeric>

#include "test/msl_kernels.h"

// Compiled MSL computes what it says.
namespace metalsim::test {
namespace {

class Msl : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(HostAndChecked, Msl, ::testing::Bool(),
                         [](const auto& which) { return which.param ? "checked" : "host"; });

std::string text_of(const std::vector<Report>& reports) {
    std::string out;
    for (const Report& r : reports) out += r.text() + "\n";
    return out;
}

TEST_P(Msl, BuffersAndPositions) {
    MslRun run(R"(
struct Params { uint n; float scale; };
kernel void scale(device const float* x [[buffer(0)]], device float* y [[buffer(1)]], constant Params& p [[buffer(2)]],
                  uint i [[thread_position_in_grid]], uint3 group [[threadgroup_position_in_grid]]) {
    if (i < p.n) y[i] = x[i] * p.scale + group.x;
})",
               GetParam());
    std::vector<float> x(100), y(100, -1.0f);
    std::iota(x.begin(), x.end(), 0.0f);
    struct {
        uint32_t n;
        float scale;
    } p{90, 0.5f};
    std::vector<unsigned char> params(sizeof p);
    std::memcpy(params.data(), &p, sizeof p);
    run.buffer(0, x).buffer(1, y).buffer(2, params);
    ASSERT_TRUE(run.run("scale", {4}, {32})) << text_of(run.reports);
    for (uint32_t i = 0; i < 100; ++i) EXPECT_EQ(y[i], i < 90 ? i * 0.5f + i / 32 : -1.0f) << i;
}

TEST_P(Msl, SimdgroupFunctions) {
    MslRun run(R"(
kernel void lanes(device uint* out, uint lane [[thread_index_in_simdgroup]]) {
    device uint* o = out + lane * 16;
    o[0] = simd_sum(lane);
    o[1] = simd_max(lane * 3);
    o[2] = simd_min(lane + 5);
    o[3] = simd_prefix_exclusive_sum(lane);
    o[4] = simd_prefix_inclusive_sum(1u);
    o[5] = simd_shuffle_xor(lane, 3);
    o[6] = simd_shuffle_down(lane, 4);
    o[7] = simd_shuffle_up(lane, 4);
    o[8] = simd_shuffle_rotate_down(lane, 5);
    o[9] = uint(ulong(simd_ballot(lane % 3 == 0)));
    o[10] = simd_broadcast(lane, 7);
    o[11] = simd_shuffle_and_fill_down(lane, 100 + lane, 8);
    o[12] = quad_sum(lane);
    o[13] = simd_or(1u << (lane / 2));
    if (lane > 4) o[14] = simd_broadcast_first(lane);
    o[15] = simd_all(lane < 32) && !simd_any(lane == 32);
})",
               GetParam());
    std::vector<uint32_t> out(32 * 16, 0);
    run.buffer(0, out);
    ASSERT_TRUE(run.run("lanes", {1}, {32})) << text_of(run.reports);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        const uint32_t* o = out.data() + lane * 16;
        EXPECT_EQ(o[0], 496u);
        EXPECT_EQ(o[1], 93u);
        EXPECT_EQ(o[2], 5u);
        EXPECT_EQ(o[3], lane * (lane - 1) / 2);
        EXPECT_EQ(o[4], lane + 1);
        EXPECT_EQ(o[5], lane ^ 3);
        if (lane < 28) {
            EXPECT_EQ(o[6], lane + 4);
        }
        if (lane >= 4) {
            EXPECT_EQ(o[7], lane - 4);
        }
        EXPECT_EQ(o[8], (lane + 5) % 32);
        EXPECT_EQ(o[9], 0b01001001001001001001001001001001u);
        EXPECT_EQ(o[10], 7u);
        EXPECT_EQ(o[11], lane < 24 ? lane + 8 : 100 + lane - 24);
        EXPECT_EQ(o[12], lane / 4 * 16 + 6);
        EXPECT_EQ(o[13], 0xffffu);
        if (lane > 4) {
            EXPECT_EQ(o[14], 5u);
        }
        EXPECT_EQ(o[15], 1u);
    }
}

TEST_P(Msl, ThreadgroupMemoryAndAtomics) {
    MslRun run(R"(
template <typename T, int N>
kernel void reversed(device const T* x [[buffer(0)]], device T* y [[buffer(1)]], device atomic_uint* count [[buffer(2)]],
                     threadgroup T* extra [[threadgroup(0)]], uint i [[thread_position_in_grid]],
                     uint t [[thread_position_in_threadgroup]]) {
    threadgroup T shared[N];
    threadgroup atomic_int total;
    if (t == 0) atomic_store_explicit(&total, 0, memory_order_relaxed);
    shared[t] = x[i];
    extra[t] = x[i] + T(1);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    atomic_fetch_add_explicit(&total, int(t), memory_order_relaxed);
    atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = shared[N - 1 - t] + extra[t] + T(atomic_load_explicit(&total, memory_order_relaxed));
}
template [[host_name("reversed_int")]] kernel void reversed<int, 64>(
    device const int* x [[buffer(0)]], device int* y [[buffer(1)]], device atomic_uint* count [[buffer(2)]],
    threadgroup int* extra [[threadgroup(0)]], uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]]);
typedef decltype(reversed<float, 64>) reversed_t;
template [[host_name("reversed_float")]] kernel reversed_t reversed<float, 64>;
)",
               GetParam());
    std::vector<int> x(256), y(256);
    std::vector<uint32_t> count(1);
    std::iota(x.begin(), x.end(), 0);
    run.buffer(0, x).buffer(1, y).buffer(2, count).threadgroup_memory(0, 64 * 4);
    ASSERT_TRUE(run.run("reversed_int", {4}, {64})) << text_of(run.reports);
    for (int i = 0; i < 256; ++i) EXPECT_EQ(y[i], i / 64 * 64 + 63 - i % 64 + i + 1 + 2016) << i;
    EXPECT_EQ(count[0], 256u);
    EXPECT_EQ(run.library().find("reversed_float")->threadgroup_bytes, 260u);
}

TEST_P(Msl, SimdgroupMatrices) {
    MslRun run(R"(
kernel void product(device const float* a [[buffer(0)]], device const half* b [[buffer(1)]], device float* c [[buffer(2)]]) {
    simdgroup_float8x8 x, sum = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
    simdgroup_half8x8 y;
    for (uint k = 0; k < 16; k += 8) {
        simdgroup_load(x, a + k, 16);
        simdgroup_load(y, b + k, 16, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sum, x, y, sum);
    }
    simdgroup_store(sum, c, 8);
})",
               GetParam());
    std::vector<float> a(8 * 16), c(64);
    std::vector<_Float16> b(8 * 16);
    for (int i = 0; i < 128; ++i) {
        a[i] = float(i % 7) - 3;
        b[i] = static_cast<_Float16>(i % 5 - 2);
    }
    run.buffer(0, a).buffer(1, b).buffer(2, c);
    ASSERT_TRUE(run.run("product", {1}, {32})) << text_of(run.reports);
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) {
            float sum = 1;
            for (int k = 0; k < 16; ++k) sum += a[i * 16 + k] * float(b[j * 16 + k]);
            EXPECT_EQ(c[i * 8 + j], sum) << i << " " << j;
        }
}

TEST_P(Msl, FunctionConstants) {
    MslRun run(R"(
constant bool add [[function_constant(0)]];
constant uint width [[function_constant(3)]];
constant uint actual = is_function_constant_defined(width) ? width : 64;
kernel void constants(device uint* out [[buffer(0)]], device const uint* extra [[buffer(1), function_constant(add)]]) {
    out[0] = actual;
    if (add) out[1] = extra[0];
})",
               GetParam());
    std::vector<uint32_t> out(2), extra{7};
    run.buffer(0, out).buffer(1, extra).constant(0, false);
    ASSERT_TRUE(run.run("constants", {1}, {1})) << text_of(run.reports);
    EXPECT_EQ(out, (std::vector<uint32_t>{64, 0}));
    run.constant(0, true).constant(3, uint32_t{128});
    ASSERT_TRUE(run.run("constants", {1}, {1})) << text_of(run.reports);
    EXPECT_EQ(out, (std::vector<uint32_t>{128, 7}));
    ASSERT_EQ(run.library().constants().size(), 2u);
    EXPECT_TRUE(run.library().constants()[0].required);
    EXPECT_FALSE(run.library().constants()[1].required);
    const msl::Argument& last = run.library().find("constants")->arguments[1];
    EXPECT_EQ(last.function_constant, 0u);
}

TEST_P(Msl, Vectors) {
    MslRun run(R"(
constant float table[3] = {1.5, 2.5, 3.5};
template <typename T> using four = vec<T, 4>;
template <typename T4> T4 widen(float a) { return T4(a, 2 * a, 3 * a, 4 * a); }
struct Block { half d; uchar q[4]; };
kernel void vectors(device float4* out [[buffer(0)]], device const packed_float3* packed [[buffer(1)]],
                    device const Block* blocks [[buffer(2)]]) {
    float3 v = float3(packed[1]);
    out[0] = float4(v, table[1]);
    out[1] = float4(widen<half4>(1.5h)) + (float4)widen<int4>(2);
    out[2] = select(float4(1), float4(2), float4(1, 5, 2, 7) > 3.0);
    Block b = blocks[1];
    out[3] = float4(b.d, b.q[0], b.q[3], clamp(float(b.q[1]), 0.0, 10.0));
    uint4 bits = as_type<uint4>(out[3]) >> 23;
    out[4] = vec<float, 4>(bits & 0xff);
    float4 w = out[1];
    w.xz = w.zx;
    w.y += dot(w, four<float>(1, 0, 0, 0));
    out[5] = w;
    bool4 positive = w > 10;
    out[6] = float4(any(positive), all(positive), positive.x, float(half(1.0 / 3)));
    out[7] = fract(float4(1.25, -1.25, 2, 0.5)) + sign(float4(-2, 0, 3, 1));
    bfloat small = bfloat(1.0f / 3);
    uchar4 u = uchar4(250, 1, 2, 3) + uchar4(10);
    out[8] = float4(small, u.x, popcount(0xffu), clz(1u));
    float4x4 m(2.0);
    m[1][0] = 1;
    out[9] = m * float4(1, 2, 3, 4);
})",
               GetParam());
    std::vector<float> out(40), packed{0, 0, 0, 1, 2, 3};
    std::vector<unsigned char> blocks{0, 0, 0, 0, 0, 0, 0x00, 0x40, 4, 200, 6, 7};
    run.buffer(0, out).buffer(1, packed).buffer(2, blocks);
    ASSERT_TRUE(run.run("vectors", {1}, {1})) << text_of(run.reports);
    const std::vector<float> expected{
        1,      2,     3,   2.5f, 3.5f,         7,   10.5f, 14,    1,    2,  1, 2, 2, 4,
        7,      10,    128, 129,  129,          130, 10.5f, 17.5f, 3.5f, 14, 1, 0, 1, float(_Float16(1.0f / 3)),
        -0.75f, 0.75f, 1,   1.5f, 0.333984375f, 4,   8,     31,    4,    4,  6, 8};
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(out[i], expected[i]) << i;
}

TEST(MslLibrary, DescribesArguments) {
    const auto library = msl::compile(R"(#include <metal_stdlib>
using namespace metal;
struct Params { uint n; float4 scale; };
template <typename T, int N>
[[kernel, max_total_threads_per_threadgroup(N * 32)]] void described(
    device const T* x, device half* y [[buffer(0)]], constant Params& p, constant uchar* bytes [[buffer(7)]],
    threadgroup float4* shared, threadgroup T* other [[threadgroup(0)]], uint i [[thread_position_in_grid]]) {
    y[i] = half(x[i]) + half(p.n + bytes[0]) + half(shared[0].x) + half(other[0]);
}
template [[host_name("described_float")]] [[kernel]] decltype(described<float, 4>) described<float, 4>;
)",
                                      {});
    ASSERT_EQ(library->functions().size(), 1u);
    EXPECT_EQ(library->find("described"), nullptr);
    const msl::Function& f = *library->find("described_float");
    EXPECT_EQ(f.max_total_threads, 128u);
    EXPECT_EQ(f.threadgroup_bytes, 0u);
    struct Expected {
        const char* name;
        msl::ArgumentKind kind;
        uint32_t index, alignment, minimum;
        bool constant, writable;
    };
    // Indexes that are not given are the first free ones, in order.
    const Expected expected[] = {{"x", msl::ArgumentKind::buffer, 1, 4, 0, false, false},
                                 {"y", msl::ArgumentKind::buffer, 0, 2, 0, false, true},
                                 {"p", msl::ArgumentKind::buffer, 2, 16, 32, true, false},
                                 {"bytes", msl::ArgumentKind::buffer, 7, 4, 0, true, false},
                                 {"shared", msl::ArgumentKind::threadgroup, 1, 16, 0, false, true},
                                 {"other", msl::ArgumentKind::threadgroup, 0, 4, 0, false, true}};
    ASSERT_EQ(f.arguments.size(), std::size(expected));
    for (size_t i = 0; i < std::size(expected); ++i) {
        const msl::Argument& a = f.arguments[i];
        EXPECT_EQ(a.name, expected[i].name);
        EXPECT_EQ(a.kind, expected[i].kind) << a.name;
        EXPECT_EQ(a.index, expected[i].index) << a.name;
        EXPECT_EQ(a.alignment, expected[i].alignment) << a.name;
        EXPECT_EQ(a.minimum_bytes, expected[i].minimum) << a.name;
        EXPECT_EQ(a.constant, expected[i].constant) << a.name;
        EXPECT_EQ(a.writable, expected[i].writable) << a.name;
        EXPECT_FALSE(a.function_constant.has_value()) << a.name;
    }
}

TEST(MslChecked, FindsWhatAKernelDoesWrong) {
    const char* source = R"(
kernel void beyond(device float* x, uint i [[thread_position_in_grid]]) { x[i + 1] = 1; }
kernel void race(device float* x, uint i [[thread_position_in_threadgroup]]) {
    threadgroup float shared[32];
    shared[i] = x[i];
    x[i] = shared[(i + 1) % 32];
})";
    MslRun run(source, true);
    std::vector<float> x(32);
    run.buffer(0, x);
    EXPECT_FALSE(run.run("beyond", {1}, {32}));
    ASSERT_FALSE(run.reports.empty());
    EXPECT_EQ(run.reports[0].problem, Problem::out_of_bounds) << text_of(run.reports);
    EXPECT_EQ(run.reports[0].thread.x, 31u);
    EXPECT_FALSE(run.run("race", {1}, {32}));
    ASSERT_FALSE(run.reports.empty());
    EXPECT_TRUE(run.reports[0].problem == Problem::thread_race || run.reports[0].problem == Problem::uninitialised_read)
        << text_of(run.reports);
}

// Accesses that a compiler likes to make others of.
TEST(MslChecked, SeesCopiesAndFills) {
    MslRun run(R"(
struct Big { float a[12]; };
kernel void structure(device const Big* from, device float* to, uint i [[thread_position_in_grid]]) {
    const Big b = from[i];
    float sum = 0;
    for (int j = 0; j < 12; ++j) sum += b.a[j];
    to[i] = sum;
}
kernel void copy(device const uchar* from, device uchar* to) { for (int i = 0; i < 97; ++i) to[i] = from[i]; }
kernel void wide(device const long4* from, device long4* to) { to[7] = from[0]; to[8] = from[1]; }
)",
               true);
    struct alignas(32) Chunk {
        unsigned char bytes[32];
    };
    std::vector<Chunk> from(3), to(8);
    run.buffer(0, from).buffer(1, to);
    const auto finds = [&](const char* kernel, uint64_t offset, const char* label) {
        EXPECT_FALSE(run.run(kernel, {1}, {1})) << kernel;
        ASSERT_FALSE(run.reports.empty()) << kernel;
        EXPECT_EQ(run.reports[0].problem, Problem::out_of_bounds) << text_of(run.reports);
        EXPECT_EQ(run.reports[0].buffer, label) << text_of(run.reports);
        EXPECT_EQ(run.reports[0].offset, offset) << text_of(run.reports);
    };
    EXPECT_TRUE(run.run("structure", {1}, {2})) << text_of(run.reports);
    EXPECT_FALSE(run.run("structure", {1}, {3}));
    finds("copy", 96, "buffer 0");
    finds("wide", 256, "buffer 1");
    MslRun other(R"(
kernel void fill(device uint* to) { for (int i = 0; i < 65; ++i) to[i] = 0; }
kernel void stores(device float* to) { to[61] = 0; to[62] = 0; to[63] = 0; to[64] = 0; }
)",
                 true);
    std::vector<unsigned char> only(256);
    other.buffer(0, only);
    for (const char* kernel : {"fill", "stores"}) {
        EXPECT_FALSE(other.run(kernel, {1}, {1})) << kernel;
        ASSERT_FALSE(other.reports.empty());
        EXPECT_EQ(other.reports[0].offset, 256u) << text_of(other.reports);
    }
}

}  // namespace
}  // namespace metalsim::test
