#include "runtime/placement.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "core/dtype.h"
#include "program/stages.h"

namespace metallic {
namespace {

// What a device needs beside weights, pages and what its plan took when it was compiled: staging, batches and logits in
// flight, what is left over in heaps.
constexpr uint64_t kOverhead = uint64_t{64} << 20;

uint64_t budget_of(const PlacementLimits& limits) noexcept {
    return limits.memory_budget ? std::min(limits.device_memory, limits.memory_budget) : limits.device_memory;
}

uint64_t bytes_of(const Weight& weight) noexcept {
    return row_bytes(weight.dtype, weight.cols) * weight.rows * weight.experts;
}

// Keys and values of one layer of a group.
uint64_t layer_bytes(const KvLayout& layout, const CacheGroup& group, const PlacementLimits& limits) {
    uint64_t tokens = limits.context;
    if (group.window) tokens = std::min<uint64_t>(tokens, uint64_t{group.window} + limits.batch_tokens + kPageTokens);
    const uint64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
    return pages * (layout.page_bytes / std::max(group.layers, 1u));
}

// What each block takes, weights by `places`; the one of no block last.
std::vector<Placement::Block> count_blocks(const Program& program, const PlacementLimits& limits,
                                           std::span<const WeightPlace> places) {
    std::map<uint32_t, Placement::Block> blocks;
    for (size_t id = 0; id < program.weights.size(); ++id) {
        const Weight& weight = program.weights[id];
        blocks[weight.block].weights[static_cast<size_t>(places[id])] += bytes_of(weight);
    }
    for (const Step& step : program.steps) {
        const auto* write = std::get_if<KvWriteStep>(&step.op);
        if (!write) continue;
        blocks[program.scopes.block(step.scope)].kv +=
            layer_bytes(limits.kv[write->group], program.groups[write->group], limits);
    }
    std::vector<Placement::Block> result;
    for (auto& [number, block] : blocks) {
        block.block = number;
        result.push_back(block);
    }
    return result;
}

// The layers up to `first_on_device` (an index into the blocks; their number stands for the output) go to the host.
void give_to_host(const Program& program, std::span<const Placement::Block> blocks, size_t first_on_device,
                  std::vector<WeightPlace>& places) {
    const size_t count = !blocks.empty() && blocks.back().block == kNoBlock ? blocks.size() - 1 : blocks.size();
    for (size_t id = 0; id < program.weights.size(); ++id) {
        const uint32_t block = program.weights[id].block;
        const bool before = block == kNoBlock ? first_on_device > count
                                              : first_on_device >= count || block < blocks[first_on_device].block;
        if (before) places[id] = WeightPlace::host;
    }
}

// As llama.cpp counts its --n-gpu-layers: blocks, then the output as one more layer (load_tensors in llama-model.cpp).
void place_by_count(const Program& program, const PlacementLimits& limits, uint32_t on_device,
                    std::vector<WeightPlace>& places) {
    const std::vector<Placement::Block> blocks = count_blocks(program, limits, places);
    const size_t layers = blocks.size() + (blocks.empty() || blocks.back().block != kNoBlock);
    give_to_host(program, blocks, layers - std::min<size_t>(on_device, layers), places);
}

// Cuts the program into stages, and places what only the host reads on the host.
void assign(Program& program, Placement& placement) {
    std::vector<uint32_t> devices;
    devices.reserve(placement.weights.size());
    for (const WeightPlace place : placement.weights) devices.push_back(place == WeightPlace::host ? kHost : kDevice);
    placement.stages.clear();
    for (const uint32_t device : assign_stages(program, devices)) placement.stages.push_back({device});

    std::vector<bool> on_device(program.weights.size(), false);
    for (const Step& step : program.steps) {
        Placement::Stage& stage = placement.stages[step.stage];
        if (stage.device == kDevice) for_each_weight(step.op, [&](WeightId id) { on_device[id] = true; });
        const uint32_t block = program.scopes.block(step.scope);
        if (block == kNoBlock) continue;
        if (stage.first_block == kNoBlock) stage.first_block = block;
        stage.last_block = block;
    }
    for (size_t id = 0; placement.on(kHost) && id < on_device.size(); ++id) {
        if (!on_device[id]) placement.weights[id] = WeightPlace::host;
    }
}

// What a placement takes, its plans aside.
struct Demand {
    uint64_t resident = 0;         // weights that the device sees
    uint64_t copies = 0;           // of these, those that the pool counts
    std::array<uint64_t, 2> kv{};  // by device
};

Demand demand_of(const Program& program, const PlacementLimits& limits, const Placement& placement) {
    Demand demand;
    for (size_t id = 0; id < program.weights.size(); ++id) {
        const WeightPlace place = placement.weights[id];
        if (place == WeightPlace::host) continue;
        demand.resident += bytes_of(program.weights[id]);
        if (place != WeightPlace::mapped) demand.copies += bytes_of(program.weights[id]);
    }
    for (const Step& step : program.steps) {
        const auto* write = std::get_if<KvWriteStep>(&step.op);
        if (!write) continue;
        demand.kv[placement.stages[step.stage].device] +=
            layer_bytes(limits.kv[write->group], program.groups[write->group], limits);
    }
    return demand;
}

// The placements that `auto` chooses from: everything on the device; without the first block, the first two, ...; the
// output alone; nothing.
class Cuts {
  public:
    Cuts(Program& program, const PlacementRules& rules, const PlacementLimits& limits, Placement& placement)
        : program_(program),
          rules_(rules),
          limits_(limits),
          placement_(placement),
          all_(program.weights.size(), limits.unified_memory ? WeightPlace::mapped : WeightPlace::exclusive),
          blocks_(count_blocks(program, limits, all_)),
          overhead_(std::min(kOverhead, placement.budget / 16)) {
        const bool has_rest = !blocks_.empty() && blocks_.back().block == kNoBlock;
        trials_.resize(blocks_.size() - (has_rest ? 1 : 0) + 2);
    }

