#include <gtest/gtest.h>

#include "metal_checks.h"
#include "reference_check.h"

// Matrix products on the Metal backend: every type of weight, few and many rows, parts, prologues and epilogues, and
// experts, against a forward in double precision.
//
// The tolerance is a part of the root mean square of the outputs. A product of K terms rounds each to 2^-24 of its
// size, and partial sums likewise. Sums run in 32 lanes or in steps of 8 terms, so they add at most K / 8 + 40
// roundings, of random sign: for the largest K here, 2048, about sqrt(300) * 6e-8 = 1e-6 of the sum's own spread, and
// types whose codes are summed before their offset is taken off have up to eight times as much. 2e-5 leaves room for
// the norm and for activations, whose approximations are within 1e-6, on a logit of several times the root mean square.
namespace metallic::testing {
namespace {

constexpr double kTolerance = 2e-5;
constexpr DType kTypes[] = {DType::F32,  DType::F16,    DType::BF16,   DType::Q4_0, DType::Q4_1, DType::Q5_0,
                            DType::Q5_1, DType::Q8_0,   DType::Q2_K,   DType::Q3_K, DType::Q4_K, DType::Q5_K,
                            DType::Q6_K, DType::IQ4_NL, DType::IQ4_XS, DType::MXFP4};

LinearStep linear_step(ValueId in) {
    LinearStep step{};
    step.in = in;
    return step;
}

// Columns that end inside of everything where the type allows it.
uint32_t cols(DType dtype, uint32_t blocks) {
    const uint32_t block = dtype_info(dtype).block_elements;
    return block == 1 ? 41 * blocks + 3 : block * blocks;
}

Session::Options on_metal(uint32_t max_tokens = 64) {
    Session::Options options;
    options.device = "metal";
    options.max_tokens = options.max_outputs = max_tokens;
    return options;
}

// The errors of all batches are compared to the size of all their outputs: a single output may happen to be near 0.
void expect_on_metal(const TestModel& model, const std::vector<uint32_t>& rows, double tolerance = kTolerance) {
    ReferenceForward reference(model, DType::F32);
    Session session(model, on_metal(*std::max_element(rows.begin(), rows.end())));
    std::vector<double> worst;
    double squares = 0;
    size_t outputs = 0;
    for (const uint32_t count : rows) {
        const BatchSpec batch = one_run(count);
        const std::vector<float> got = session.forward(batch.runs, batch.outputs);
        const std::vector<double> wanted = reference.forward(batch.runs, batch.outputs);
        ASSERT_EQ(got.size(), wanted.size());
        worst.push_back(0);
        for (size_t i = 0; i < got.size(); ++i) {
            const double error = std::abs(static_cast<double>(got[i]) - wanted[i]);
            worst.back() = std::isnan(error) ? INFINITY : std::max(worst.back(), error);
            squares += wanted[i] * wanted[i];
        }
        outputs += got.size();
    }
    const double size = std::sqrt(squares / static_cast<double>(outputs));
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_LE(worst[i], tolerance * size) << rows[i] << " rows";
}

TestModel one_product(DType dtype, uint32_t width, uint32_t count) {
    TestModel model;
    LinearStep step = linear_step(model.input(width));
    step.parts[0] = {model.whole(model.weight(dtype, width, count)), kNone, model.value(count)};
    model.step(step);
    model.finish(step.parts[0].out);
    return model;
}

// The logits see all parts: the others, brought to the last one's width and added.
void finish_parts(TestModel& model, const LinearStep& step) {
    const LinearPart& last = step.parts[step.part_count - 1];
    ValueId sum = last.out;
    for (uint32_t i = 0; i + 1 < step.part_count; ++i) {
        const uint32_t count = step.parts[i].weight.count;
        LinearStep widen = linear_step(step.parts[i].out);
        widen.parts[0] = {model.whole(model.weight(DType::F32, count, last.weight.count)), kNone,
                          model.value(last.weight.count)};
        widen.residual = sum;
        model.step(widen);
        sum = widen.parts[0].out;
    }
    model.finish(sum);
}

class MetalMatmul : public ::testing::TestWithParam<DType> {};

TEST_P(MetalMatmul, AnyNumberOfRows) {
    const Checks unchecked(false);
    expect_on_metal(one_product(GetParam(), cols(GetParam(), 3), 83), {1, 2, 3, 5, 8, 9, 17, 33, 64, 100});
}

TEST_P(MetalMatmul, AnyNumberOfWeightRows) {
    const Checks unchecked(false);
    for (const uint32_t count : {1u, 2u, 7u, 8u, 9u, 63u, 64u, 65u, 130u}) {
        SCOPED_TRACE(count);
        expect_on_metal(one_product(GetParam(), cols(GetParam(), 1), count), {1, 2, 4, 6, 33});
    }
}

TEST_P(MetalMatmul, Checked) {
    const Checks checked(true);
    expect_on_metal(one_product(GetParam(), cols(GetParam(), 1), 7), {1, 2, 3, 5, 9, 34});
}

// Parts are views of larger weights, with the same rows of their biases.
TEST_P(MetalMatmul, PartsWithNormAndBiases) {
    const Checks checked(GetParam() == DType::Q4_K || GetParam() == DType::F16);
    const DType biases[] = {DType::F32, DType::F16, DType::BF16, DType::F32};
    const uint32_t counts[] = {21, 8, 1, 30}, width = cols(GetParam(), 1);
    for (const bool weighted : {true, false}) {
        TestModel model;
        LinearStep step = linear_step(model.input(width, 20.0f));
        step.norm = {weighted ? model.weight(DType::F16, width, 1, 1, 0.2f, 1.0f) : kNone, 1e-5f, true};
        step.part_count = 4;
        for (uint32_t i = 0; i < 4; ++i) {
            const WeightId weight = model.weight(GetParam(), width, 40);
            step.parts[i] = {
                {weight, 3 + i, counts[i]}, i == 1 ? kNone : model.weight(biases[i], 40), model.value(counts[i])};
        }
        model.step(step);
        finish_parts(model, step);
        expect_on_metal(model, {1, 2, 3, 7, 12});
    }
}

TEST_P(MetalMatmul, Gated) {
    const Checks unchecked(false);
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        TestModel model;
        const uint32_t width = cols(GetParam(), 2);
        LinearStep step = linear_step(model.input(width, 0.3f));
        step.norm = {kNone, 1e-5f, activation == Activation::silu};
        step.part_count = 2;
        step.gated = true;
        step.activation = activation;
        // Both halves of one weight, as fused feed-forward tensors have them.
        const WeightId both = model.weight(GetParam(), width, 2 * 45, 1, 0.1f);
        const WeightId bias = activation == Activation::relu ? kNone : model.weight(DType::F32, 2 * 45);
        step.parts[0] = {{both, 0, 45}, bias, kNone};
        step.parts[1] = {{both, 45, 45}, bias, kNone};
        step.gated_out = model.value(45);
        model.step(step);
        model.finish(step.gated_out);
        expect_on_metal(model, {1, 2, 4, 8, 35}, 4 * kTolerance);  // a product of two
    }
}

// The first experts are chosen rarely, so that some have many tokens and some none.
TEST_P(MetalMatmul, Experts) {
    const Checks checked(GetParam() == DType::Q8_0);
    const uint32_t experts = 6, top_k = 2, width = cols(GetParam(), 1), inner = width;
    TestModel model;
    const ValueId in = model.input(width), logits = model.input(experts);
    const ValueId ids = model.value(top_k), weights = model.value(top_k);
    model.step(RouteStep{logits, RouterGate::softmax, top_k, false, 1.0f, ids, weights});
    ExpertLinearStep up{};
    up.in = in, up.ids = ids, up.top_k = top_k, up.part_count = 2, up.gated = true;
    const WeightId both = model.weight(GetParam(), width, 2 * inner, experts, 0.1f);
    const WeightId bias = model.weight(DType::F16, 2 * inner, experts);
    up.parts[0] = {{both, 0, inner}, bias, kNone};
    up.parts[1] = {{both, inner, inner}, bias, kNone};
    up.gated_out = model.value(top_k * inner);
    model.step(up);
    ExpertLinearStep down{};
    down.in = up.gated_out, down.ids = ids, down.top_k = top_k, down.per_slot = true;
    down.parts[0] = {model.whole(model.weight(GetParam(), inner, 11, experts, 0.2f)), kNone, model.value(top_k * 11)};
    model.step(down);
    model.finish(down.parts[0].out);
    expect_on_metal(model,
                    GetParam() == DType::Q8_0 ? std::vector<uint32_t>{1, 3, 13} : std::vector<uint32_t>{1, 5, 12, 64},
                    8 * kTolerance);  // products of products
}

INSTANTIATE_TEST_SUITE_P(Types, MetalMatmul, ::testing::ValuesIn(kTypes),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

// As in a Q4_K_M file: queries and keys of one type, values of another, and more.
TEST(MetalMatmulSteps, PartsOfMixedTypes) {
    const Checks checked(true);
    TestModel model;
    LinearStep step = linear_step(model.input(256));
    step.norm = {model.weight(DType::F32, 256, 1, 1, 0.2f, 1.0f), 1e-5f, true};
    step.part_count = 4;
    const DType dtypes[] = {DType::Q4_K, DType::Q6_K, DType::F32, DType::Q4_K};
    const uint32_t counts[] = {17, 16, 5, 20};
    for (uint32_t i = 0; i < 4; ++i) {
        step.parts[i] = {model.whole(model.weight(dtypes[i], 256, counts[i])), model.weight(DType::F16, counts[i]),
                         model.value(counts[i])};
    }
    model.step(step);
    finish_parts(model, step);
    expect_on_metal(model, {1, 2, 3, 8, 10});
}

TEST(MetalMatmulSteps, GateAndUpOfDifferentTypes) {
    const Checks checked(true);
    TestModel model;
    LinearStep step = linear_step(model.input(256, 0.3f));
    step.norm = {model.weight(DType::F32, 256, 1, 1, 0.2f, 1.0f), 1e-5f, true};
    step.part_count = 2;
    step.gated = true;
    step.activation = Activation::gelu_tanh;
    step.parts[0] = {model.whole(model.weight(DType::Q4_K, 256, 19, 1, 0.1f)), model.weight(DType::F32, 19), kNone};
    step.parts[1] = {model.whole(model.weight(DType::Q6_K, 256, 19, 1, 0.1f)), model.weight(DType::F32, 19), kNone};
    step.gated_out = model.value(19);
    model.step(step);
    model.finish(step.gated_out);
    expect_on_metal(model, {1, 3, 8, 11}, 4 * kTolerance);
}

TEST(MetalMatmulSteps, ExpertPartsOfDifferentTypes) {
    const Checks checked(true);
    for (const bool gated : {false, true}) {
        TestModel model;
        const ValueId in = model.input(64), logits = model.input(3), ids = model.value(2), weights = model.value(2);
        model.step(RouteStep{logits, RouterGate::softmax, 2, false, 1.0f, ids, weights});
        ExpertLinearStep step{};
        step.in = in, step.ids = ids, step.top_k = 2, step.part_count = 2, step.gated = gated;
        step.parts[0] = {model.whole(model.weight(DType::Q8_0, 64, 9, 3, 0.2f)), model.weight(DType::F32, 9, 3),
                         gated ? kNone : model.value(18)};
        step.parts[1] = {model.whole(model.weight(DType::Q4_0, 64, 9, 3, 0.2f)), kNone,
                         gated ? kNone : model.value(18)};
        step.gated_out = gated ? model.value(18) : kNone;
        model.step(step);
        const ValueId sum = gated ? step.gated_out : model.value(18);
        if (!gated) model.step(AddStep{step.parts[0].out, step.parts[1].out, sum});
        model.finish(sum);
        expect_on_metal(model, {1, 4, 20}, 4 * kTolerance);
    }
}

TEST(MetalMatmulSteps, Residual) {
    const Checks checked(true);
    for (const DType dtype : {DType::F32, DType::Q5_K}) {
        TestModel model;
        LinearStep step = linear_step(model.input(256));
        step.residual = model.input(23, 5.0f);
        step.parts[0] = {model.whole(model.weight(dtype, 256, 23)), model.weight(DType::F32, 23), model.value(23)};
        model.step(step);
        model.finish(step.parts[0].out);
        expect_on_metal(model, {1, 2, 4, 7, 33});
    }
}

TEST(MetalMatmulSteps, LongRows) {
    const Checks unchecked(false);
    for (const DType dtype : {DType::F32, DType::Q4_0, DType::Q4_K, DType::Q6_K}) {
        expect_on_metal(one_product(dtype, 2048, 300), {1, 8, 70});
    }
}

// Every length of the rows of types without blocks: lanes, pieces and tiles end anywhere.
TEST(MetalMatmulSteps, EveryWidth) {
    const Checks checked(true);
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
        for (const uint32_t width : {1u, 2u, 3u, 7u, 8u, 9u, 31u, 32u, 33u, 255u, 257u}) {
            SCOPED_TRACE(width);
            TestModel model;
            LinearStep step = linear_step(model.input(width));
            step.norm = {model.weight(DType::F32, width, 1, 1, 0.2f, 1.0f), 1e-5f, true};
            step.parts[0] = {model.whole(model.weight(dtype, width, 5)), kNone, model.value(5)};
            model.step(step);
            model.finish(step.parts[0].out);
            expect_on_metal(model, {1, 2, 3, 9});
        }
    }
}

// The last block of a prompt and the logits: rows of outputs, of which there are fewer than tokens.
TEST(MetalMatmulSteps, RowsOfOutputs) {
    const Checks checked(true);
    for (const uint32_t most : {1u, 3u, 12u}) {
        TestModel model;
        const ValueId selected = model.value(64, Rows::outputs), out = model.value(21, Rows::outputs);
        const ValueId in = model.input(64);
        model.step(SelectStep{in, selected});
        LinearStep step = linear_step(selected);
        step.norm = {kNone, 1e-5f, true};
        step.parts[0] = {model.whole(model.weight(DType::Q8_0, 64, 21)), kNone, out};
        model.step(step);
        model.program.logits = out;
        Session::Options options = on_metal(16);
        options.max_outputs = most;
        Session session(model, options);
        ReferenceForward reference(model, DType::F32);
        for (const uint32_t outputs : {1u, most}) {
            BatchSpec batch = one_run(16);
            batch.outputs.erase(batch.outputs.begin(), batch.outputs.end() - outputs);
            EXPECT_LE(relative_error(session.forward(batch.runs, batch.outputs),
                                     reference.forward(batch.runs, batch.outputs)),
                      kTolerance);
        }
    }
}

// A row's value does not depend on its neighbours, whatever they hold.
TEST(MetalMatmulSteps, RowsDoNotMeet) {
    const Checks unchecked(false);
    for (const DType dtype : {DType::F32, DType::Q4_K}) {
        TestModel model = one_product(dtype, 256, 40);
        Session clean(model, on_metal());
        const float nan = NAN;
        BatchSpec batch{{{0, std::vector<int32_t>(33, 3)}}, {0, 32}};
        for (const uint32_t rows : {2u, 4u, 8u, 33u}) {
            batch.runs[0].tokens.assign(rows, 3);
            batch.outputs = {0, rows - 1};
            const std::vector<float> wanted = clean.forward(batch.runs, batch.outputs);
            TestModel spoilt = model;
            for (uint32_t i = 0; i < 256; ++i) std::memcpy(spoilt.bytes[0].data() + (49 * 256 + i) * 4, &nan, 4);
            batch.runs[0].tokens.assign(rows, 49);
            batch.runs[0].tokens.front() = batch.runs[0].tokens.back() = 3;
            Session session(spoilt, on_metal());
            EXPECT_TRUE(same_bits(session.forward(batch.runs, batch.outputs), wanted)) << rows;
        }
    }
}

// The same bits again and again, also with many rows of experts.
TEST(MetalMatmulSteps, Deterministic) {
    const Checks unchecked(false);
    const TestModel model = one_product(DType::Q4_K, 512, 100);
    std::vector<std::vector<float>> first;
    for (int i = 0; i < 3; ++i) {
        Session session(model, on_metal());
        size_t at = 0;
        for (const uint32_t rows : {1u, 6u, 40u}) {
            const BatchSpec batch = one_run(rows);
            const std::vector<float> got = session.forward(batch.runs, batch.outputs);
            if (i == 0) first.push_back(got);
            EXPECT_TRUE(same_bits(got, first[at++]));
        }
    }
}

}  // namespace
}  // namespace metallic::testing
