// Speed of the CPU matrix kernels, against two ceilings that the program measures itself, next to every case: the rate
// at which the same threads read memory (for one activation row), and the rate of the instruction set's byte dot
// product from the first-level cache (for many).
//
//   matmul_bench [--isa NAME] [--types Q4_0,Q4_K] [--threads N] [--rows-of-activations M] [--json FILE]
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "backend/cpu/isa/matmul_kernels.h"
#include "backend/cpu/isa/select.h"
#include "matmul_test_data.h"

namespace metallic {
namespace {

using cpu::MatmulKernels;
using testing::AlignedBytes;

struct Options {
    const MatmulKernels* kernels = cpu::supported_isas().back().matmul;
    std::vector<DType> types{std::begin(testing::kWeightTypes), std::end(testing::kWeightTypes)};
    unsigned threads = 1;
    size_t m_rows = 512;
    std::string json;
};

struct Shape {
    size_t rows, k;
};
constexpr Shape kShapes[] = {{4096, 4096}, {14336, 4096}, {4096, 14336}, {2048, 2048}};
constexpr size_t kStreamed = size_t{192} << 20;  // bytes of weights, several matrices in turn: more than caches hold
constexpr int kRepeats = 5;

struct Result {
    DType type;
    Shape shape;
    double gigabytes, read_gigabytes;  // per second
    double gigamacs, peak_gigamacs;    // per second
};

// The time that this thread has run.
double seconds() {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Runs work(i) on each of `threads` threads, all started together, and returns the time of the busiest one: what other
// processes take from it is not counted.
double run(unsigned threads, const std::function<void(unsigned)>& work) {
    std::atomic<unsigned> ready{0};
    std::atomic<bool> go{false};
    std::vector<double> times(threads);
    const auto timed = [&](unsigned i) {
        const double start = seconds();
        work(i);
        times[i] = seconds() - start;
    };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) {
        others.emplace_back([&, i] {
            ++ready;
            while (!go) std::this_thread::yield();
            timed(i);
        });
    }
    while (ready + 1 < threads) std::this_thread::yield();
    go = true;
    timed(0);
    for (std::thread& thread : others) thread.join();
    return *std::max_element(times.begin(), times.end());
}

std::atomic<uint64_t> sink;

void read_all(const uint8_t* p, size_t bytes) {
    uint64_t sums[16] = {};
    for (size_t i = 0; i + 128 <= bytes; i += 128) {
        uint64_t words[16];
        std::memcpy(words, p + i, sizeof words);
        for (int j = 0; j < 16; ++j) sums[j] += words[j];
    }
    for (const uint64_t sum : sums) sink += sum;
}

constexpr int kPeakSteps = 64, kPeakTile = 8, kPeakRounds = 20000;

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vnni"))) double dot_macs_avx512(const uint8_t* w, const uint8_t* a) {
    __m512i sum[kPeakTile];
    for (__m512i& s : sum) s = _mm512_setzero_si512();
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
    alignas(64) int32_t lanes[16];
    for (const __m512i s : sum) {
        _mm512_store_si512(lanes, s);
        sink += static_cast<uint64_t>(lanes[0]);
    }
    return 64.0 * kPeakTile * kPeakSteps * kPeakRounds;
}

__attribute__((target("avx2"))) double dot_macs_avx2(const uint8_t* w, const uint8_t* a) {
    __m256i sum[kPeakTile];
    for (__m256i& s : sum) s = _mm256_setzero_si256();
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
    for (const __m256i s : sum) sink += static_cast<uint64_t>(_mm_cvtsi128_si32(_mm256_castsi256_si128(s)));
    return 32.0 * kPeakTile * kPeakSteps * kPeakRounds;
}
#endif

// Multiply-adds of bytes per second of all threads; 0 where the instruction set has no such operation.
double measure_peak(const Options& options) {
#if defined(__x86_64__)
    const std::string isa = options.kernels->name;
    if (isa == "portable") return 0;
    double best = 0;
    for (int repeat = 0; repeat < 3; ++repeat) {
        std::atomic<uint64_t> macs{0};
        const double time = run(options.threads, [&](unsigned) {
            AlignedBytes w(64 * kPeakSteps), a(512 * kPeakTile);
            macs += static_cast<uint64_t>(isa == "avx512" ? dot_macs_avx512(w.data(), a.data())
                                                          : dot_macs_avx2(w.data(), a.data()));
        });
        best = std::max(best, static_cast<double>(macs) / time);
    }
    return best;
#else
    static_cast<void>(options);
    return 0;
#endif
}

// The rows of thread i: a multiple of 16, but for the last.
struct Part {
    size_t first, count;
};
Part part_of(size_t rows, unsigned threads, unsigned i) {
    const size_t per_thread = (rows / threads + 15) / 16 * 16;
    const size_t first = std::min(rows, per_thread * i);
    return {first, i + 1 == threads ? rows - first : std::min(per_thread, rows - first)};
}

class Case {
  public:
    Case(const Options& options, DType type, Shape shape) : options_(options), type_(type), shape_(shape) {
        std::mt19937 random(1);
        matrix_bytes_ = shape.rows * row_bytes(type, shape.k);
        copies_ = std::max<size_t>(1, kStreamed / matrix_bytes_);
        const std::vector<uint8_t> some = testing::random_weights(type, 16, shape.k, random);
        weights_.resize(copies_ * matrix_bytes_);
        for (size_t at = 0; at < weights_.size(); at += some.size()) {
            std::memcpy(weights_.data() + at, some.data(), std::min(some.size(), weights_.size() - at));
        }
        const cpu::ActivationFormat format = cpu::activation_format(type);
        stride_ = cpu::activation_row_bytes(format, shape.k);
        activations_ = std::make_unique<AlignedBytes>(stride_ * options.m_rows);
        const std::vector<float> x = testing::random_floats(shape.k, random);
        for (size_t m = 0; m < options.m_rows; ++m) {
            options.kernels->quantise(format, x.data(), shape.k, activations_->data() + m * stride_);
        }
        out_.resize(shape.rows * options.m_rows);
    }

