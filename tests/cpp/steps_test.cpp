#include <gtest/gtest.h>

#include "reference_check.h"

// Every kind of step on the device under test, against a forward in double precision.
namespace metallic::testing {
namespace {

constexpr double kFloat = 2e-5;      // float kernels
constexpr double kQuantised = 0.05;  // activations of 8 bits

LinearStep linear_step(ValueId in) {
    LinearStep step{};
    step.in = in;
    return step;
}

TEST(Steps, EmbeddingScalesRowsOfAnyType) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1,
                              DType::Q8_0, DType::IQ4_NL, DType::MXFP4, DType::Q2_K, DType::Q3_K, DType::Q4_K,
                              DType::Q5_K, DType::Q6_K, DType::IQ4_XS}) {
        SCOPED_TRACE(dtype_info(dtype).name);
        TestModel model;
        const WeightId table = model.weight(dtype, 256, TestModel::kVocabulary);
        const ValueId out = model.value(256);
        model.step(EmbeddingStep{table, 1.5f, out});
        model.finish(out);
        expect_reference(model, few_and_many(), kFloat);
    }
}

TEST(Steps, EmbeddingRowsOfOddWidths) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
        for (const uint32_t width : {1u, 7u, 8u, 27u, 1030u}) {
            TestModel model;
            const WeightId table = model.weight(dtype, width, TestModel::kVocabulary);
            const ValueId out = model.value(width);
            model.step(EmbeddingStep{table, 0.25f, out});
            model.finish(out);
            expect_reference(model, {one_run(5)}, kFloat);
        }
    }
}

TEST(Steps, NormWithGroupsWeightAndResidual) {
    for (const DType dtype : {DType::F32, DType::F16, DType::BF16}) {
        for (const uint32_t group : {96u, 24u}) {
            TestModel model;
            const ValueId in = model.input(96), residual = model.input(96);
            const ValueId normed = model.value(96), out = model.value(96);
            model.step(NormStep{in, model.weight(dtype, group), 1e-3f, group, residual, normed});
            model.step(NormStep{normed, kNone, 1e-5f, group, kNone, out});
            model.finish(out);
            expect_reference(model, few_and_many(), kFloat);
        }
    }
}

// Narrow and wide groups, of whole and of broken vectors.
TEST(Steps, NormOfAnyGroup) {
    for (const uint32_t group : {1u, 3u, 4u, 64u, 513u, 2052u, 2049u}) {
        TestModel model;
        const ValueId in = model.input(2 * group), residual = model.input(2 * group);
        const ValueId out = model.value(2 * group);
        model.step(NormStep{in, model.weight(DType::F32, group), 1e-5f, group, residual, out});
        model.finish(out);
        expect_reference(model, {one_run(1), one_run(5)}, kFloat);
    }
}

TEST(Steps, ElementWise) {
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        TestModel model;
        const ValueId a = model.input(1100, 3), b = model.input(1100);
        const ValueId sum = model.value(1100), scaled = model.value(1100), capped = model.value(1100);
        const ValueId gated = model.value(1100);
        model.step(AddStep{a, b, sum});
        model.step(UnaryStep{UnaryOp::scale, 2.5f, sum, scaled});
        model.step(UnaryStep{UnaryOp::softcap, 4.0f, scaled, capped});
        model.step(GatedActivationStep{activation, capped, b, gated});
        model.finish(gated);
        expect_reference(model, few_and_many(), 1e-4);
    }
}

TEST(Steps, LinearOfEveryKindOfWeight) {
    for (const DType dtype :
         {DType::F32, DType::F16, DType::BF16, DType::Q4_0, DType::Q8_0, DType::Q4_K, DType::Q6_K}) {
        TestModel model;
        LinearStep step = linear_step(model.input(512));
        step.parts[0] = {model.whole(model.weight(dtype, 512, 83)), kNone, model.value(83)};
        model.step(step);
        model.finish(step.parts[0].out);
        expect_reference(model, few_and_many(), dtype_info(dtype).quantised ? kQuantised : kFloat);
    }
}

