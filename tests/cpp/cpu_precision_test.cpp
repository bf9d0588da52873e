#include <gtest/gtest.h>

#include "backend/cpu/isa/select.h"
#include "core/error.h"
#include "isa_variable.h"
#include "reference_check.h"

// The precision of matrix products on the CPU backend, against a forward in double precision.
//
// The tolerance is a part of the root mean square of a batch's outputs. In float32 a product of K terms is 16 chains of
// K / 16 fused multiply-adds and then four additions, each of which rounds by at most 2^-24 of the partial sum, with
// random sign. For the largest K here, 8192, that is sqrt(516) * 6e-8 = 1.4e-6 of the sum's own spread; 1e-5 leaves
// room for the norm and for activations, whose approximations are within 1e-6, on an output of several times the root
// mean square. Rounding activations to 8 bits is a thousand times coarser.
namespace metallic::testing {
namespace {

constexpr double kTolerance = 1e-5;
constexpr DType kQuantised[] = {DType::Q4_0,   DType::Q4_1,  DType::Q5_0,  DType::Q5_1, DType::Q8_0,
                                DType::IQ4_NL, DType::MXFP4, DType::Q2_K,  DType::Q3_K, DType::Q4_K,
                                DType::Q5_K,   DType::Q6_K,  DType::IQ4_XS};

Session::Options with(std::optional<Precision> precision, uint32_t threads = 1) {
    Session::Options options;
    options.device = "cpu";
    options.threads = threads;
    options.precision = precision;
    return options;
}

std::vector<float> run(const TestModel& model, Precision precision, const BatchSpec& batch, uint32_t threads = 1) {
    return Session(model, with(precision, threads)).forward(batch.runs, batch.outputs);
}

uint32_t blocks(DType dtype, uint32_t count) {
    return dtype_info(dtype).block_elements * count;
}

LinearStep linear_step(ValueId in) {
    LinearStep step{};
    step.in = in;
    return step;
}

TestModel one_product(DType dtype, uint32_t cols, uint32_t rows) {
    TestModel model;
    LinearStep step = linear_step(model.input(cols));
    step.parts[0] = {model.whole(model.weight(dtype, cols, rows)), kNone, model.value(rows)};
    model.step(step);
    model.finish(step.parts[0].out);
    return model;
}

// A norm, then parts of this type and of two others, which are views of larger weights, with biases; and their sum.
TestModel fused_parts(DType dtype) {
    TestModel model;
    LinearStep step = linear_step(model.input(256, 20.0f));
    step.norm = {model.weight(DType::F16, 256, 1, 1, 0.2f, 1.0f), 1e-5f, true};
    step.part_count = 3;
    const DType dtypes[] = {dtype, DType::F32, DType::Q8_0};
    for (uint32_t i = 0; i < 3; ++i) {
        const WeightId weight = model.weight(dtypes[i], 256, 100);
        step.parts[i] = {{weight, 5 + i, 70}, i == 1 ? kNone : model.weight(DType::BF16, 100), model.value(70)};
    }
    model.step(step);
    ValueId sum = step.parts[0].out;
    for (uint32_t i = 1; i < 3; ++i) {
        const ValueId next = model.value(70);
        model.step(AddStep{sum, step.parts[i].out, next});
        sum = next;
    }
    model.finish(sum);
    return model;
}

// Both halves of one weight, then the way down upon a residual.
TestModel gated(DType dtype) {
    TestModel model;
    const uint32_t width = blocks(dtype, 1), inner = blocks(dtype, 2);
    const ValueId in = model.input(width, 0.3f);
    LinearStep up = linear_step(in);
    up.norm = {kNone, 1e-5f, true};
    up.part_count = 2, up.gated = true;
    const WeightId both = model.weight(dtype, width, 2 * inner, 1, 0.1f);
    up.parts[0].weight = {both, 0, inner}, up.parts[1].weight = {both, inner, inner};
    up.gated_out = model.value(inner);
    model.step(up);
    LinearStep down = linear_step(up.gated_out);
    down.parts[0] = {model.whole(model.weight(dtype, inner, width)), kNone, model.value(width)};
    down.residual = in;
    model.step(down);
    model.finish(down.parts[0].out);
    return model;
}

// Experts with a gate, then the way down per slot, and the weighted sum. The router's logits come from a table of their
// own, so that rounding cannot change who is chosen.
TestModel experts(DType dtype) {
    TestModel model;
    const uint32_t count = 6, top_k = 3, width = blocks(dtype, 1), inner = blocks(dtype, 2);
    const ValueId in = model.input(width), logits = model.input(count, 3.0f);
    const ValueId ids = model.value(top_k), weights = model.value(top_k);
    model.step(RouteStep{logits, RouterGate::softmax, top_k, true, 1.0f, ids, weights});
    ExpertLinearStep up{};
    up.in = in, up.ids = ids, up.top_k = top_k, up.part_count = 2, up.gated = true;
    for (uint32_t i = 0; i < 2; ++i) up.parts[i].weight = model.whole(model.weight(dtype, width, inner, count, 0.1f));
    up.gated_out = model.value(top_k * inner);
    model.step(up);
    ExpertLinearStep down{};
    down.in = up.gated_out, down.ids = ids, down.top_k = top_k, down.per_slot = true;
    down.parts[0] = {model.whole(model.weight(dtype, inner, width, count)), model.weight(DType::F32, width, count),
                     model.value(top_k * width)};
    model.step(down);
    const ValueId out = model.value(width);
    model.step(CombineStep{down.parts[0].out, weights, top_k, in, out});
    model.finish(out);
    return model;
}

// In float32: the values of the reference, and the same bits on every instruction set, on 1 to 5 threads, and for rows
// that come in pieces.
void expect_exact(const TestModel& model) {
    const BatchSpec all = one_run(37);
    const std::vector<uint32_t> pieces{1, 3, 6, 27};
    const std::vector<double> wanted = ReferenceForward(model).forward(all.runs, all.outputs);
    std::vector<float> first;
    for (const cpu::Isa& isa : cpu::supported_isas()) {
        const IsaVariable forced(isa.name);
        for (uint32_t threads = 1; threads <= 5; ++threads) {
            Session session(model, with(Precision::float32, threads));
            const std::vector<float> got = session.forward(all.runs, all.outputs);
            if (first.empty()) {
                first = got;
                EXPECT_LE(relative_error(got, wanted), kTolerance);
            }
            EXPECT_TRUE(same_bits(got, first)) << isa.name << " on " << threads << " threads";
            std::vector<float> joined;
            auto token = all.runs[0].tokens.begin();
            for (const uint32_t count : pieces) {
                BatchSpec piece = one_run(count, 1);
                std::copy_n(token, count, piece.runs[0].tokens.begin());
                token += count;
                const std::vector<float> rows = session.forward(piece.runs, piece.outputs);
                joined.insert(joined.end(), rows.begin(), rows.end());
            }
            EXPECT_TRUE(same_bits(joined, first)) << isa.name << " on " << threads << " threads, in pieces";
        }
    }
}

class ExactProducts : public ::testing::TestWithParam<DType> {};

TEST_P(ExactProducts, Linear) {
    expect_exact(one_product(GetParam(), blocks(GetParam(), 2), 83));
}
TEST_P(ExactProducts, FusedParts) {
    expect_exact(fused_parts(GetParam()));
}
TEST_P(ExactProducts, Gated) {
    expect_exact(gated(GetParam()));
}
TEST_P(ExactProducts, Experts) {
    expect_exact(experts(GetParam()));
}

// So that the cases above are no test of what int8 would pass too.
TEST_P(ExactProducts, Int8IsCoarser) {
    for (const TestModel& model : {one_product(GetParam(), 256, 83), gated(GetParam()), experts(GetParam())}) {
        const BatchSpec batch = one_run(9);
        const std::vector<double> wanted = ReferenceForward(model).forward(batch.runs, batch.outputs);
        const double rounded = relative_error(run(model, Precision::int8, batch), wanted);
        EXPECT_GT(rounded, 100 * relative_error(run(model, Precision::float32, batch), wanted));
        EXPECT_LT(rounded, 0.1);
    }
}

INSTANTIATE_TEST_SUITE_P(Types, ExactProducts, ::testing::ValuesIn(kQuantised),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

// Rows of which few, and of which many, are expanded at a time; counts that end inside of those.
TEST(CpuPrecision, RowsOfAnyWidth) {
    for (const auto& [cols, rows] : {std::pair{32u, 1u}, {32u, 100u}, {96u, 47u}, {1056u, 31u}, {8192u, 21u}}) {
        SCOPED_TRACE(cols);
        expect_exact(one_product(DType::Q8_0, cols, rows));
    }
}

TEST(CpuPrecision, FloatWeightsAreExactInAnyCase) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
        const TestModel model = one_product(dtype, 100, 40);
        expect_exact(model);
        EXPECT_TRUE(same_bits(run(model, Precision::int8, one_run(5)), run(model, Precision::float32, one_run(5))));
    }
}

TEST(CpuPrecision, AutoIsExactForSmallModels) {
    constexpr uint64_t kLimit = uint64_t{32} << 20;
    TestModel model = one_product(DType::Q8_0, 64, 40);
    uint64_t used = 0;
    for (const auto& bytes : model.bytes) used += bytes.size();
    // A matrix that no step uses makes up the size. A vector does not count.
    const auto fill = [&](uint64_t rows) {
        model.program.weights.push_back({"fill", DType::F16, 2, rows, 1});
        model.bytes.emplace_back(4 * rows);
    };
    const BatchSpec batch = one_run(5);
    const std::vector<float> exact = run(model, Precision::float32, batch);
    const std::vector<float> rounded = run(model, Precision::int8, batch);
    ASSERT_FALSE(same_bits(exact, rounded));
    EXPECT_TRUE(same_bits(run(model, Precision::automatic, batch), exact));
    model.weight(DType::F32, 1024);
    fill((kLimit - used) / 4);
    EXPECT_TRUE(same_bits(run(model, Precision::automatic, batch), exact));
    fill(2);
    EXPECT_TRUE(same_bits(run(model, Precision::automatic, batch), rounded));
    EXPECT_TRUE(same_bits(run(model, Precision::float32, batch), exact));
}

TEST(CpuPrecision, RefusesWhatItHasNoKernelsFor) {
    const TestModel model = one_product(DType::Q8_0, 32, 8);
    for (const Precision precision : {Precision::float16, Precision::bfloat16}) {
        try {
            Session(model, with(precision));
            FAIL() << precision_name(precision) << " was taken";
        } catch (const RequestError& error) {
            const std::string text = error.what();
            EXPECT_NE(text.find(precision_name(precision)), std::string::npos) << text;
            EXPECT_NE(text.find("it has float32, int8"), std::string::npos) << text;
        }
    }
}

TEST(CpuPrecision, NamesAreReadBack) {
    for (const Precision precision :
         {Precision::automatic, Precision::float32, Precision::float16, Precision::bfloat16, Precision::int8}) {
        EXPECT_EQ(parse_precision(precision_name(precision)), precision);
    }
    for (const char* const wrong : {"", "automatic", "INT8", "float", "int4", "float32 "}) {
        EXPECT_THROW(parse_precision(wrong), RequestError) << wrong;
    }
}

}  // namespace
}  // namespace metallic::testing