    size_t count() const noexcept { return trials_.size(); }
    // Makes it the placement.
    void take(size_t cut) {
        placement_.weights = all_;
        if (cut > 0) give_to_host(program_, blocks_, cut, placement_.weights);
        rules_.apply(program_, placement_.weights);
        assign(program_, placement_);
    }
    // Whether what was taken fits: on the device, and, with the pages of the host's layers where `all_kv`, into the
    // user's budget. Compiles nothing where weights and pages alone do not.
    bool fits(size_t cut, bool all_kv) {
        const Demand demand = demand_of(program_, limits_, placement_);
        const uint64_t on_device = demand.resident + demand.kv[kDevice] + overhead_;
        if (on_device > placement_.budget) return false;
        const PlacementTrial& trial = try_out(cut);
        if (!trial.loads || trial.plans[kDevice] > placement_.budget - on_device) return false;
        const uint64_t counted = demand.copies + demand.kv[kDevice] + (all_kv ? demand.kv[kHost] : 0) +
                                 trial.plans[kDevice] + trial.plans[kHost] + overhead_;
        return limits_.memory_budget == 0 || counted <= limits_.memory_budget;
    }
    // Writes the numbers of what was taken down.
    void note(size_t cut) {
        const PlacementTrial& trial = try_out(cut);
        placement_.activations = trial.plans[kDevice] + trial.plans[kHost];
        placement_.reserved = trial.plans[placement_.on(kDevice) ? kDevice : kHost] + overhead_;
    }

  private:
    const PlacementTrial& try_out(size_t cut) {
        std::optional<PlacementTrial>& trial = trials_[cut];
        if (!trial) {
            trial =
                limits_.trial ? limits_.trial(program_, placement_) : PlacementTrial{{limits_.activations, 0}, true};
        }
        return *trial;
    }

    Program& program_;
    const PlacementRules& rules_;
    const PlacementLimits& limits_;
    Placement& placement_;
    const std::vector<WeightPlace> all_;
    const std::vector<Placement::Block> blocks_;
    const uint64_t overhead_;
    std::vector<std::optional<PlacementTrial>> trials_;
};

// As much as fits, from the output backwards, so that at most one crossing is needed: the first cut that leaves room
// for the pages of all layers, or, where none does, of the device's.
void place_by_memory(Program& program, const PlacementRules& rules, const PlacementLimits& limits,
                     Placement& placement) {
    placement.budget = budget_of(limits);
    Cuts cuts(program, rules, limits, placement);
    for (const bool all_kv : {true, false}) {
        for (size_t cut = 0; cut + 1 < cuts.count(); ++cut) {
            cuts.take(cut);
            if (cuts.fits(cut, all_kv)) return cuts.note(cut);
        }
    }
    cuts.take(cuts.count() - 1);
    cuts.note(cuts.count() - 1);
}

void place_by_rules(Program& program, const PlacementRules& rules, const PlacementLimits& limits,
                    Placement& placement) {
    if (placement.automatic) {
        placement.budget = budget_of(limits);
        placement.reserved = limits.activations + std::min(kOverhead, placement.budget / 16);
    }
    if (rules.automatic() && !limits.unified_memory) {
        std::fill(placement.weights.begin(), placement.weights.end(), WeightPlace::exclusive);
    }
    rules.apply(program, placement.weights);
    if (rules.device_layers()) place_by_count(program, limits, *rules.device_layers(), placement.weights);
    if (limits.device_is_host) {
        std::replace(placement.weights.begin(), placement.weights.end(), WeightPlace::host, WeightPlace::mapped);
    }
    assign(program, placement);
}

}  // namespace

uint64_t Placement::Block::total() const noexcept {
    return std::accumulate(weights.begin(), weights.end(), kv);
}

WeightPlace Placement::Block::place() const noexcept {
    return static_cast<WeightPlace>(std::max_element(weights.begin(), weights.end()) - weights.begin());
}

uint64_t Placement::weight_bytes(WeightPlace place) const noexcept {
    uint64_t sum = 0;
    for (const Block& block : blocks) sum += block.weights[static_cast<size_t>(place)];
    return sum;
}

bool Placement::on(uint32_t device) const noexcept {
    return std::any_of(stages.begin(), stages.end(), [&](const Stage& stage) { return stage.device == device; });
}

uint64_t Placement::kv_bytes() const noexcept {
    uint64_t sum = 0;
    for (const Block& block : blocks) sum += block.kv;
    return sum;
}

Placement place_weights(Program& traced, const PlacementRules& rules, const PlacementLimits& limits) {
    Placement placement;
    placement.weights.assign(traced.weights.size(), WeightPlace::mapped);
    placement.automatic = rules.automatic() && !rules.device_layers();
    placement.context = limits.context;
    placement.activations = limits.activations;
    placement.unmatched = rules.unmatched(traced);
    if (placement.automatic && !limits.device_is_host) {
        place_by_memory(traced, rules, limits, placement);
    } else {
        place_by_rules(traced, rules, limits, placement);
    }
    placement.blocks = count_blocks(traced, limits, placement.weights);
    return placement;
}

}  // namespace metallic
