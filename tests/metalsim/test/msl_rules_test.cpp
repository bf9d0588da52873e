#include <gtest/gtest.h>

#include <thread>

#include "msl/library.h"

// What MSL forbids is refused, with the line that it stands in.
namespace metalsim::test {
namespace {

std::string error_of(const std::string& source, const msl::Options& options = {}) {
    try {
        msl::compile("#include <metal_stdlib>\nusing namespace metal;\n" + source, options);
    } catch (const msl::CompileError& e) {
        return e.what();
    }
    return "";
}

struct Case {
    const char* name;
    const char* source;
    const char* message;
};

class Refused : public ::testing::TestWithParam<Case> {};

// Where the message says `line`, the fault is in the third line of the whole source: the first of `source`.
TEST_P(Refused, SaysWhy) {
    const std::string error = error_of(GetParam().source);
    EXPECT_NE(error.find(GetParam().message), std::string::npos) << error;
    EXPECT_NE(error.find("error: "), std::string::npos) << error;
}

const Case kCases[] = {
    {"Double", "kernel void k(device float* x) { double y = 1; x[0] = y; }", "program_source:3: error: 'double'"},
    {"LongLong", "kernel void k(device long* x) { long long y = 1; x[0] = y; }", "'long long'"},
    {"Goto", "kernel void k(device int* x) { again: x[0] = 1; if (x[0]) goto again; }", "'goto'"},
    {"New", "kernel void k(device int* x) { thread int* y = new int; x[0] = *y; }", "'new'"},
    {"Virtual", "struct S { virtual void f() {} };", "virtual functions"},
    {"Exception", "void f() { throw 1; }", "exceptions"},
    {"DynamicCast", "struct S {}; void f(thread S* s) { (void)dynamic_cast<thread S*>(s); }", "'dynamic_cast'"},
    {"ThreadLocal", "thread_local int x;", "'thread_local'"},
    {"Lambda", "kernel void k(device int* x) { auto f = [](int y) { return y; }; x[0] = f(1); }", "lambda expressions"},
    {"KernelPointerWithoutSpace", "kernel void k(float* x [[buffer(0)]]) { x[0] = 1; }",
     "program_source:3: error: pointer type must have explicit address space qualifier"},
    {"PointerWithoutSpace", "float f(const float* x) { return *x; }",
     "pointer type must have explicit address space qualifier"},
    {"ReferenceWithoutSpace", "float f(float& x) { return x; }",
     "reference type must have explicit address space qualifier"},
    {"LocalPointerWithoutSpace", "kernel void k(device float* x) { float* y = x; y[0] = 1; }",
     "pointer type must have explicit address space qualifier"},
    {"DeviceToThread", "kernel void k(device float* x) { thread float* y = x; y[0] = 1; }",
     "cannot initialize a variable"},
    {"DeviceToConstant", "kernel void k(device float* x) { constant float* y = x; x[1] = y[0]; }",
     "cannot initialize a variable"},
    {"DeviceToThreadgroup", "void f(threadgroup float* x) { *x = 1; } kernel void k(device float* x) { f(x); }",
     "no matching function"},
    {"DeviceToThreadWithMembers",  // no way round through the lenient compilation
     "struct S { float a; float get() const { return a; } }; void f(thread float* x) { *x = 1; }"
     "kernel void k(device S* s, device float* x) { x[0] = s->get(); f(x); }",
     "no matching function"},
    {"WriteToConstant", "kernel void k(constant float* x) { x[0] = 1; }", "read-only"},
    {"MutableProgramScope", "float total = 0;", "program scope variables must be in the constant address space"},
    {"StaticLocal", "kernel void k(device int* x) { static int n = 0; x[0] = n++; }", "static variables"},
    {"Recursion",
     "int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); } kernel void k(device int* x) { x[0] = f(x[0]); }",
     "recursion"},
    {"MutualRecursion",
     "int g(int n); int f(int n) { return n < 2 ? n : g(n - 1); } int g(int n) { return f(n - 1); }"
     "kernel void k(device int* x) { x[0] = f(x[0]); }",
     "recursion"},
    {"FunctionPointer",
     "int f(int n) { return n; } int g(int n) { return 2 * n; }"
     "kernel void k(device int* x) { int (*h)(int) = x[0] ? f : g; x[0] = h(x[1]); }",
     "function pointers are not supported"},
    {"NotVoid", "kernel int k(device int* x) { return x[0]; }", "a kernel must return void"},
    {"TooManyBuffers", "kernel void k(device int* x [[buffer(31)]]) { x[0] = 1; }", "at most 31 buffers"},
    {"SameIndex", "kernel void k(device int* x [[buffer(2)]], device int* y [[buffer(2)]]) { x[0] = y[0]; }",
     "is used twice"},
    {"SameHostName",
     "template <int N> kernel void k(device int* x [[buffer(0)]]) { x[0] = N; }"
     "template [[host_name(\"a\")]] kernel void k<1>(device int* x [[buffer(0)]]);"
     "template [[host_name(\"a\")]] kernel void k<2>(device int* x [[buffer(0)]]);",
     "two kernels named 'a'"},
    {"OtherSignature",
     "template <int N> kernel void k(device int* x [[buffer(0)]]) { x[0] = N; }"
     "template [[host_name(\"a\")]] kernel void k<1>(device float* x [[buffer(0)]]);",
     "the parameters of this instantiation"},
    {"NoAttribute", "kernel void k(device int* x, uint i) { x[i] = 1; }", "has no attribute"},
    {"UnknownAttribute", "kernel void k(device int* x, uint i [[thread_in_grid]]) { x[i] = 1; }", "unknown attribute"},
    {"ThreadgroupMemory",
     "kernel void k(device int* x, uint i [[thread_index_in_threadgroup]]) { threadgroup int a[8193]; a[i] = 1; x[i] = "
     "a[i]; }",
     "32772 bytes of threadgroup memory"},
    {"ThreadgroupInHelper", "void f() { threadgroup int a[4]; a[0] = 1; }",
     "threadgroup variables can only be declared in kernels"},
    {"ImplicitBfloat", "kernel void k(device float* x, device bfloat* y) { bfloat z = x[0]; y[0] = z; }",
     "implicit conversion"},
    {"BfloatToHalf", "kernel void k(device bfloat* x, device half* y) { y[0] = x[0]; }", "half"},
    {"AmbiguousMax", "kernel void k(device uint* x, device int* y) { y[0] = max(x[0], y[0]); }", "ambiguous"},
    {"SameConstantIndex",
     "constant bool a [[function_constant(0)]]; constant bool b [[function_constant(0)]];"
     "kernel void k(device int* x) { x[0] = a + b; }",
     "same index"},
    {"Syntax", "kernel void k(device int* x) { x[0] = ; }", "program_source:3"},
    {"Unmatched", "kernel void k(device int* x) { x[0] = (1; }", "unmatched"},
    {"Texture", "kernel void k(device int* x, uint t [[texture(0)]]) { x[0] = 1; }", "[[texture]] are not supported"},
};
INSTANTIATE_TEST_SUITE_P(Rules, Refused, ::testing::ValuesIn(kCases),
                         [](const auto& which) { return which.param.name; });

TEST(MslRules, WhatIsAllowedCompiles) {
    EXPECT_EQ(error_of(R"(
enum Kind : uint { kOne = 1 };
namespace helpers {
struct Pair { float a, b; float sum() const { return a + b; } };
template <typename T> T twice(T x) { return x + x; }
}
struct Complex {
    float re, im;
    constexpr Complex(float r, float i) thread : re(r), im(i) {}
    Complex operator*(Complex o) const thread { return Complex(re * o.re - im * o.im, re * o.im + im * o.re); }
    operator float() const thread { return re; }
    operator float() const device { return re; }
};
static constant constexpr const float kTable[2][2] = {{1, 2}, {3, 4}};
float from_table(constant float* row, int i) { return row[i]; }
kernel void allowed(device float* x [[buffer(0)]], constant helpers::Pair& pair [[buffer(1)]],
                    device Complex* c [[buffer(2)]], ushort2 at [[thread_position_in_grid]]) {
    const helpers::Pair copied = pair;
    thread float* y = &x[0] ? (thread float*)&copied : nullptr;
    for (int i = 0; i < 2; ++i) x[i] = helpers::twice(copied.sum()) + kTable[i][at.x] + from_table(kTable[1], i) + *y;
    c[1] = c[0] * Complex(1, 2);
    c[0].re = float(c[1]);
    if (kOne < 2 && 3 > float2(1, 2).x) x[0] = 1.5;
})"),
              "");
}

TEST(MslRules, IncludesAndDefines) {
    msl::Options options;
    const auto folder = std::filesystem::temp_directory_path() / ("metalsim-test-" + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
    const auto write = [&](const char* text) {
        FILE* file = std::fopen((folder / "mine.h").c_str(), "w");
        ASSERT_NE(file, nullptr);
        std::fputs(text, file);
        std::fclose(file);
    };
    options.include_folders = {folder};
    options.defines = {"WIDTH=4"};
    const std::string source = "#include \"mine.h\"\nkernel void k(device int* x) { x[0] = f() + WIDTH; }";
    write("#pragma once\nint f() { return 3; }\n");
    EXPECT_EQ(error_of(source, options), "");
    write("#pragma once\nint f() { return 3.0; }\nint g() { return undeclared; }\n");  // found though the source is the
                                                                                       // same
    EXPECT_NE(error_of(source, options).find("mine.h:3"), std::string::npos);
    std::filesystem::remove_all(folder);
}

msl::Options of_version(uint32_t version) {
    msl::Options options;
    options.version = version;
    return options;
}

TEST(MslRules, VersionsAreTold) {
    for (const uint32_t version : {110u, 240u, 300u, 310u, 320u, 400u}) {
        const std::string value = std::to_string(version);
        EXPECT_EQ(error_of("static_assert(__METAL_VERSION__ == " + value + ", \"\");", of_version(version)), "");
        EXPECT_EQ(error_of("#if __METAL_VERSION__ < " + value + "\n#error\n#endif", of_version(version)), "");
    }
}

TEST(MslRules, WhatAVersionDoesNotHaveIsRefused) {
    const std::string brain = "kernel void k(device float* x) { bfloat y = bfloat(x[0]); x[0] = float(y); }";
    const std::string vector = "kernel void k(device bfloat4* x) { x[0] = x[1]; }";
    for (const std::string& source : {brain, vector}) {
        EXPECT_EQ(error_of(source, of_version(310)), "");
        EXPECT_NE(error_of(source, of_version(300)).find("is not supported before Metal 3.1"), std::string::npos);
        EXPECT_EQ(error_of("#if __METAL_VERSION__ >= 310\n" + source + "\n#endif", of_version(300)), "");
    }
    const std::string lambda = "kernel void k(device int* x) { auto f = [](int y) { return y + 1; }; x[0] = f(1); }";
    EXPECT_EQ(error_of(lambda, of_version(320)), "");
    EXPECT_NE(error_of(lambda, of_version(310)).find("before Metal 3.2"), std::string::npos);
}

// Several compilations of one source at once leave one library and a usable result each.
TEST(MslRules, ConcurrentCompilations) {
    msl::Options options;
    options.cache = std::filesystem::temp_directory_path() / ("metalsim-cache-test-" + std::to_string(getpid()));
    std::vector<std::thread> threads;
    std::vector<size_t> counts(3);
    for (size_t i = 0; i < counts.size(); ++i)
        threads.emplace_back([&, i] {
            counts[i] = msl::compile("kernel void k(device int* x) { x[0] = 1; }", options)->functions().size();
        });
    for (std::thread& t : threads) t.join();
    EXPECT_EQ(counts, (std::vector<size_t>{1, 1, 1}));
    size_t files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(options.cache)) files += entry.is_regular_file();
    EXPECT_EQ(files, 1u);
    std::filesystem::remove_all(options.cache);
}

}  // namespace
}  // namespace metalsim::test
