#include "runtime/placement.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "placed_model.h"
#include "program/stages.h"

namespace metallic::testing {
namespace {

// The places of all weights, by name.
class Places {
  public:
    Places(const std::string& rules, std::optional<uint32_t> device_layers = {}, PlacementLimits limits = {},
           bool tied = true)
        : model_(tied) {
        for (const CacheGroup& group : model_.program.groups) kv_.push_back(KvLayout::of(group, DType::F16));
        limits.kv = kv_;
        PlacementRules parsed = PlacementRules::parse(rules);
        if (device_layers) parsed.set_device_layers(*device_layers);
        placement = place_weights(model_.program, parsed, limits);
    }

    std::string_view of(std::string_view name) const {
        for (size_t id = 0; id < model_.program.weights.size(); ++id) {
            if (model_.program.weights[id].name == name) return place_name(placement.weights[id]);
        }
        return "no such weight";
    }
    // The device of each block by its feed-forward network, then that of the output: "hhddd".
    std::string devices(bool tied = true) const {
        std::string result;
        for (uint32_t block = 0; block < PlacedModel::kBlocks; ++block) {
            result += of("blk." + std::to_string(block) + ".ffn_up.weight") == "cpu" ? 'h' : 'd';
        }
        return result + (of(tied ? "output_norm.weight" : "output.weight") == "cpu" ? 'h' : 'd');
    }

    Placement placement;