    Result measure() {
        Result result{type_, shape_, 0, 0, 0, 0};
        for (int repeat = 0; repeat < kRepeats; ++repeat) {
            const double read = run(options_.threads, [&](unsigned i) {
                const Part part = part_of(weights_.size() / 64, options_.threads, i);
                read_all(weights_.data() + part.first * 64, part.count * 64);
            });
            result.read_gigabytes = std::max(result.read_gigabytes, static_cast<double>(weights_.size()) / read * 1e-9);
            const double time = run(options_.threads, [&](unsigned i) {
                for (size_t copy = 0; copy < copies_; ++copy) multiply(i, copy, 1);
            });
            result.gigabytes = std::max(result.gigabytes, static_cast<double>(weights_.size()) / time * 1e-9);
        }
        const double macs = static_cast<double>(shape_.rows * shape_.k * options_.m_rows);
        for (int repeat = 0; repeat < 3; ++repeat) {
            result.peak_gigamacs = std::max(result.peak_gigamacs, measure_peak(options_) * 1e-9);
            const double time = run(options_.threads, [&](unsigned i) { multiply(i, 0, options_.m_rows); });
            result.gigamacs = std::max(result.gigamacs, macs / time * 1e-9);
        }
        return result;
    }

  private:
    void multiply(unsigned thread, size_t copy, size_t m_rows) {
        const Part part = part_of(shape_.rows, options_.threads, thread);
        const size_t w_stride = row_bytes(type_, shape_.k);
        AlignedBytes scratch(cpu::matmul_scratch_bytes(shape_.k));
        options_.kernels->multiply(type_, weights_.data() + copy * matrix_bytes_ + part.first * w_stride, w_stride,
                                   part.count, shape_.k, activations_->data(), stride_, m_rows,
                                   out_.data() + part.first, shape_.rows, scratch.data());
    }