// As in a Q4_K_M file: queries and keys of one type, values of another, each with its own activation format.
TEST(Steps, LinearPartsOfMixedTypesWithNormAndBiases) {
    TestModel model;
    LinearStep step = linear_step(model.input(256));
    step.norm = {model.weight(DType::F16, 256, 1, 1, 0.2f, 1.0f), 1e-5f, true};
    step.part_count = 4;
    const DType dtypes[] = {DType::Q4_K, DType::Q8_0, DType::F32, DType::Q6_K};
    const DType biases[] = {DType::F32, DType::F16, DType::BF16, DType::F32};
    const uint32_t counts[] = {70, 16, 5, 130};
    ValueId sum = kNone;
    for (uint32_t i = 0; i < 4; ++i) {
        const WeightId weight = model.weight(dtypes[i], 256, 150);
        step.parts[i] = {{weight, 7 + i, counts[i]}, model.weight(biases[i], 150), model.value(counts[i])};
    }
    model.step(step);
    // The logits see all parts: the others, brought to the last one's width.
    sum = step.parts[3].out;
    for (uint32_t i = 0; i < 3; ++i) {
        LinearStep widen = linear_step(step.parts[i].out);
        widen.parts[0] = {model.whole(model.weight(DType::F32, counts[i], 130)), kNone, model.value(130)};
        widen.residual = sum;
        model.step(widen);
        sum = widen.parts[0].out;
    }
    model.finish(sum);
    expect_reference(model, few_and_many(), kQuantised);
}

TEST(Steps, GatedLinear) {
    for (const DType dtype : {DType::F32, DType::Q4_K}) {
        TestModel model;
        LinearStep step = linear_step(model.input(256, 0.3f));
        step.norm = {kNone, 1e-5f, true};
        step.part_count = 2;
        step.gated = true;
        step.activation = Activation::gelu_tanh;
        // Both halves of one weight, as fused feed-forward tensors have them.
        const WeightId both = model.weight(dtype, 256, 2 * 90, 1, 0.1f);
        const WeightId bias = model.weight(DType::F32, 2 * 90);
        step.parts[0] = {{both, 0, 90}, bias, kNone};
        step.parts[1] = {{both, 90, 90}, bias, kNone};
        step.gated_out = model.value(90);
        model.step(step);
        model.finish(step.gated_out);
        expect_reference(model, few_and_many(), dtype == DType::F32 ? kFloat : kQuantised);
    }
}

TEST(Steps, LinearOverManyRowsAndFewWeights) {
    TestModel model;
    LinearStep step = linear_step(model.input(64));
    step.parts[0] = {model.whole(model.weight(DType::F32, 64, 9)), kNone, model.value(9)};
    model.step(step);
    model.finish(step.parts[0].out);
    Session::Options options;
    options.max_tokens = options.max_outputs = 700;
    expect_reference(model, {one_run(700), one_run(257)}, kFloat, options);
}

TEST(Steps, RopeOfBothPairingsAndVariants) {
    for (const RopePairing pairing : {RopePairing::normal, RopePairing::neox}) {
        for (const uint32_t dims : {16u, 12u}) {
            TestModel model;
            const ValueId in = model.input(48), out = model.value(48);
            model.step(RopeStep{model.rope(dims, pairing), 16, in, out});
            model.finish(out);
            // Two sequences in one batch, one of them extended, then both further on.
            BatchSpec batch{{{0, some_tokens(5), false}, {1, some_tokens(4), true}}, {0, 1, 2, 3, 4, 5, 6, 7, 8}};
            expect_reference(model, {batch, batch}, kFloat);
        }
    }
}

TEST(Steps, RopeWithoutAnExtendedVariantKeepsTheBase) {
    TestModel model;
    const ValueId in = model.input(16), out = model.value(16);
    model.step(RopeStep{model.rope(16, RopePairing::neox), 16, in, out});
    model.program.ropes[0].extended = {};
    model.finish(out);
    expect_reference(model, {{{{0, some_tokens(7), true}}, {0, 6}}}, kFloat);
}

TEST(Steps, SelectTakesTheRowsAskedFor) {
    TestModel model;
    model.finish(model.input(20));
    expect_reference(model, {{{{0, some_tokens(9)}}, {0, 3, 4, 8}}, {{{0, some_tokens(9)}}, {}}, one_run(2)}, 1e-7);
}

struct RouterCase {
    RouterGate gate;
    bool normalise;
};
class Router : public ::testing::TestWithParam<RouterCase> {};

