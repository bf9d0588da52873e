#include "runtime/placement.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "core/dtype.h"
#include "program/stages.h"

namespace metallic {
namespace {

// What a device needs beside weights, pages and the arena: staging, logits in flight, constants and scratch.
constexpr uint64_t kOverhead = uint64_t{64} << 20;

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

// Which weights of no block are read by matrix products, as an output is, and not by embedding look-ups alone.
std::vector<bool> output_weights(const Program& program) {
    std::vector<bool> found(program.weights.size(), false);
    for (const Step& step : program.steps) {
        if (std::holds_alternative<EmbeddingStep>(step.op)) continue;
        for_each_weight(step.op, [&](WeightId id) { found[id] = program.weights[id].block == kNoBlock; });
    }
    return found;
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

// As much as fits, from the output backwards, so that at most one crossing is needed.
void place_by_memory(const Program& program, const PlacementLimits& limits, Placement& placement) {
    const WeightPlace on_device = limits.unified_memory ? WeightPlace::mapped : WeightPlace::exclusive;
    std::fill(placement.weights.begin(), placement.weights.end(), on_device);
    placement.budget = limits.device_memory;
    if (limits.memory_budget) placement.budget = std::min(placement.budget, limits.memory_budget);
    placement.reserved = limits.activations + std::min(kOverhead, placement.budget / 16);
    if (limits.device_is_host) return;

    uint64_t room = placement.budget - std::min(placement.budget, placement.reserved);
    std::vector<Placement::Block> blocks = count_blocks(program, limits, placement.weights);
    const auto total = std::accumulate(blocks.begin(), blocks.end(), uint64_t{0},
                                       [](uint64_t sum, const Placement::Block& block) { return sum + block.total(); });
    if (total <= room) return;
    uint64_t output = 0;
    const std::vector<bool> is_output = output_weights(program);
    for (size_t id = 0; id < is_output.size(); ++id) output += is_output[id] ? bytes_of(program.weights[id]) : 0;
    const bool has_rest = !blocks.empty() && blocks.back().block == kNoBlock;
    size_t first = blocks.size() - (has_rest ? 1 : 0);
    if (output > room) {
        give_to_host(program, blocks, first + 1, placement.weights);
        return;
    }
    for (room -= output; first > 0 && blocks[first - 1].total() <= room; --first) room -= blocks[first - 1].total();
    give_to_host(program, blocks, first, placement.weights);
}

// Cuts the program into stages, and places what only the host reads on the host.
void assign(Program& program, Placement& placement) {
    std::vector<uint32_t> devices;
    devices.reserve(placement.weights.size());
    for (const WeightPlace place : placement.weights) devices.push_back(place == WeightPlace::host ? kHost : kDevice);
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
    if (placement.automatic) {
        place_by_memory(traced, limits, placement);
    } else if (rules.automatic() && !limits.unified_memory) {
        std::fill(placement.weights.begin(), placement.weights.end(), WeightPlace::exclusive);
    }
    rules.apply(traced, placement.weights);
    if (rules.device_layers()) place_by_count(traced, limits, *rules.device_layers(), placement.weights);
    if (limits.device_is_host) {
        std::replace(placement.weights.begin(), placement.weights.end(), WeightPlace::host, WeightPlace::mapped);
    }
    assign(traced, placement);
    placement.blocks = count_blocks(traced, limits, placement.weights);
    return placement;
}

}  // namespace metallic
