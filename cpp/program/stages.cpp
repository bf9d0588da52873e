#include "program/stages.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "core/error.h"

namespace metallic {
namespace {

using Layer = std::pair<uint32_t, uint32_t>;  // group, layer

// The device that a step's own weights choose; kNone: none does.
uint32_t chosen_device(const StepOp& op, std::span<const uint32_t> devices) {
    uint32_t device = kNone;
    if (std::holds_alternative<AttentionStep>(op)) return device;
    for_each_weight(op, [&](WeightId id) { device = device == kNone ? devices[id] : std::max(device, devices[id]); });
    // Reading a few rows of a table is no work: it is not worth a crossing.
    if (std::holds_alternative<EmbeddingStep>(op) && device == 0) return kNone;
    return device;
}

// Gives steps that chose no device that of a neighbour.
void fill_devices(const Program& program, std::vector<uint32_t>& devices) {
    const auto block = [&](size_t i) { return program.scopes.block(program.steps[i].scope); };
    for (size_t i = 0; i < devices.size(); ++i) {
        if (devices[i] != kNone) continue;
        if (i > 0 && block(i - 1) == block(i)) {
            devices[i] = devices[i - 1];
            continue;
        }
        const auto next = std::find_if(devices.begin() + static_cast<std::ptrdiff_t>(i), devices.end(),
                                       [](uint32_t device) { return device != kNone; });
        devices[i] = next != devices.end() ? *next : i > 0 ? devices[i - 1] : 0;
    }
}

void keep_layers_together(const Program& program, std::vector<uint32_t>& devices) {
    std::map<Layer, uint32_t> writers;
    for (size_t i = 0; i < devices.size(); ++i) {
        const StepOp& op = program.steps[i].op;
        if (const auto* write = std::get_if<KvWriteStep>(&op)) writers[{write->group, write->layer}] = devices[i];
        if (const auto* read = std::get_if<AttentionStep>(&op)) {
            const auto found = writers.find({read->group, read->layer});
            if (found != writers.end()) devices[i] = found->second;
        }
    }
}

// The cache groups by device, and each layer's place in its device's group.
class Layers {
  public:
    Layers(const Program& program, std::span<const uint32_t> devices, std::vector<DeviceGroups>& out) {
        for (const Step& step : program.steps) {
            const auto* write = std::get_if<KvWriteStep>(&step.op);
            if (!write) continue;
            DeviceGroups& on = out[devices[step.stage]];
            const auto known = std::find(on.ids.begin(), on.ids.end(), write->group);
            const auto group = static_cast<uint32_t>(known - on.ids.begin());
            if (known == on.ids.end()) {
                on.ids.push_back(write->group);
                on.groups.push_back(program.groups[write->group]);
                on.groups.back().layers = 0;
            }
            places_[{write->group, write->layer}] = {group, on.groups[group].layers++};
        }
    }
    void translate(StepOp& op) const {
        if (auto* write = std::get_if<KvWriteStep>(&op)) std::tie(write->group, write->layer) = place(*write);
        if (auto* read = std::get_if<AttentionStep>(&op)) std::tie(read->group, read->layer) = place(*read);
    }

  private:
    Layer place(const auto& step) const {
        const auto found = places_.find({step.group, step.layer});
        if (found == places_.end()) throw Error("malformed program: attention to a layer that nothing writes");
        return found->second;
    }
    std::map<Layer, Layer> places_;
};

// The stages in which a value is written first and read last.
struct Life {
    uint32_t written = kNone;
    uint32_t read = 0;
};

std::vector<Life> lives(const Program& program) {
    std::vector<Life> all(program.values.size());
    for (const Step& step : program.steps) {
        for_each_write(step.op, [&](ValueId id) { all[id].written = std::min(all[id].written, step.stage); });
        for_each_read(step.op, [&](ValueId id) { all[id].read = std::max(all[id].read, step.stage); });
    }
    return all;
}

Stage empty_stage(const Program& program, uint32_t device, const std::vector<CacheGroup>& groups) {
    Stage stage;
    stage.device = device;
    stage.program.weights = program.weights;
    stage.program.values = program.values;
    stage.program.groups = groups;
    stage.program.scopes = program.scopes;
    return stage;
}

bool rotates(const StepOp& op) {
    const auto* write = std::get_if<KvWriteStep>(&op);
    return std::holds_alternative<RopeStep>(op) || (write && write->rope != kNone);
}

}  // namespace

std::vector<uint32_t> assign_stages(Program& traced, std::span<const uint32_t> devices) {
    std::vector<uint32_t> of_step;
    of_step.reserve(traced.steps.size());
    for (const Step& step : traced.steps) of_step.push_back(chosen_device(step.op, devices));
    fill_devices(traced, of_step);
    keep_layers_together(traced, of_step);
    std::vector<uint32_t> stages;
    for (size_t i = 0; i < of_step.size(); ++i) {
        if (stages.empty() || stages.back() != of_step[i]) stages.push_back(of_step[i]);
        traced.steps[i].stage = static_cast<uint32_t>(stages.size() - 1);
    }
    return stages;
}

StagedProgram split_stages(const Program& planned, std::span<const uint32_t> devices) {
    StagedProgram result;
    result.devices.resize(devices.empty() ? 0 : *std::max_element(devices.begin(), devices.end()) + 1);
    const Layers layers(planned, devices, result.devices);
    for (const uint32_t device : devices) {
        result.stages.push_back(empty_stage(planned, device, result.devices[device].groups));
    }
    for (Step step : planned.steps) {
        Program& program = result.stages.at(step.stage).program;
        layers.translate(step.op);
        if (program.ropes.empty() && rotates(step.op)) program.ropes = planned.ropes;
        program.steps.push_back(step);
    }
    const std::vector<Life> all = lives(planned);
    for (ValueId id = 0; id < all.size(); ++id) {
        if (all[id].written == kNone) continue;
        if (id == planned.logits) {
            result.stages[all[id].written].program.logits = id;
            if (all[id].read > all[id].written) throw UnsupportedModelError("logits that later steps read");
            continue;
        }
        for (uint32_t s = all[id].written; s < all[id].read; ++s) {
            result.stages[s].program.outputs.push_back(id);
            result.stages[s + 1].program.inputs.push_back(id);
        }
    }
    return result;
}

}  // namespace metallic