// Experts with a gate, then the way down per slot, biases everywhere, and the weighted sum.
TEST_P(Router, MixtureOfExperts) {
    for (const DType dtype : {DType::F32, DType::Q8_0}) {
        TestModel model;
        const uint32_t experts = 6, top_k = 3, width = 64, inner = 96;
        const ValueId in = model.input(width);
        LinearStep router = linear_step(in);
        router.parts[0] = {model.whole(model.weight(DType::F32, width, experts)), kNone, model.value(experts)};
        model.step(router);
        const ValueId ids = model.value(top_k), weights = model.value(top_k);
        model.step(RouteStep{router.parts[0].out, GetParam().gate, top_k, GetParam().normalise, 1.7f, ids, weights});
        ExpertLinearStep up{};
        up.in = in, up.ids = ids, up.top_k = top_k, up.part_count = 2, up.gated = true;
        for (uint32_t i = 0; i < 2; ++i) {
            up.parts[i].weight = model.whole(model.weight(dtype, width, inner, experts, 0.2f));
            up.parts[i].bias = model.weight(DType::F16, inner, experts);
        }
        up.gated_out = model.value(top_k * inner);
        model.step(up);
        ExpertLinearStep down{};
        down.in = up.gated_out, down.ids = ids, down.top_k = top_k, down.per_slot = true;
        down.parts[0] = {model.whole(model.weight(dtype, inner, width, experts, 0.2f)),
                         model.weight(DType::F32, width, experts), model.value(top_k * width)};
        model.step(down);
        const ValueId out = model.value(width);
        model.step(CombineStep{down.parts[0].out, weights, top_k, in, out});
        model.finish(out);
        std::vector<BatchSpec> batches = few_and_many();
        batches.push_back(one_run(64));
        expect_reference(model, batches, dtype == DType::F32 ? 1e-4 : kQuantised);
    }
}

INSTANTIATE_TEST_SUITE_P(Gates, Router,
                         ::testing::Values(RouterCase{RouterGate::softmax, false},
                                           RouterCase{RouterGate::softmax, true},
                                           RouterCase{RouterGate::softmax_of_chosen, false},
                                           RouterCase{RouterGate::sigmoid, true}));

TEST(Steps, ExpertPartsWithoutAGate) {
    TestModel model;
    const ValueId in = model.input(32), logits = model.input(4);
    const ValueId ids = model.value(2), weights = model.value(2);
    model.step(RouteStep{logits, RouterGate::softmax, 2, false, 1.0f, ids, weights});
    ExpertLinearStep step{};
    step.in = in, step.ids = ids, step.top_k = 2, step.part_count = 2;
    const WeightId weight = model.weight(DType::F32, 32, 60, 4);
    const WeightId bias = model.weight(DType::F32, 60, 4);
    step.parts[0] = {{weight, 0, 20}, bias, model.value(40)};
    step.parts[1] = {{weight, 25, 20}, bias, model.value(40)};
    model.step(step);
    const ValueId sum = model.value(40);
    model.step(AddStep{step.parts[0].out, step.parts[1].out, sum});
    model.finish(sum);
    expect_reference(model, few_and_many(), kFloat);
}

// Puts elements into the first rows of a table.
void put_rows(TestModel& model, WeightId table, const std::vector<std::vector<float>>& rows) {
    std::byte* to = model.bytes[table].data();
    for (const std::vector<float>& row : rows) {
        std::memcpy(to, row.data(), row.size() * sizeof(float));
        to += row.size() * sizeof(float);
    }
}

// Nothing overflows to a NaN, and small results keep their digits.
TEST(Steps, ActivationsOfExtremeInputs) {
    const std::vector<float> gates{0.0f,  -0.0f, 1e-30f, -1e-4f, 0.3f,   -0.7f, 2.5f,  -3.0f, 6.0f,   -6.0f, 11.0f,
                                   -9.0f, 40.0f, -40.0f, 90.0f,  -90.0f, 1e3f,  -1e3f, 1e10f, -1e10f, 3e38f, -3e38f};
    const uint32_t width = static_cast<uint32_t>(gates.size());
    for (const Activation activation : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu}) {
        TestModel model;
        const ValueId gate = model.input(width), one = model.input(width), out = model.value(width);
        put_rows(model, 0, {gates});
        put_rows(model, 1, {std::vector<float>(width, 1.0f)});
        model.step(GatedActivationStep{activation, gate, one, out});
        model.finish(out);
        Session session(model, {});
        const std::vector<float> got = session.forward({{0, {0}}}, {0});
        for (size_t i = 0; i < width; ++i) {
            const double wanted = detail::activate(activation, static_cast<double>(gates[i]));
            // Far tails may be flushed, or be bounded away from 0, where the input is immense.
            const double slack = 1e-30 + 1e-37 * std::abs(static_cast<double>(gates[i]));
            EXPECT_NEAR(got[i], wanted, 3e-6 * std::abs(wanted) + slack)
                << "activation " << static_cast<int>(activation) << " of " << gates[i];
        }
    }
}

