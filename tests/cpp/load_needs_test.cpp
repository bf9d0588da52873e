#include "runtime/load_needs.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "placed_model.h"
#include "runtime/model.h"

// What a model is predicted to take, and the automatic placement that goes by it, against models that are loaded.
namespace metallic::testing {
namespace {

constexpr uint64_t kSmall = uint64_t{1} << 20;

struct Setting {
    std::string rules = "auto";
    uint64_t budget = 0;
    uint64_t device_memory = uint64_t{1} << 30;
    uint32_t batch_tokens = 48, context = 512;
    DType kv = DType::F16;
    bool unified = true;
    std::optional<uint32_t> device_layers;
};

// A device of its own name; where it is said to have no unified memory, `auto` copies weights to it.
class Device final : public CountingBackend {
  public:
    explicit Device(const Setting& setting) : CountingBackend(false, setting.device_memory) {
        info_ = CountingBackend::device();
        info_.unified_memory = setting.unified;
    }
    const DeviceInfo& device() const noexcept override { return info_; }

  private:
    DeviceInfo info_;
};

class Loaded {
  public:
    explicit Loaded(const Setting& setting) : device(std::make_shared<Device>(setting)) {
        options.context_length = setting.context;
        options.batch_tokens = setting.batch_tokens;
        options.memory_budget = setting.budget;
        options.kv_types = KvPair{setting.kv, setting.kv};
        options.placement = PlacementRules::parse(setting.rules);
        if (setting.device_layers) options.placement.set_device_layers(*setting.device_layers);
        options.host = [this] {
            ++hosts;
            host = std::make_shared<CountingBackend>(true);
            return host;
        };
    }
    Model::Prediction predict() { return Model::predict(source.file, device, source.program, options); }
    std::shared_ptr<Model> load() { return Model::load(source.file, device, source.program, options); }

