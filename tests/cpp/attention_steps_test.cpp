#include <gtest/gtest.h>

#include "reference_check.h"

// Cache writes and attention on the device under test: whole models of one or two layers, against a forward in double
// precision.
namespace metallic::testing {
namespace {

constexpr double kFloat = 5e-5;

struct Shape {
    uint32_t heads = 4;
    uint32_t kv_heads = 2;
    uint32_t head_size = 32;
    uint32_t window = 0;
    float softcap = 0;
    bool sinks = false;
    bool fused = true;  // norms and rotation within the cache write
    bool norms = true;
    RopePairing pairing = RopePairing::neox;
    uint32_t layers = 1;
};

LinearStep projection(TestModel& model, ValueId in, uint32_t width) {
    LinearStep step{};
    step.in = in;
    const uint32_t cols = model.program.values[in].width;
    step.parts[0] = {model.whole(model.weight(DType::F32, cols, width, 1, 0.5f)), kNone, model.value(width)};
    return step;
}

// Queries and keys as attention wants them, through one fused write or through separate steps.
ValueId write_kv(TestModel& model, const Shape& shape, uint32_t layer, ValueId q, ValueId k, ValueId v) {
    const WeightId q_norm = shape.norms ? model.weight(DType::F32, shape.head_size, 1, 1, 0.3f, 1.0f) : kNone;
    const WeightId k_norm = shape.norms ? model.weight(DType::F16, shape.head_size, 1, 1, 0.3f, 1.0f) : kNone;
    const ValueId q_out = model.value(shape.heads * shape.head_size);
    KvWriteStep write{};
    write.group = 0, write.layer = layer, write.k = k, write.v = v;
    if (shape.fused) {
        write.q = q, write.q_out = q_out, write.q_norm = q_norm, write.k_norm = k_norm;
        write.norm_epsilon = 1e-5f, write.rope = 0;
        model.step(write);
        return q_out;
    }
    if (shape.norms) {
        const ValueId normed = model.value(model.program.values[q].width);
        model.step(NormStep{q, q_norm, 1e-5f, shape.head_size, kNone, normed});
        q = normed;
        write.k = model.value(model.program.values[k].width);
        model.step(NormStep{k, k_norm, 1e-5f, shape.head_size, kNone, write.k});
    }
    const ValueId k_out = model.value(model.program.values[k].width);
    model.step(RopeStep{0, shape.head_size, q, q_out});
    model.step(RopeStep{0, shape.head_size, write.k, k_out});
    write.k = k_out;
    model.step(write);
    return q_out;
}

TestModel make_model(const Shape& shape) {
    TestModel model;
    model.rope(shape.head_size - 8, shape.pairing);
    model.program.groups.push_back({shape.window, shape.kv_heads, shape.head_size, shape.layers});
    ValueId x = model.input(40);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
        LinearStep qkv = projection(model, x, shape.heads * shape.head_size);
        for (uint32_t i = 1; i < 3; ++i) qkv.parts[i] = projection(model, x, shape.kv_heads * shape.head_size).parts[0];
        qkv.part_count = 3;
        model.step(qkv);
        const ValueId q = write_kv(model, shape, layer, qkv.parts[0].out, qkv.parts[1].out, qkv.parts[2].out);
        AttentionStep attention{};
        attention.layer = layer, attention.heads = shape.heads, attention.softcap = shape.softcap;
        attention.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_size));
        attention.sinks = shape.sinks ? model.weight(DType::F32, shape.heads) : kNone;
        attention.q = q, attention.out = model.value(shape.heads * shape.head_size);
        model.step(attention);
        LinearStep out = projection(model, attention.out, 40);
        out.residual = x;
        model.step(out);
        x = out.parts[0].out;
    }
    model.finish(x);
    return model;
}

// A prompt, a shorter one of another sequence, then both sequences' tokens one by one in shared batches.
std::vector<BatchSpec> conversation(uint32_t prompt) {
    std::vector<BatchSpec> batches{one_run(prompt, 0, 1), one_run(5, 1, 2)};
    for (uint32_t i = 0; i < 4; ++i) {
        batches.push_back({{{0, some_tokens(1, 10 + i)}, {1, some_tokens(1, 20 + i)}}, {0, 1}});
    }
    batches.push_back({{{1, some_tokens(20, 30)}, {2, some_tokens(3, 31)}, {0, some_tokens(1, 32)}}, {0, 19, 22, 23}});
    return batches;
}