    const Options& options_;
    DType type_;
    Shape shape_;
    size_t matrix_bytes_ = 0, copies_ = 0, stride_ = 0;
    std::vector<uint8_t> weights_;
    std::unique_ptr<AlignedBytes> activations_;
    std::vector<float> out_;
};

// Null where this processor cannot run them.
const MatmulKernels* find_kernels(const std::string& name) {
    for (const cpu::Isa& isa : cpu::supported_isas()) {
        if (name == isa.name) return isa.matmul;
    }
    return nullptr;
}

double share(double rate, double ceiling) {
    return ceiling > 0 ? rate / ceiling : 0;
}

void write_json(const Options& options, const std::vector<Result>& results) {
    FILE* file = std::fopen(options.json.c_str(), "w");
    if (file == nullptr) {
        std::fprintf(stderr, "cannot write %s\n", options.json.c_str());
        std::exit(1);
    }
    std::fprintf(file, "{\"isa\": \"%s\", \"threads\": %u, \"activation_rows\": %zu, \"results\": [",
                 options.kernels->name, options.threads, options.m_rows);
    for (size_t i = 0; i < results.size(); ++i) {
        const Result& r = results[i];
        std::fprintf(file,
                     "%s\n  {\"type\": \"%s\", \"rows\": %zu, \"k\": %zu, \"gb_per_s\": %.3f, \"read_gb_per_s\": %.3f, "
                     "\"read_share\": %.4f, \"gmac_per_s\": %.3f, \"peak_gmac_per_s\": %.3f, \"peak_share\": %.4f}",
                     i == 0 ? "" : ",", dtype_info(r.type).name.data(), r.shape.rows, r.shape.k, r.gigabytes,
                     r.read_gigabytes, share(r.gigabytes, r.read_gigabytes), r.gigamacs, r.peak_gigamacs,
                     share(r.gigamacs, r.peak_gigamacs));
    }
    std::fprintf(file, "\n]}\n");
    std::fclose(file);
}

[[noreturn]] void fail(const std::string& why) {
    std::fprintf(stderr,
                 "%s\nusage: matmul_bench [--isa NAME] [--types A,B] [--threads N] [--rows-of-activations M] "
                 "[--json FILE]\n",
                 why.c_str());
    std::exit(2);
}

std::vector<DType> parse_types(const std::string& list) {
    std::vector<DType> types;
    for (size_t at = 0; at <= list.size();) {
        const size_t comma = std::min(list.find(',', at), list.size());
        const DTypeInfo* info = find_dtype(list.substr(at, comma - at));
        if (info == nullptr || info->dtype == DType::I32) fail("no weight type: " + list.substr(at, comma - at));
        types.push_back(info->dtype);
        at = comma + 1;
    }
    return types;
}

size_t parse_count(const std::string& text) {
    const long value = std::strtol(text.c_str(), nullptr, 10);
    if (value < 1 || value > 65536) fail("no count: " + text);
    return static_cast<size_t>(value);
}

Options parse(int argc, char** argv) {
    Options options;
    for (int i = 1; i < argc; i += 2) {
        const std::string name = argv[i];
        if (i + 1 == argc) fail("no value for " + name);
        const std::string value = argv[i + 1];
        if (name == "--isa") {
            options.kernels = find_kernels(value);
            if (options.kernels == nullptr) fail("no such kernels on this processor: " + value);
        } else if (name == "--types") {
            options.types = parse_types(value);
        } else if (name == "--threads") {
            options.threads = static_cast<unsigned>(parse_count(value));
        } else if (name == "--rows-of-activations") {
            options.m_rows = parse_count(value);
        } else if (name == "--json") {
            options.json = value;
        } else {
            fail("unknown option: " + name);
        }
    }
    return options;
}

}  // namespace
}  // namespace metallic

int main(int argc, char** argv) {
    using namespace metallic;
    const Options options = parse(argc, argv);
    std::printf("%s kernels, %u threads\n", options.kernels->name, options.threads);
    std::printf("%-7s %6s %6s   1 row: %6s %7s   %zu rows: %7s %7s\n", "type", "rows", "k", "GB/s", "of read",
                options.m_rows, "GMAC/s", "of peak");
    std::vector<Result> results;
    for (const DType type : options.types) {
        for (const Shape shape : kShapes) {
            const Result r = Case(options, type, shape).measure();
            std::printf("%-7s %6zu %6zu          %6.1f %6.0f%%             %7.1f %6.0f%%\n",
                        dtype_info(type).name.data(), shape.rows, shape.k, r.gigabytes,
                        100 * share(r.gigabytes, r.read_gigabytes), r.gigamacs,
                        100 * share(r.gigamacs, r.peak_gigamacs));
            std::fflush(stdout);
            results.push_back(r);
        }
    }
    if (!options.json.empty()) write_json(options, results);
    return 0;
}