    PlacedModel source;
    std::shared_ptr<Device> device;
    std::shared_ptr<CountingBackend> host;
    ModelOptions options;
    int hosts = 0;
};

// The device of each block, "hdd", by which stage its number is in.
std::string layout(const Placement& placement) {
    std::string result;
    for (const Placement::Block& block : placement.blocks) {
        if (block.block == kNoBlock) continue;
        for (const Placement::Stage& stage : placement.stages) {
            if (stage.first_block == kNoBlock || block.block < stage.first_block || block.block > stage.last_block) {
                continue;
            }
            result += stage.device == kHost ? 'h' : 'd';
        }
    }
    return result + (placement.stages.back().device == kHost ? 'h' : 'd');
}

uint64_t tag(const Model& model, Tag which) {
    return model.memory().tags[static_cast<size_t>(which)].current;
}

std::vector<Setting> settings() {
    std::vector<Setting> all;
    for (const bool unified : {true, false}) {
        for (const bool by_device : {true, false}) {
            for (const uint32_t context : {32u, 2048u}) {
                for (const uint32_t batch : {8u, 48u}) {
                    for (uint64_t bytes = 100'000; bytes < 6 * kSmall; bytes += bytes / 8) {
                        Setting setting;
                        setting.unified = unified;
                        setting.kv = batch == 8 ? DType::F32 : DType::F16;
                        setting.context = context;
                        setting.batch_tokens = batch;
                        (by_device ? setting.device_memory : setting.budget) = bytes;
                        all.push_back(setting);
                    }
                }
            }
        }
    }
    return all;
}

TEST(LoadNeeds, ThePredictionIsWhatALoadTakes) {
    for (const char* rules : {"mapped", "private", "shared", "cpu", "blk.0-1=cpu", "private,blk.2=cpu", "blk.1=shared",
                              "shared,token_embd=cpu,blk.3=private", "auto"}) {
        Setting setting;
        setting.rules = rules;
        Loaded predicted(setting), loaded(setting);
        const Model::Prediction prediction = predicted.predict();
        const auto model = loaded.load();
        EXPECT_FALSE(prediction.refused) << rules;
        EXPECT_EQ(prediction.placement.weights, model->placement().weights) << rules;
        EXPECT_EQ(prediction.needs.bytes(Tag::weights), tag(*model, Tag::weights)) << rules;
        EXPECT_EQ(prediction.needs.bytes(Tag::activations), tag(*model, Tag::activations)) << rules;
        EXPECT_EQ(prediction.needs.mapped, model->memory().mapped_bytes) << rules;
        EXPECT_TRUE(predicted.device->uploads.empty()) << "no weight is copied";
        EXPECT_EQ(prediction.needs.groups.size(), model->kv_use().groups.size()) << rules;
    }
}

// To the byte, where heaps are rounded and the budget leaves what it leaves.
TEST(LoadNeeds, TheBudgetThatALoadWantsIsPredicted) {
    for (const char* rules : {"mapped", "private", "shared", "private,blk.0-1=cpu", "cpu", "blk.1=cpu,blk.2=shared"}) {
        const auto fits = [&](uint64_t budget) {
            Setting setting;
            setting.rules = rules;
            setting.budget = budget;
            Loaded predicted(setting), loaded(setting);
            const bool refused = predicted.predict().refused.has_value();
            try {
                loaded.load();
                EXPECT_FALSE(refused) << rules << " with " << budget;
            } catch (const OutOfMemory& error) {
                EXPECT_TRUE(refused) << rules << " with " << budget << ": " << error.what();
                return false;
            }
            return true;
        };
        uint64_t least = 256, most = 16 * kSmall;
        ASSERT_TRUE(fits(most) && !fits(least));
        while (most - least > 256) {
            const uint64_t middle = (least + most) / 2;
            (fits(middle) ? most : least) = middle;
        }
        // Not monotonic: with a little less or more, heaps are cut otherwise.
        for (uint64_t budget = most - most / 4; budget < most + most / 4; budget += most / 64) fits(budget);
    }
}

TEST(LoadNeeds, TheBudgetThatARefusalNamesLoads) {
    for (const char* rules : {"mapped", "private", "shared", "private,blk.0-1=cpu", "cpu", "auto"}) {
        Setting setting;
        setting.rules = rules;
        const uint64_t without = Loaded(setting).load()->memory().heap_bytes;
        for (const uint64_t budget : {uint64_t{1}, without / 4, without / 2}) {
            setting.budget = budget;
            try {
                Loaded(setting).load();
                ADD_FAILURE() << rules << " with " << budget;
            } catch (const OutOfMemory& error) {
                const std::string text = error.what();
                const size_t at = text.find("a budget of ");
                ASSERT_NE(at, std::string::npos) << text;
                setting.budget = std::stoull(text.substr(at + 12));
                EXPECT_LE(setting.budget, without + 4096) << rules << ", in steps of 4 KiB";
                EXPECT_NO_THROW(Loaded(setting).load()) << rules << ": " << text;
            }
        }
    }
}

TEST(AutomaticPlacement, IsFinalAndPredicted) {
    std::vector<std::string> seen;
    for (const Setting& setting : settings()) {
        Loaded predicted(setting), loaded(setting);
        const Model::Prediction prediction = predicted.predict();
        EXPECT_LE(predicted.hosts, 1);
        const Placement& placement = prediction.placement;
        EXPECT_TRUE(placement.automatic);
        std::shared_ptr<Model> model;
        try {
            model = loaded.load();
        } catch (const OutOfMemory&) {
            EXPECT_TRUE(prediction.refused);
            Setting host = setting;
            host.rules = "cpu";
            EXPECT_THROW(Loaded(host).load(), OutOfMemory) << "there was a placement that fits " << setting.budget;
            continue;
        }
        EXPECT_FALSE(prediction.refused);
        EXPECT_EQ(model->placement().weights, placement.weights);
        EXPECT_EQ(model->placement().reserved, placement.reserved);
        EXPECT_EQ(model->placement().activations, placement.activations);
        EXPECT_EQ(tag(*model, Tag::activations), prediction.needs.bytes(Tag::activations));
        EXPECT_LE(model->memory().heap_bytes, setting.budget ? setting.budget : ~uint64_t{0});
        seen.push_back(layout(placement));
    }
    for (const char* wanted : {"hhhhh", "hhhhd", "hhhdd", "hhddd", "hdddd", "ddddd"}) {
        EXPECT_NE(std::count(seen.begin(), seen.end(), wanted), 0) << wanted;
    }
}

// Counted from models that are loaded without a budget, a layer more would be too much.
TEST(AutomaticPlacement, GivesTheDeviceAllThatFits) {
    struct Needs {
        uint64_t on_device = 0, counted = 0;
    };
    const auto needs_of = [](Setting setting, uint32_t layers) {
        setting.budget = 0;
        setting.rules = setting.unified ? "mapped" : "private";
        setting.device_layers = layers;
        Loaded loaded(setting);
        const auto model = loaded.load();
        const Model::Prediction prediction = Loaded(setting).predict();
        const Placement& placement = model->placement();
        const uint64_t host = placement.weight_bytes(WeightPlace::host);
        uint64_t kv = 0, all_kv = 0;
        for (const Placement::Block& block : placement.blocks) {
            all_kv += block.kv;
            kv += block.place() == WeightPlace::host ? 0 : block.kv;
        }
        uint64_t all = 0;
        for (size_t place = 0; place < kWeightPlaces; ++place) {
            all += placement.weight_bytes(static_cast<WeightPlace>(place));
        }
        Needs needs;
        needs.on_device = all - host + kv + prediction.needs.plans(kDevice);
        needs.counted = placement.weight_bytes(WeightPlace::exclusive) + all_kv + prediction.needs.plans(kDevice) +
                        prediction.needs.plans(kHost);
        return needs;
    };
    int with_room = 0;
    for (const Setting& setting : settings()) {
        const Placement placement = Loaded(setting).predict().placement;
        const std::string devices = layout(placement);
        const auto layers = static_cast<uint32_t>(std::count(devices.begin(), devices.end(), 'd'));
        const auto fits = [&](uint32_t count) {
            const Needs needs = needs_of(setting, count);
            const uint64_t budget = std::min(setting.budget ? setting.budget : ~uint64_t{0}, setting.device_memory);
            const uint64_t overhead = std::min(uint64_t{64} << 20, budget / 16);
            if (needs.on_device + overhead > budget) return false;
            return setting.budget == 0 || needs.counted + overhead <= setting.budget;
        };
        if (layers == 0 || !fits(layers)) continue;  // the pages of all layers fit with no placement
        ++with_room;
        // Where the sums fit, only what heaps round can have stood against it.
        if (layers <= PlacedModel::kBlocks && fits(layers + 1)) {
            Setting more = setting;
            more.device_layers = layers + 1;
            more.rules = setting.unified ? "mapped" : "private";
            EXPECT_THROW(Loaded(more).load(), OutOfMemory) << devices << " with " << setting.budget;
        }
    }
    EXPECT_GT(with_room, 50);
}

TEST(AutomaticPlacement, NothingIsCompiledTwiceWhereWeightsAreNotPlacedByTheBudget) {
    for (const char* rules : {"mapped", "private", "blk.0=cpu"}) {
        Setting setting;
        setting.rules = rules;
        setting.budget = 64 * kSmall;
        Loaded loaded(setting);
        const auto model = loaded.load();
        EXPECT_EQ(loaded.device->compiled + (loaded.host ? loaded.host->compiled : 0),
                  static_cast<int>(model->placement().stages.size()));
    }
    Loaded loaded(Setting{});
    loaded.load();
    EXPECT_EQ(loaded.device->compiled, 2) << "all of it fits: one trial";
    EXPECT_EQ(loaded.hosts, 0);
}

TEST(AutomaticPlacement, ADeviceWithoutMemoryForThePlansGetsNothing) {
    Setting setting;
    setting.budget = 64 * kSmall;
    Loaded loaded(setting);
    loaded.device->refuse_compile = true;
    const auto model = loaded.load();
    EXPECT_EQ(layout(model->placement()), "hhhhh");
    EXPECT_EQ(model->device().backend, "cpu");
}

}  // namespace
}  // namespace metallic::testing