TEST(AttentionSteps, EveryShape) {
    std::vector<Shape> shapes(8);
    shapes[1].heads = 2, shapes[1].norms = false, shapes[1].pairing = RopePairing::normal;
    shapes[2].window = 9;
    shapes[3].softcap = 2.0f, shapes[3].sinks = true;
    shapes[4].kv_heads = 1, shapes[4].heads = 8, shapes[4].head_size = 40;
    shapes[5].fused = false;
    shapes[6].fused = false, shapes[6].norms = false, shapes[6].window = 40, shapes[6].sinks = true;
    shapes[7].layers = 3, shapes[7].heads = 6;
    for (const Shape& shape : shapes) {
        SCOPED_TRACE(&shape - shapes.data());
        expect_reference(make_model(shape), conversation(50), kFloat);
    }
}

TEST(AttentionSteps, FusedAndSeparateStepsAgree) {
    for (const bool alias : {false, true}) {
        Shape shape;
        Session::Options options;
        options.threads = 2;
        options.alias_queries = alias;
        const TestModel fused = make_model(shape);
        shape.fused = false;
        const TestModel separate = make_model(shape);
        Session a(fused, options), b(separate, options);
        for (const BatchSpec& batch : conversation(45)) {
            expect_same_rows(a.forward(batch.runs, batch.outputs), b.forward(batch.runs, batch.outputs), kFloat);
        }
    }
}

TEST(AttentionSteps, CacheOfEveryType) {
    // A value at the border of two roundings may fall on the other side here.
    const std::map<DType, double> tolerances{
        {DType::F32, kFloat}, {DType::F16, 1e-3}, {DType::BF16, 5e-3}, {DType::Q8_0, 5e-3}, {DType::Q4_0, 8e-2}};
    for (const auto& [keys, of_keys] : tolerances) {
        for (const auto& [values, of_values] : tolerances) {
            Shape shape;
            shape.head_size = 40;  // no whole blocks
            Session::Options options;
            options.kv = {keys, values};
            SCOPED_TRACE(std::string(dtype_info(keys).name) + " and " + std::string(dtype_info(values).name));
            expect_reference(make_model(shape), conversation(50), std::max(of_keys, of_values), options);
        }
    }
}

// The history crosses segments, so that few runs are split over it; windows drop the pages that they left.
TEST(AttentionSteps, LongHistories) {
    for (const uint32_t window : {0u, 1500u}) {
        Shape shape;
        shape.window = window;
        shape.sinks = true;
        Session::Options options;
        options.max_tokens = 1200;
        options.pages = 120;
        std::vector<BatchSpec> batches;
        for (uint32_t i = 0; i < 2; ++i) batches.push_back({{{0, some_tokens(1200, i)}}, {0, 599, 1199}});
        batches.push_back({{{0, some_tokens(1, 7)}, {1, some_tokens(3, 8)}}, {0, 3}});
        batches.push_back({{{0, some_tokens(1, 9)}}, {0}});
        expect_reference(make_model(shape), batches, 2e-4, options);
    }
}

TEST(AttentionSteps, ChunkedPromptsEqualWholeOnes) {
    for (const uint32_t window : {0u, 33u}) {
        Shape shape;
        shape.window = window;
        shape.layers = 2;
        const TestModel model = make_model(shape);
        const std::vector<int32_t> tokens = some_tokens(150);
        Session::Options options;
        options.max_tokens = 150;
        options.threads = 3;
        Session whole(model, options);
        const std::vector<float> wanted = whole.forward({{0, tokens}}, {149});
        for (const uint32_t size : {1u, 7u, 32u, 64u}) {
            Session chunked(model, options);
            std::vector<float> got;
            for (uint32_t first = 0; first < 150; first += size) {
                const uint32_t end = std::min(first + size, 150u);
                got = chunked.forward({{0, {tokens.begin() + first, tokens.begin() + end}}}, {end - first - 1});
            }
            SCOPED_TRACE(size);
            expect_same_rows(got, wanted, kFloat);
        }
    }
}

TEST(AttentionSteps, SequencesOfABatchDoNotInfluenceEachOther) {
    const TestModel model = make_model({});
    Session alone(model, {}), together(model, {});
    const std::vector<int32_t> a = some_tokens(20, 1), b = some_tokens(13, 2);
    const std::vector<float> wanted = alone.forward({{0, b}}, {12});
    expect_same_rows(together.forward({{0, a}, {1, b}}, {32}), wanted, kFloat);
}

}  // namespace
}  // namespace metallic::testing