TEST(Steps, SoftcapOfExtremeInputs) {
    const std::vector<float> values{0.0f, 1e-6f, -0.2f, 0.59f, -0.61f, 3.0f, -8.0f, 50.0f, -1e4f, 3e38f, -3e38f};
    for (const float cap : {1.0f, 30.0f}) {
        TestModel model;
        const ValueId in = model.input(static_cast<uint32_t>(values.size()));
        const ValueId out = model.value(static_cast<uint32_t>(values.size()));
        put_rows(model, 0, {values});
        model.step(UnaryStep{UnaryOp::softcap, cap, in, out});
        model.finish(out);
        Session session(model, {});
        const std::vector<float> got = session.forward({{0, {0}}}, {0});
        for (size_t i = 0; i < values.size(); ++i) {
            const double c = static_cast<double>(cap), wanted = c * std::tanh(static_cast<double>(values[i]) / c);
            EXPECT_NEAR(got[i], wanted, 1e-6 * std::abs(wanted)) << values[i];
        }
    }
}

TEST(Steps, RoutingOverManyExperts) {
    for (const uint32_t experts : {33u, 1000u}) {
        for (const uint32_t top_k : {1u, 8u, 33u}) {
            TestModel model;
            const ValueId logits = model.input(experts, 3.0f), ids = model.value(top_k), weights = model.value(top_k);
            model.step(RouteStep{logits, RouterGate::softmax, top_k, true, 2.0f, ids, weights});
            model.finish(weights);
            expect_reference(model, {one_run(1), one_run(9)}, kFloat);
        }
    }
}

// Equal logits go to the lowest ids; NaNs and infinities still give distinct ids within range and finite weights.
TEST(Steps, RoutingOfTiesAndNonFiniteLogits) {
    const float inf = INFINITY, nan = NAN;
    const std::vector<std::vector<float>> rows{
        {1, 1, 1, 1}, {nan, 2, nan, 2}, {nan, nan, nan, nan}, {inf, -inf, inf, 0}, {-inf, -inf, -inf, -inf}};
    const std::vector<std::vector<float>> wanted{{0, 1, 2}, {1, 3, 0}, {0, 1, 2}, {0, 2, 3}, {0, 1, 2}};
    for (const RouterGate gate : {RouterGate::softmax, RouterGate::softmax_of_chosen, RouterGate::sigmoid}) {
        TestModel model;
        const ValueId logits = model.input(4), ids = model.value(3), weights = model.value(3);
        put_rows(model, 0, rows);
        model.step(RouteStep{logits, gate, 3, true, 1.0f, ids, weights});
        // Expert e adds e to the logits of its slot, so the logits are the ids, and then the weights.
        ExpertLinearStep step{};
        const ValueId ones = model.input(1, 0.0f);
        step.in = ones, step.ids = ids, step.top_k = 3;
        const WeightId bias = model.weight(DType::F32, 1, 4);
        for (float e = 0; e < 4; ++e) std::memcpy(model.bytes[bias].data() + static_cast<size_t>(e) * 4, &e, 4);
        step.parts[0] = {model.whole(model.weight(DType::F32, 1, 1, 4)), bias, model.value(3)};
        model.step(step);
        model.finish(step.parts[0].out);
        Session ids_session(model, {});
        const BatchSpec batch{{{0, {0, 1, 2, 3, 4}}}, {0, 1, 2, 3, 4}};
        const std::vector<float> got = ids_session.forward(batch.runs, batch.outputs);
        for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], wanted[i / 3][i % 3]) << "row " << i / 3;

        std::get<SelectStep>(model.program.steps.back().op).in = weights;
        Session weights_session(model, {});
        for (const float w : weights_session.forward(batch.runs, batch.outputs)) EXPECT_TRUE(w >= 0 && w <= 1) << w;
    }
}

}  // namespace
}  // namespace metallic::testing
