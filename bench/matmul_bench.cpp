// The matrix kernels on one core, for each instruction set, weight type and shape (rows x k): with one activation row,
// through more weights than caches hold, and with 512. The context states two ceilings, the counters the share of them:
// "read" of what plain reads of memory reach, "peak" of the instruction set's byte dot product from the nearest cache.
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "bench_support.h"
#include "matmul_test_data.h"

namespace metallic::bench {
namespace {

using cpu::MatmulKernels;
using testing::AlignedBytes;

struct Shape {
    size_t rows, k;
};
constexpr Shape kShapes[] = {{4096, 4096}, {14336, 4096}, {4096, 14336}, {2048, 2048}};

struct Case {
    DType type;
    Shape shape;
    size_t m_rows;
};

struct Ceilings {
    double read_gb, peak_gmac;  // per second; 0: none
};

#if defined(__x86_64__)
constexpr int kPeakSteps = 64, kPeakTile = 8, kPeakRounds = 20000;

__attribute__((target("avx512f,avx512bw,avx512vnni"))) void dot_avx512(const uint8_t* w, const uint8_t* a) {
    __m512i sum[kPeakTile] = {};
    for (int round = 0; round < kPeakRounds; ++round) {
        for (int k = 0; k < kPeakSteps; ++k) {
            const __m512i codes = _mm512_load_si512(w + 64 * k);
#pragma GCC unroll 8
            for (int i = 0; i < kPeakTile; ++i) {
                int32_t q;
                std::memcpy(&q, a + 512 * i + 4 * k, sizeof q);
                sum[i] = _mm512_dpbusd_epi32(sum[i], codes, _mm512_set1_epi32(q));
            }
        }
    }
    for (__m512i& s : sum) benchmark::DoNotOptimize(s);
}

__attribute__((target("avx2"))) void dot_avx2(const uint8_t* w, const uint8_t* a) {
    __m256i sum[kPeakTile] = {};
    for (int round = 0; round < kPeakRounds; ++round) {
        for (int k = 0; k < kPeakSteps; ++k) {
            const __m256i codes = _mm256_load_si256(reinterpret_cast<const __m256i*>(w + 32 * k));
#pragma GCC unroll 8
            for (int i = 0; i < kPeakTile; ++i) {
                int32_t q;
                std::memcpy(&q, a + 512 * i + 4 * k, sizeof q);
                const __m256i pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(q));
                sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            }
        }
    }
    for (__m256i& s : sum) benchmark::DoNotOptimize(s);
}
#endif

// Billions of multiply-adds of bytes per second; 0 where the instruction set has no such operation.
double dot_peak([[maybe_unused]] std::string_view isa) {
#if defined(__x86_64__)
    AlignedBytes w(64 * kPeakSteps), a(512 * kPeakTile);
    const double dots = double{kPeakTile} * kPeakSteps * kPeakRounds;
    if (isa == "avx512") return best_giga(64 * dots, [&] { dot_avx512(w.data(), a.data()); });
    if (isa == "avx2") return best_giga(32 * dots, [&] { dot_avx2(w.data(), a.data()); });
#endif
    return 0;
}

void multiply(benchmark::State& state, const MatmulKernels& kernels, const Case& c, const Ceilings& ceilings) {
    const size_t rows = c.shape.rows, k = c.shape.k;
    const size_t w_stride = row_bytes(c.type, k), matrix_bytes = rows * w_stride;
    const size_t copies = c.m_rows > 1 ? 1 : std::max<size_t>(1, kBeyondCaches / matrix_bytes);
    std::mt19937 random(1);
    const std::vector<uint8_t> some = testing::random_weights(c.type, 16, k, random);
    const Memory weights = allocate(copies * matrix_bytes);
    for (size_t at = 0; at < copies * matrix_bytes; at += some.size()) {
        std::memcpy(weights.get() + at, some.data(), some.size());
    }
    const cpu::ActivationFormat format = cpu::activation_format(c.type);
    const size_t stride = cpu::activation_row_bytes(format, k);
    AlignedBytes activations(stride * c.m_rows), scratch(cpu::matmul_scratch_bytes(k));
    const std::vector<float> x = testing::random_floats(k, random);
    for (size_t m = 0; m < c.m_rows; ++m) {
        kernels.quantise(format, x.data(), k, activations.data() + m * stride);
    }
    std::vector<float> out(rows * c.m_rows);
    const double seconds = mean_seconds(state, [&](size_t i) {
        kernels.multiply(c.type, weights.get() + (i % copies) * matrix_bytes, w_stride, rows, k, activations.data(),
                         stride, c.m_rows, out.data(), rows, scratch.data());
    });
    if (c.m_rows == 1) {
        state.counters["GB/s"] = 1e-9 * static_cast<double>(matrix_bytes) / seconds;
        state.counters["read"] = state.counters["GB/s"] / ceilings.read_gb;
    } else {
        state.counters["GMAC/s"] = 1e-9 * static_cast<double>(rows * k * c.m_rows) / seconds;
        if (ceilings.peak_gmac > 0) state.counters["peak"] = state.counters["GMAC/s"] / ceilings.peak_gmac;
    }
}

void add(const cpu::Isa& isa, const Case& c, const Ceilings& ceilings) {
    const std::string name = std::string("matmul/") + isa.name + "/" + std::string(dtype_info(c.type).name) + "/" +
                             std::to_string(c.shape.rows) + "x" + std::to_string(c.shape.k) +
                             "/rows:" + std::to_string(c.m_rows);
    const auto run = [=, kernels = isa.matmul](benchmark::State& state) { multiply(state, *kernels, c, ceilings); };
    benchmark::RegisterBenchmark(name.c_str(), run)->Unit(benchmark::kMillisecond);
}

void add_all() {
    Ceilings ceilings{read_bandwidth(), 0};
    benchmark::AddCustomContext("read GB/s", std::to_string(ceilings.read_gb));
    for (const cpu::Isa& isa : measured_isas()) {
        ceilings.peak_gmac = dot_peak(isa.name);
        if (ceilings.peak_gmac > 0)
            benchmark::AddCustomContext(std::string(isa.name) + " peak GMAC/s", std::to_string(ceilings.peak_gmac));
        for (const DType type : testing::kWeightTypes) {
            for (const size_t m_rows : {1, 512}) {
                for (const Shape& shape : kShapes) add(isa, {type, shape, m_rows}, ceilings);
            }
        }
    }
}

}  // namespace
}  // namespace metallic::bench

int main(int argc, char** argv) {
    return metallic::bench::run_benchmarks(argc, argv, metallic::bench::add_all);
}
