#include "program/planner.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "program/builder.h"

namespace metallic {
namespace {

constexpr uint64_t kWidth = 64, kHeads = 4, kKvHeads = 2, kHeadSize = 16, kInner = 96, kVocabulary = 50;

std::vector<Builder::WeightSource> sources() {
    const auto matrix = [](std::string name, uint64_t rows, uint64_t cols, uint64_t experts = 1) {
        return Builder::WeightSource{std::move(name), DType::F32, cols, rows, experts, 0};
    };
    return {matrix("embedding", kVocabulary, kWidth),
            matrix("norm", 1, kWidth),
            matrix("head_norm", 1, kHeadSize),
            matrix("q", kHeads * kHeadSize, kWidth),
            matrix("k", kKvHeads * kHeadSize, kWidth),
            matrix("v", kKvHeads * kHeadSize, kWidth),
            matrix("o", kWidth, kHeads * kHeadSize),
            matrix("gate", kInner, kWidth),
            matrix("up", kInner, kWidth),
            matrix("down", kWidth, kInner),
            matrix("router", 8, kWidth),
            matrix("experts", kInner, kWidth, 8),
            matrix("experts_down", kWidth, kInner, 8)};
}

struct Block {
    bool head_norms = false;
    bool rope = true;
    bool post_norm = false;
    bool read_norm_twice = false;
};

ValueId trace_block(Builder& b, ValueId x, const Block& options) {
    RopeTable table;
    table.dims = kHeadSize;
    table.base.inverse_frequencies.assign(kHeadSize / 2, 0.1f);
    const RopeId rope = b.rope_table(table);
    const uint32_t group = b.cache_group(kKvHeads, kHeadSize, 0);
    b.enter_scope("attention");
    const ValueId h = b.rms_norm(x, b.weight("norm"), 1e-5f, 0);
    ValueId q = b.linear(h, b.weight("q"), {});
    ValueId k = b.linear(h, b.weight("k"), {});
    const ValueId v = b.linear(h, b.weight("v"), {});
    if (options.head_norms) {
        q = b.rms_norm(q, b.weight("head_norm"), 1e-6f, kHeadSize);
        k = b.rms_norm(k, b.weight("head_norm"), 1e-6f, kHeadSize);
    }
    if (options.rope) q = b.rope(q, rope, kHeadSize), k = b.rope(k, rope, kHeadSize);
    ValueId o = b.linear(b.attention(q, k, v, group, kHeads, 0.25f, 0, {}), b.weight("o"), {});
    if (options.post_norm) o = b.rms_norm(o, b.weight("norm"), 1e-5f, 0);
    b.leave_scope();
    x = b.add(x, o);
    b.enter_scope("ffn");
    const ValueId n = b.rms_norm(x, b.weight("norm"), 1e-5f, 0);
    const ValueId inner =
        b.gated_activation(Activation::silu, b.linear(n, b.weight("gate"), {}), b.linear(n, b.weight("up"), {}));
    ValueId down = b.linear(inner, b.weight("down"), {});
    if (options.read_norm_twice) down = b.add(down, n);
    b.leave_scope();
    return b.add(x, down);
}

Program trace(int blocks, const Block& options = {}) {
    Builder b("test.gguf", sources());
    ValueId x = b.embedding(b.weight("embedding"), 1.0f);
    for (int i = 0; i < blocks; ++i) {
        b.enter_scope("block." + std::to_string(i));
        x = trace_block(b, x, options);
        b.leave_scope();
    }
    x = b.rms_norm(x, b.weight("norm"), 1e-5f, 0);
    b.output(b.linear(x, b.weight("embedding"), {}));
    return b.finish();
}

std::vector<std::string> names(const Program& program) {
    std::vector<std::string> result;
    for (const Step& step : program.steps) result.emplace_back(step_name(step.op));
    return result;
}

using Names = std::vector<std::string>;

TEST(Planner, FusesABlockIntoSixSteps) {
    const Program plan = plan_program(trace(1));
    EXPECT_EQ(names(plan), (Names{"embedding", "linear", "kv_write", "attention", "select", "select", "linear",
                                  "linear", "linear", "linear"}));
    const auto& qkv = std::get<LinearStep>(plan.steps[1].op);
    EXPECT_EQ(qkv.part_count, 3u);
    EXPECT_TRUE(qkv.norm.enabled);
    EXPECT_EQ(plan.scopes.path(plan.steps[1].scope), "block.0/attention");
    const auto& write = std::get<KvWriteStep>(plan.steps[2].op);
    EXPECT_EQ(write.q, qkv.parts[0].out);
    EXPECT_EQ(write.k, qkv.parts[1].out);
    EXPECT_NE(write.rope, kNone);
    EXPECT_EQ(std::get<AttentionStep>(plan.steps[3].op).q, write.q_out);
    const auto& o = std::get<LinearStep>(plan.steps[6].op);
    EXPECT_NE(o.residual, kNone);
    EXPECT_EQ(plan.values[o.parts[0].out].rows, Rows::outputs);
    const auto& gate = std::get<LinearStep>(plan.steps[7].op);
    EXPECT_TRUE(gate.gated && gate.norm.enabled);
    EXPECT_NE(std::get<LinearStep>(plan.steps[8].op).residual, kNone);
    EXPECT_TRUE(std::get<LinearStep>(plan.steps[9].op).norm.enabled);
}

TEST(Planner, OnlyTheLastBlockIsNarrowed) {
    const Program plan = plan_program(trace(3));
    int selects = 0;
    for (const Step& step : plan.steps) {
        if (std::holds_alternative<SelectStep>(step.op)) {
            ++selects;
            EXPECT_EQ(plan.scopes.path(step.scope).rfind("block.2", 0), 0u);
        }
    }
    EXPECT_EQ(selects, 2);
    EXPECT_EQ(plan.values[plan.logits].rows, Rows::outputs);
}

TEST(Planner, FusesHeadNorms) {
    const Program plan = plan_program(trace(1, {.head_norms = true}));
    const auto& write = std::get<KvWriteStep>(plan.steps[2].op);
    EXPECT_NE(write.q_norm, kNone);
    EXPECT_NE(write.k_norm, kNone);
    EXPECT_FLOAT_EQ(write.norm_epsilon, 1e-6f);
}

TEST(Planner, LayersWithoutRopeLeaveTheQueriesAlone) {
    const Program plan = plan_program(trace(1, {.rope = false}));
    const auto& write = std::get<KvWriteStep>(plan.steps[2].op);
    EXPECT_EQ(write.q, kNone);
    EXPECT_EQ(write.rope, kNone);
}

TEST(Planner, ANormBehindALinearTakesTheResidual) {
    const Program plan = plan_program(trace(2, {.post_norm = true}));
    const auto steps = names(plan);
    EXPECT_EQ(std::count(steps.begin(), steps.end(), "add"), 0);
    EXPECT_EQ(std::count(steps.begin(), steps.end(), "norm"), 2);
}

TEST(Planner, ANormThatOthersReadStays) {
    const Program plan = plan_program(trace(2, {.read_norm_twice = true}));
    const auto steps = names(plan);
    EXPECT_EQ(std::count(steps.begin(), steps.end(), "norm"), 2);
}

TEST(Planner, FusesExperts) {
    Builder b("test.gguf", sources());
    const ValueId x = b.embedding(b.weight("embedding"), 1.0f);
    const ValueId n = b.rms_norm(x, b.weight("norm"), 1e-5f, 0);
    const auto routing = b.route(b.linear(n, b.weight("router"), {}), 2, RouterGate::softmax, true, 1.0f);
    const ValueId inner = b.gated_activation(Activation::silu, b.expert_linear(n, b.weight("experts"), routing),
                                             b.expert_linear(n, b.weight("experts"), routing));
    const ValueId out = b.combine(b.expert_linear(inner, b.weight("experts_down"), routing), routing);
    b.output(b.linear(b.add(x, out), b.weight("embedding"), {}));
    const Program plan = plan_program(b.finish());
    EXPECT_EQ(names(plan), (Names{"embedding", "select", "norm", "linear", "route", "expert_linear", "expert_linear",
                                  "combine", "linear"}));
    EXPECT_TRUE(std::get<ExpertLinearStep>(plan.steps[5].op).gated);
    EXPECT_TRUE(std::get<ExpertLinearStep>(plan.steps[6].op).per_slot);
    EXPECT_NE(std::get<CombineStep>(plan.steps[7].op).residual, kNone);
}

// Values that are alive together never overlap, and the arena does not grow with the number of blocks.
TEST(Planner, ArenaKeepsLiveValuesApart) {
    for (const uint32_t tokens : {1u, 7u, 512u}) {
        const Program plan = plan_program(trace(4, {.head_norms = true, .post_norm = true}));
        const ArenaLayout layout = layout_arena(plan, tokens, 3);
        std::vector<size_t> first(plan.values.size(), SIZE_MAX), last(plan.values.size(), 0);
        std::vector<ValueId> same(plan.values.size());
        for (ValueId id = 0; id < same.size(); ++id) same[id] = id;
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            const auto touch = [&](ValueId id) { first[id] = std::min(first[id], i), last[id] = i; };
            for_each_read(plan.steps[i].op, touch);
            for_each_write(plan.steps[i].op, touch);
            if (const auto* w = std::get_if<KvWriteStep>(&plan.steps[i].op); w && w->q != kNone) {
                EXPECT_EQ(layout.offsets[w->q], layout.offsets[w->q_out]);
                same[w->q_out] = w->q;
            }
        }
        const auto bytes = [&](ValueId id) {
            return uint64_t{4} * plan.values[id].width * (plan.values[id].rows == Rows::tokens ? tokens : 3);
        };
        for (ValueId a = 0; a < plan.values.size(); ++a) {
            if (first[a] == SIZE_MAX) {
                EXPECT_EQ(layout.offsets[a], ArenaLayout::kUnplaced);
                continue;
            }
            ASSERT_LE(layout.offsets[a] + bytes(a), layout.bytes);
            ASSERT_EQ(layout.offsets[a] % 64, 0u);
            for (ValueId b = 0; b < a; ++b) {
                if (first[b] == SIZE_MAX || same[a] == same[b] || last[a] < first[b] || last[b] < first[a]) continue;
                const bool apart = layout.offsets[a] + bytes(a) <= layout.offsets[b] ||
                                   layout.offsets[b] + bytes(b) <= layout.offsets[a];
                ASSERT_TRUE(apart) << "values " << a << " and " << b;
            }
        }
    }
    EXPECT_EQ(layout_arena(plan_program(trace(3)), 512, 3).bytes, layout_arena(plan_program(trace(30)), 512, 3).bytes);
}

TEST(Builder, NamesWhatIsWrong) {
    Builder b("test.gguf", sources());
    const ValueId x = b.embedding(b.weight("embedding"), 1.0f);
    try {
        b.weight("q", 10, kWidth);
        FAIL();
    } catch (const ModelFormatError& error) {
        EXPECT_EQ(error.where, "q");
        EXPECT_EQ(error.file, "test.gguf");
    }
    EXPECT_THROW(b.weight("absent"), ModelFormatError);
    EXPECT_FALSE(b.find("absent"));
    EXPECT_THROW(b.linear(x, b.weight("o"), b.weight("q")), ModelFormatError);
    EXPECT_THROW(b.rms_norm(x, b.weight("head_norm"), 1e-5f, 0), ModelFormatError);
    EXPECT_THROW(b.rms_norm(x, {}, 1e-5f, 7), RequestError);
    EXPECT_THROW(b.slice(b.weight("q"), 60, 5), RequestError);
    EXPECT_THROW(b.add(x, 99), RequestError);
    EXPECT_THROW(b.leave_scope(), RequestError);
    EXPECT_THROW(b.finish(), RequestError);
}

TEST(Planner, RefusesMalformedPrograms) {
    Program program = trace(1);
    std::get<LinearStep>(program.steps[2].op).in = 10000;
    EXPECT_THROW(plan_program(program), Error);
}

}  // namespace
}  // namespace metallic