  private:
    PlacedModel model_;
    std::vector<KvLayout> kv_;
};

PlacementLimits two_devices() {
    PlacementLimits limits;
    limits.device_is_host = false;
    limits.device_memory = uint64_t{1} << 30;
    limits.context = 64;
    limits.batch_tokens = 32;
    return limits;
}

TEST(PlacementRules, TheLastRuleThatMatchesWins) {
    const Places places("private, blk.1-2 = mapped, blk.2.ffn_*=shared,output_norm=mapped", {}, two_devices());
    EXPECT_EQ(places.of("token_embd.weight"), "private");
    EXPECT_EQ(places.of("blk.0.ffn_up.weight"), "private");
    EXPECT_EQ(places.of("blk.1.ffn_up.weight"), "mapped");
    EXPECT_EQ(places.of("blk.2.attn_q.weight"), "mapped");
    EXPECT_EQ(places.of("blk.2.ffn_up.weight"), "shared");
    EXPECT_EQ(places.of("output_norm.weight"), "mapped");
    EXPECT_EQ(Places("blk.2.ffn_*=shared,blk.*=private", {}, two_devices()).of("blk.2.ffn_up.weight"), "private");
}

TEST(PlacementRules, Patterns) {
    const auto placed = [](const std::string& pattern) {
        const Places places(pattern + "=private", {}, two_devices());
        std::string result;
        for (uint32_t block = 0; block < PlacedModel::kBlocks; ++block) {
            result += places.of("blk." + std::to_string(block) + ".ffn_down.weight") == "private" ? '1' : '0';
        }
        return result;
    };
    EXPECT_EQ(placed("blk.2"), "0010");
    EXPECT_EQ(placed("blk.1-2"), "0110");
    EXPECT_EQ(placed("blk.2-"), "0011");
    EXPECT_EQ(placed("blk.-1"), "1100");
    EXPECT_EQ(placed("blk.0-400"), "1111");
    EXPECT_EQ(placed("blk.*"), "1111");
    EXPECT_EQ(placed("blk.*.ffn_down"), "1111");
    EXPECT_EQ(placed("blk.1-.ffn_down.weight"), "0111");
    EXPECT_EQ(placed("blk.3.ffn_?own"), "0001");
    EXPECT_EQ(placed("blk.3.ffn_"), "0000");
    EXPECT_EQ(placed("*ffn*w*"), "1111");
    EXPECT_EQ(placed("*.2.ffn_down"), "0010");
    EXPECT_EQ(placed("*"), "1111");
    EXPECT_EQ(placed("token_embd"), "0000");
    // A pattern that backtracking would take ages for.
    EXPECT_EQ(placed(std::string(200, '*') + "a" + std::string(200, '*') + "x*b*c*d"), "0000");
}

TEST(PlacementRules, TextThatIsNoRuleIsRefusedWithWhatMayBeWritten) {
    const std::string nul("blk.0\0=cpu", 10);
    for (const std::string& text : {std::string(),
                                    std::string(","),
                                    std::string("private,"),
                                    std::string("vram"),
                                    std::string("=cpu"),
                                    std::string("blk.0="),
                                    std::string("blk.=cpu"),
                                    std::string("blk.a=cpu"),
                                    std::string("blk.3-1=cpu"),
                                    std::string("blk.-=cpu"),
                                    std::string("blk.0-1-2=cpu"),
                                    std::string("blk.1.=cpu"),
                                    std::string("blk.99999999999=cpu"),
                                    std::string("blk.4294967295=cpu"),
                                    std::string("blk.+1=cpu"),
                                    std::string("blk.0 1=cpu"),
                                    std::string("a=b=cpu"),
                                    std::string("private,auto"),
                                    std::string("blk.0=auto"),
                                    std::string("blk.0:cpu"),
                                    std::string("\xff\xfe"),
                                    nul,
                                    std::string(1 << 17, 'x')}) {
        try {
            PlacementRules::parse(text);
            ADD_FAILURE() << "taken: " << text.substr(0, 80);
        } catch (const RequestError& error) {
            const std::string what = error.what();
            EXPECT_LT(what.size(), 500u);
            for (const char c : what.substr(0, what.find(':'))) EXPECT_TRUE(c >= ' ') << text.substr(0, 80);
            if (text.size() > 1000) continue;
            EXPECT_NE(what.find("mapped, private, shared or cpu"), std::string::npos) << what;
        }
    }
    EXPECT_TRUE(PlacementRules::parse("AUTO").automatic());
    EXPECT_NO_THROW(PlacementRules::parse("Private,blk.0=CPU"));
}

TEST(PlacementRules, RulesThatMatchNothingAreNamed) {
    const Places places("blk.9=cpu,blk.1=mapped,outptu=private", {}, two_devices());
    EXPECT_EQ(places.placement.unmatched, (std::vector<std::string>{"blk.9=cpu", "outptu=private"}));
}

TEST(Placement, DeviceLayersAreTheLastOnesAndTheOutputIsOne) {
    EXPECT_EQ(Places("mapped", 0, two_devices(), false).devices(false), "hhhhh");
    EXPECT_EQ(Places("mapped", 1, two_devices(), false).devices(false), "hhhhd");
    EXPECT_EQ(Places("mapped", 3, two_devices(), false).devices(false), "hhddd");
    EXPECT_EQ(Places("mapped", 5, two_devices(), false).devices(false), "ddddd");
    EXPECT_EQ(Places("mapped", 99, two_devices(), false).devices(false), "ddddd");
    const Places both("private", 3, two_devices(), false);
    EXPECT_EQ(both.of("blk.3.attn_q.weight"), "private");
    EXPECT_EQ(both.of("token_embd.weight"), "cpu") << "nothing on the device reads it";
    EXPECT_EQ(Places("private", 3, two_devices()).of("token_embd.weight"), "private") << "the output reads it";
}

TEST(Placement, WithoutAnotherDeviceTheHostsLayersAreItsOwn) {
    PlacementLimits limits = two_devices();
    limits.device_is_host = true;
    const Places places("private,blk.0=cpu", {}, limits);
    EXPECT_EQ(places.of("blk.0.attn_q.weight"), "mapped");
    EXPECT_EQ(places.of("blk.1.attn_q.weight"), "private");
    EXPECT_EQ(places.placement.stages.size(), 1u);
    EXPECT_EQ(Places("mapped", 0, limits).placement.stages.size(), 1u);
    limits.device_memory = 1;
    EXPECT_EQ(Places("auto", {}, limits).devices(), "ddddd");
}

// A little less memory than the last n layers take gives the device n - 1 of them.
TEST(Placement, AutoGivesTheDeviceAsMuchAsFits) {
    PlacementLimits limits = two_devices();
    limits.activations = 5000;
    const Places all("auto", {}, limits);
    EXPECT_EQ(all.devices(), "ddddd");
    EXPECT_TRUE(all.placement.automatic);
    const std::vector<Placement::Block>& blocks = all.placement.blocks;
    ASSERT_EQ(blocks.size(), PlacedModel::kBlocks + 1u);
    EXPECT_EQ(blocks[4].block, kNoBlock);
    // 64 tokens are two pages, of the two kv heads' 16 halfs, keys and values; the window sees all of them.
    EXPECT_EQ(blocks[0].kv, 64u * 2 * 16 * 2 * 2);
    EXPECT_EQ(blocks[1].kv, blocks[0].kv);

    const auto devices_with = [&](uint64_t room) {
        // The budget whose room after reserves is this.
        for (limits.device_memory = room + limits.activations;; ++limits.device_memory) {
            if (limits.device_memory - limits.activations - limits.device_memory / 16 >= room) break;
        }
        return Places("auto", {}, limits).devices();
    };
    uint64_t room = 0;
    for (const Placement::Block& block : blocks) room += block.total();
    EXPECT_EQ(devices_with(room), "ddddd");
    EXPECT_EQ(devices_with(room - 1), "hdddd");
    room -= blocks[0].total();
    EXPECT_EQ(devices_with(room), "hdddd");
    EXPECT_EQ(devices_with(room - 1), "hhddd");
    room -= blocks[1].total() + blocks[2].total() + blocks[3].total();
    EXPECT_EQ(devices_with(room), "hhhhd") << "the output alone, which is the embeddings";
    EXPECT_EQ(devices_with(room - 1), "hhhhh");

    limits.device_memory = uint64_t{1} << 30;
    limits.memory_budget = 2 * (room + limits.activations);
    EXPECT_EQ(Places("auto", {}, limits).placement.budget, limits.memory_budget);
    EXPECT_NE(Places("auto", {}, limits).devices(), "ddddd");
    EXPECT_EQ(Places("auto,blk.0=private", {}, limits).of("blk.0.ffn_up.weight"), "private") << "rules go before";
    limits.unified_memory = false;
    limits.memory_budget = 0;
    EXPECT_EQ(Places("auto", {}, limits).of("blk.0.ffn_up.weight"), "private") << "it cannot read the mapping in place";
    EXPECT_EQ(Places("auto", 2, limits).of("blk.3.ffn_up.weight"), "private");
}

TEST(Stages, StepsWithoutWeightsStayWithTheirBlock) {
    const Places places("blk.1-2=cpu", {}, two_devices());
    ASSERT_EQ(places.placement.stages.size(), 3u);
    const Placement::Stage& host = places.placement.stages[1];
    EXPECT_EQ(host.device, kHost);
    EXPECT_EQ(host.first_block, 1u);
    EXPECT_EQ(host.last_block, 2u);
    EXPECT_EQ(places.placement.stages[0].first_block, 0u);
    EXPECT_EQ(places.placement.stages[2].last_block, 3u);
}

// One value is alive at a boundary between blocks: the residual stream; of the rows asked for where only they are left.
TEST(Stages, OnlyTheResidualStreamCrosses) {
    PlacedModel model;
    std::vector<uint32_t> devices(model.program.weights.size(), kDevice);
    for (size_t id = 0; id < devices.size(); ++id) {
        if (model.program.weights[id].block == 1) devices[id] = kHost;
        if (model.program.weights[id].name == "output_norm.weight") devices[id] = kHost;
    }
    const std::vector<uint32_t> of_stage = assign_stages(model.program, devices);
    EXPECT_EQ(of_stage, (std::vector<uint32_t>{kDevice, kHost, kDevice, kHost, kDevice}));
    const Program planned = plan_program(model.program);
    const StagedProgram staged = split_stages(planned, of_stage);
    ASSERT_EQ(staged.stages.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
        const Program& program = staged.stages[i].program;
        ASSERT_EQ(program.inputs.size(), i > 0 ? 1u : 0u) << i;
        ASSERT_EQ(program.outputs.size(), i < 4 ? 1u : 0u) << i;
        EXPECT_EQ(program.logits == kNone, i < 4) << i;
        if (i > 0) {
            EXPECT_EQ(program.values[program.inputs[0]].rows, i < 3 ? Rows::tokens : Rows::outputs) << i;
        }
        // Six steps a block, the embedding, two selections in the last block; the output norm has a stage of its own:
        // nothing was fused across its ends.
        EXPECT_EQ(program.steps.size(), i == 0 ? 7u : i == 1 ? 6u : i == 2 ? 14u : 1u) << i;
    }
    // The layers of each device, by cache group.
    ASSERT_EQ(staged.devices.size(), 2u);
    EXPECT_EQ(staged.devices[kDevice].groups[0].layers + staged.devices[kDevice].groups[1].layers, 3u);
    ASSERT_EQ(staged.devices[kHost].groups.size(), 1u);
    EXPECT_EQ(staged.devices[kHost].groups[0].window, PlacedModel::kWindow);
    EXPECT_EQ(staged.devices[kHost].groups[0].layers, 1u);
    EXPECT_EQ(staged.devices[kHost].ids, (std::vector<uint32_t>{1}));
}

TEST(Stages, OneStageIsPlannedAsEver) {
    PlacedModel model;
    const size_t steps = plan_program(model.program).steps.size();
    const std::vector<uint32_t> devices(model.program.weights.size(), kHost);
    EXPECT_EQ(assign_stages(model.program, devices), (std::vector<uint32_t>{kHost}));
    EXPECT_EQ(plan_program(model.program).steps.size(), steps);
}

}  // namespace
}  // namespace metallic::testing
