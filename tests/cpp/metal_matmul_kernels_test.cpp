#include <gtest/gtest.h>

// The kernels of shaders/matmul.metal by themselves, which needs a simulated device: on a real one,
// metal_matmul_test.cpp runs them through the backend.
#if __has_include("msl/library.h")

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "core/dequantise.h"
#include "executor/executor.h"
#include "matmul_test_data.h"
#include "msl/library.h"
#include "params.h"

namespace metallic::testing {
namespace {

using namespace metallic::metal;

constexpr uint32_t kSimd = 32;

std::string lower_name(DType dtype) {
    std::string name(dtype_info(dtype).name);
    std::transform(name.begin(), name.end(), name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
    return name;
}

// matmul.metal, compiled with or without checks of every access, and a device to run it on.
class Kernels {
  public:
    explicit Kernels(bool checked) : executor_(metalsim::create_executor()) {
        const std::filesystem::path shaders =
            std::filesystem::path(__FILE__).parent_path().parent_path().parent_path() / "shaders";
        std::ifstream file(shaders / "matmul.metal");
        std::stringstream text;
        text << file.rdbuf();
        metalsim::msl::Options options;
        options.checked = checked;
        options.include_folders = {shaders};
        library_ = metalsim::msl::compile(text.str(), options);
    }

    static Kernels& shared(bool checked) {
        static Kernels plain(false), watched(true);
        return checked ? watched : plain;
    }

    struct Buffer {
        void* data;
        size_t bytes;
        bool written;  // before the kernel runs
    };

    // `constants` by index, `buffers` by index; fails the test with what the checks report.
    void run(const std::string& name, const std::vector<uint32_t>& constants, const std::map<uint32_t, Buffer>& buffers,
             metalsim::Size3 threadgroups, uint32_t threads) {
        const metalsim::msl::Function* function = library_->find(name);
        ASSERT_NE(function, nullptr) << name;
        std::vector<unsigned char> values(library_->constants_bytes());
        for (const metalsim::msl::FunctionConstant& constant : library_->constants()) {
            if (constant.index >= constants.size()) continue;
            std::memcpy(values.data() + constant.offset, &constants[constant.index], constant.bytes);
            values[constant.defined] = 1;
        }
        MetalsimArguments arguments{};
        arguments.function_constants = values.data();
        std::vector<metalsim::Memory::Id> regions;
        for (const auto& [index, buffer] : buffers) {
            arguments.buffers[index] = buffer.data;
            arguments.buffer_bytes[index] = buffer.bytes;
            regions.push_back(executor_->memory().add(
                {buffer.data, buffer.bytes, "buffer " + std::to_string(index), buffer.written, false}));
        }
        metalsim::Launch launch;
        launch.function = function;
        launch.arguments = &arguments;
        launch.threads_per_threadgroup = {threads, 1, 1};
        launch.threadgroups = threadgroups;
        EXPECT_TRUE(executor_->run(launch)) << name;
        for (const metalsim::Report& report : executor_->take_reports()) ADD_FAILURE() << report.text();
        executor_->order();
        for (const metalsim::Memory::Id id : regions) {
            executor_->memory().release(id);
            executor_->memory().forget(id);
        }
    }

  private:
    std::unique_ptr<metalsim::Executor> executor_;
    std::shared_ptr<const metalsim::msl::Library> library_;
};

struct Part {
    uint32_t count = 0;
    bool biased = false;
};

// A product as the kernels take it.
struct Problem {
    DType dtype = DType::F32;
    uint32_t rows = 1;  // of experts: tokens
    uint32_t cols = 0;
    std::vector<Part> parts;
    bool norm = false, norm_weighted = false;
    bool gated = false, gate_ready = false, residual = false;
    uint32_t activation = 0;
    uint32_t experts = 0, top_k = 1;
    bool per_slot = false;
    Scales scales = Scales::Ordinary;
};

double activate(uint32_t kind, double x) {
    if (kind == 0) return x / (1 + std::exp(-x));
    if (kind == 1) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    if (kind == 2) return 0.5 * x * (1 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    return std::max(x, 0.0);
}

class Launch {
  public:
    explicit Launch(const Problem& problem) : p_(problem), experts_(std::max(problem.experts, 1u)) {
        pairs_ = p_.rows * (p_.experts ? p_.top_k : 1);
        per_input_ = p_.experts && !p_.per_slot ? p_.top_k : 1;
        x_ = random_floats(size_t{pairs_ / per_input_} * p_.cols, random_);
        norm_weight_ = random_floats(p_.cols, random_);
        for (uint32_t i = 0; i < pairs_; ++i) ids_.push_back(static_cast<uint32_t>(random_() % experts_));
        for (const Part& part : p_.parts) {
            weights_.push_back(random_weights(p_.dtype, size_t{experts_} * part.count, p_.cols, random_, p_.scales));
            biases_.push_back(random_floats(size_t{experts_} * part.count, random_));
            outs_.push_back(p_.gate_ready ? random_floats(size_t{pairs_} * part.count, random_)
                                          : std::vector<float>(size_t{pairs_} * part.count, std::nanf("")));
        }
        gate_ = outs_[0];
        residual_ = random_floats(size_t{pairs_} * p_.parts[0].count, random_);
    }

    void few(bool checked, uint32_t variant) {
        const uint32_t weights = matvec_weights(variant);
        MatmulParams params = place(kMatvecSimdgroups * (p_.gated ? weights / 2 : weights));
        std::map<uint32_t, Kernels::Buffer> buffers = bind(params);
        if (p_.experts) buffers[5] = {ids_.data(), ids_.size() * 4, true};
        Kernels::shared(checked).run(
            "matvec_" + lower_name(p_.dtype) + "_" + std::to_string(variant), constants(false), buffers,
            {groups_, p_.experts ? 1 : (pairs_ + variant - 1) / variant, p_.experts ? pairs_ : 1},
            kMatvecSimdgroups * kSimd);
        verify(0x1p-23, "few, variant " + std::to_string(variant));
    }

    // `unit`: the rounding of what the tiles hold.
    void many(bool checked, const std::string& staging, double unit) {
        MatmulParams params = place(p_.gated ? kMatmulTileWeights / 2 : kMatmulTileWeights);
        Kernels& kernels = Kernels::shared(checked);
        std::vector<float> scale(pairs_);
        uint32_t tiles = (pairs_ + kMatmulTileRows - 1) / kMatmulTileRows;
        std::vector<uint32_t> index;
        if (p_.norm) {
            RowScaleParams values{pairs_, p_.cols, kEpsilon};
            kernels.run(
                "row_scale", {},
                {{0, {&values, sizeof values, true}}, {1, whole(x_)}, {2, {scale.data(), scale.size() * 4, false}}},
                {(pairs_ + kRowScaleSimdgroups - 1) / kRowScaleSimdgroups, 1, 1}, kRowScaleSimdgroups * kSimd);
        }
        if (p_.experts) {
            tiles = pairs_ / kMatmulTileRows + std::min(pairs_, p_.experts);
            ExpertGroupParams values{pairs_, p_.experts, tiles};
            index.assign(4 * tiles + pairs_, ~0u);
            kernels.run("expert_group", {},
                        {{0, {&values, sizeof values, true}},
                         {1, {ids_.data(), ids_.size() * 4, true}},
                         {2, {index.data(), index.size() * 4, false}}},
                        {1, 1, 1}, kExpertGroupThreads);
            params.order = 4 * tiles;
        }
        std::map<uint32_t, Kernels::Buffer> buffers = bind(params);
        if (p_.norm) buffers[3] = whole(scale);
        if (p_.experts) buffers[5] = {index.data(), index.size() * 4, true};
        kernels.run("matmul_" + lower_name(p_.dtype) + "_" + staging, constants(true), buffers, {tiles, groups_, 1},
                    kMatmulThreads);
        verify(unit, "many, " + staging);
    }

  private:
    static constexpr float kEpsilon = 1e-3f;

    static Kernels::Buffer whole(std::vector<float>& x) { return {x.data(), x.size() * sizeof(float), true}; }

    std::vector<uint32_t> constants(bool many) const {
        const bool two = p_.parts.size() > 1, pair = p_.gated;
        const auto biased = [&](size_t i) {
            return i < p_.parts.size() && !(pair && i > 0) && p_.parts[i].biased ? 1u : 0u;
        };
        return {p_.norm,
                p_.norm && p_.norm_weighted,
                many && p_.norm,
                two && !pair,
                p_.parts.size() > 2,
                p_.parts.size() > 3,
                biased(0),
                biased(1),
                biased(2),
                biased(3),
                pair,
                pair && p_.parts[1].biased,
                p_.gate_ready,
                p_.residual,
                p_.experts > 0,
                p_.activation};
    }

    MatmulParams place(uint32_t outputs) {
        MatmulParams params{};
        groups_ = 0;
        for (size_t i = 0; i < p_.parts.size(); ++i) {
            const uint32_t count = p_.parts[i].count;
            const uint64_t bytes = row_bytes(p_.dtype, p_.cols);
            params.parts[i] = {bytes * count, static_cast<uint32_t>(bytes), count, groups_, count};
            if (!(p_.gated && i == 1)) groups_ += (count + outputs - 1) / outputs;
        }
        params.rows = pairs_;
        params.cols = p_.cols;
        params.epsilon = kEpsilon;
        params.pairs_per_input = per_input_;
        params.experts = p_.experts;
        return params;
    }

    std::map<uint32_t, Kernels::Buffer> bind(MatmulParams& params) {
        std::map<uint32_t, Kernels::Buffer> buffers{{0, {&params, sizeof params, true}}, {1, whole(x_)}};
        if (p_.norm && p_.norm_weighted) buffers[2] = whole(norm_weight_);
        if (p_.residual) buffers[4] = whole(residual_);
        for (uint32_t i = 0; i < p_.parts.size(); ++i) {
            const bool up = p_.gated && i == 1;
            buffers[up ? 10 : 6 + i] = {weights_[i].data(), weights_[i].size(), true};
            if (p_.parts[i].biased) buffers[up ? 15 : 11 + i] = whole(biases_[i]);
            if (up) continue;
            if (p_.gate_ready) {
                outs_[i] = gate_;
            } else {
                std::fill(outs_[i].begin(), outs_[i].end(), std::nanf(""));
            }
            buffers[16 + i] = {outs_[i].data(), outs_[i].size() * sizeof(float), p_.gate_ready};
        }
        return buffers;
    }

    // A product and what rounding may make of it. Sums run in 32 lanes, or down the depth of a tile, so at most 1/32 of
    // the terms, or all of them in steps of 8, follow each other: 40 roundings for the sizes here. Their magnitudes are
    // those of the row's largest weight, because types with an offset sum codes and take the offset off afterwards
    // (which is at most twice as large as a weight).
    struct Bounded {
        double value = 0, error = 0;
    };
    Bounded product(size_t part, uint32_t pair, uint32_t n, double unit) const {
        const uint32_t count = p_.parts[part].count;
        const uint32_t row = (p_.experts ? ids_[pair] : 0) * count + n;
        std::vector<float> w(p_.cols);
        dequantise_row(p_.dtype, weights_[part].data() + row * row_bytes(p_.dtype, p_.cols), p_.cols, w.data());
        const float* const x = x_.data() + size_t{pair / per_input_} * p_.cols;
        double squares = 0, sum = 0, most = 0, magnitude = 0;
        for (uint32_t i = 0; i < p_.cols; ++i) {
            squares += double{x[i]} * x[i];
            most = std::max(most, std::abs(double{w[i]}));
        }
        const double factor = p_.norm ? 1 / std::sqrt(squares / p_.cols + double{kEpsilon}) : 1;
        for (uint32_t i = 0; i < p_.cols; ++i) {
            const double v = double{x[i]} * factor * (p_.norm && p_.norm_weighted ? double{norm_weight_[i]} : 1);
            sum += v * double{w[i]};
            magnitude += std::abs(v) * most;
        }
        const double bias = p_.parts[part].biased ? double{biases_[part][row]} : 0;
        return {sum + bias, (40 * 0x1p-24 + 2 * unit) * magnitude + 0x1p-22 * std::abs(bias) + 1e-30};
    }

    void verify(double unit, const std::string& what) const {
        for (size_t part = 0; part < (p_.gated ? 1 : p_.parts.size()); ++part) {
            const uint32_t count = p_.parts[part].count;
            double worst = 0;
            for (uint32_t pair = 0; pair < pairs_; ++pair) {
                for (uint32_t n = 0; n < count; ++n) {
                    const size_t at = size_t{pair} * count + n;
                    Bounded wanted = product(part, pair, n, unit);
                    if (p_.gated) wanted = gated(wanted, product(1, pair, n, unit));
                    if (p_.gate_ready) wanted = gated({double{gate_[at]}, 0}, wanted);
                    if (p_.residual) {
                        wanted.value += double{residual_[at]};
                        wanted.error += 0x1p-22 * std::abs(double{residual_[at]});
                    }
                    const double error = std::abs(double{outs_[part][at]} - wanted.value) / wanted.error;
                    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
                }
            }
            EXPECT_LE(worst, 1) << what << ", " << dtype_info(p_.dtype).name << ", " << p_.rows << " rows of "
                                << p_.cols << ", part " << part << " of " << count;
        }
    }

    // No activation is steeper than 1.13; the device's are within 1e-6.
    Bounded gated(const Bounded& gate, const Bounded& up) const {
        const double a = activate(p_.activation, gate.value), steep = 1.2 * gate.error + 2e-6 * std::abs(gate.value);
        return {a * up.value, steep * (std::abs(up.value) + up.error) + (std::abs(a) + steep) * up.error};
    }

    const Problem p_;
    const uint32_t experts_;
    std::mt19937 random_{20240229};
    uint32_t pairs_ = 0, per_input_ = 1, groups_ = 0;
    std::vector<float> x_, norm_weight_, residual_, gate_;
    std::vector<uint32_t> ids_;
    std::vector<std::vector<uint8_t>> weights_;
    std::vector<std::vector<float>> biases_, outs_;
};

class MetalMatmulKernels : public ::testing::TestWithParam<DType> {
  protected:
    // A number of columns that ends inside of everything where the type allows it.
    static uint32_t cols(uint32_t blocks) {
        const uint32_t block = dtype_info(GetParam()).block_elements;
        return block == 1 ? 37 * blocks + 8 : block * blocks;
    }
    Problem problem(uint32_t rows, uint32_t blocks, std::vector<Part> parts) const {
        Problem p;
        p.dtype = GetParam();
        p.rows = rows;
        p.cols = cols(blocks);
        p.parts = std::move(parts);
        return p;
    }
};

TEST_P(MetalMatmulKernels, FewRowsUnderWatch) {
    for (const uint32_t variant : {1u, 2u, 4u, 8u}) {
        Launch(problem(variant == 4 ? 3 : variant, 2, {{5, false}})).few(true, variant);
    }
}

TEST_P(MetalMatmulKernels, ManyRowsUnderWatch) {
    Launch(problem(9, 2, {{5, true}})).many(true, "float", 0x1p-23);
}

TEST_P(MetalMatmulKernels, FewRows) {
    for (const uint32_t blocks : {1u, 3u, 5u}) {
        Launch(problem(1, blocks, {{19, false}})).few(false, 1);
        Launch(problem(2, blocks, {{8, true}})).few(false, 2);
        Launch(problem(4, blocks, {{17, false}})).few(false, 4);
        Launch(problem(7, blocks, {{33, true}})).few(false, 8);
    }
    Launch(problem(21, 3, {{11, true}})).few(false, 8);  // as without matrix units
}

TEST_P(MetalMatmulKernels, ManyRows) {
    for (const uint32_t rows : {9u, 33u, 100u}) Launch(problem(rows, 3, {{67, false}})).many(false, "float", 0x1p-23);
    Launch(problem(64, 1, {{128, true}})).many(false, "float", 0x1p-23);
}

TEST_P(MetalMatmulKernels, TilesOfHalves) {
    Launch(problem(40, 2, {{70, true}})).many(false, "half", 0x1p-11);
    Launch(problem(40, 2, {{70, true}})).many(false, "bfloat", 0x1p-8);
    Problem p = problem(17, 2, {{70, true}});
    p.norm = p.norm_weighted = true;
    Launch(p).many(true, "half", 0x1p-11);
}

TEST_P(MetalMatmulKernels, ExtremeScales) {
    Problem p = problem(12, 3, {{23, false}});
    p.scales = Scales::Extreme;
    Launch(p).many(false, "float", 0x1p-23);
    p.rows = 1;
    Launch(p).few(false, 1);
    p.rows = 8;
    Launch(p).few(false, 8);
}

TEST_P(MetalMatmulKernels, NormAndParts) {
    for (const bool weighted : {false, true}) {
        Problem p = problem(1, 2, {{9, true}, {16, false}, {1, true}, {21, true}});
        p.norm = true;
        p.norm_weighted = weighted;
        for (const uint32_t rows : {1u, 2u, 3u, 8u}) {
            p.rows = rows;
            Launch(p).few(rows == 3, rows == 3 ? 4 : rows);
        }
        p.rows = 35;
        Launch(p).many(weighted, "float", 0x1p-23);
    }
}

TEST_P(MetalMatmulKernels, Gated) {
    for (const uint32_t activation : {0u, 1u, 2u, 3u}) {
        Problem p = problem(1, 2, {{13, true}, {13, activation % 2 == 0}});
        p.gated = true;
        p.activation = activation;
        p.norm = activation == 1;
        for (const uint32_t rows : {1u, 2u, 4u, 6u}) {
            p.rows = rows;
            Launch(p).few(false, rows == 6 ? 8 : rows);
        }
        p.rows = 10;
        Launch(p).many(activation == 0, "float", 0x1p-23);
        p.gated = false;
        p.gate_ready = true;
        p.parts = {{13, true}};
        Launch(p).many(false, "float", 0x1p-23);
        p.rows = 2;
        Launch(p).few(true, 2);
    }
}

TEST_P(MetalMatmulKernels, Residual) {
    Problem p = problem(3, 2, {{37, true}});
    p.residual = true;
    Launch(p).few(true, 4);
    p.rows = 34;
    Launch(p).many(false, "float", 0x1p-23);
}

TEST_P(MetalMatmulKernels, Experts) {
    for (const bool per_slot : {false, true}) {
        Problem p = problem(7, 2, {{18, true}, {6, false}});
        p.experts = 5;
        p.top_k = 3;
        p.per_slot = per_slot;
        Launch(p).few(per_slot, 1);
        Launch(p).many(true, "float", 0x1p-23);
        p.rows = 70;  // more pairs of an expert than a tile has rows
        p.parts = {{18, true}, {18, false}};
        p.gated = true;
        Launch(p).many(false, "float", 0x1p-23);
        p.rows = 1;
        p.experts = 40;  // most have no pairs
        Launch(p).few(false, 1);
        Launch(p).many(false, "float", 0x1p-23);
    }
}

INSTANTIATE_TEST_SUITE_P(Types, MetalMatmulKernels, ::testing::ValuesIn(kWeightTypes),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

}  // namespace
}  // namespace metallic::testing

#endif
