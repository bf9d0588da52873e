#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>

#include "backend/backend.h"
#include "bindings/bindings.h"
#include "bindings/placement_dict.h"
#include "core/error.h"
#include "runtime/model.h"

namespace nb = nanobind;

namespace metallic {
namespace {

nb::object block_number(uint32_t block) {
    return block == kNoBlock ? nb::none() : nb::object(nb::int_(block));
}

// What a model gets on a device of this machine; see Model::place.
nb::dict predict_placement(Program program, const std::string& device, const std::string& weights,
                           std::optional<uint32_t> gpu_layers, uint32_t context, const std::string& kv_type,
                           uint32_t batch_tokens, uint64_t memory_budget) {
    ModelOptions options;
    options.placement = PlacementRules::parse(weights);
    if (gpu_layers) options.placement.set_device_layers(*gpu_layers);
    options.kv_types = KvTypes::parse(kv_type);
    options.context_length = context;
    options.batch_tokens = batch_tokens;
    options.memory_budget = memory_budget;
    options.host = [] { return nullptr; };  // there is one; none is needed here
    const std::vector<DeviceInfo> devices = list_devices();
    const auto chosen = std::find_if(devices.begin(), devices.end(), [&](const DeviceInfo& info) {
        return device == "auto" || info.backend == device;
    });
    if (chosen == devices.end()) throw RequestError("there is no device '" + device + "' here");
    const auto host = std::find_if(devices.begin(), devices.end(), [](const DeviceInfo& info) { return info.is_host; });
    const Placement placement = [&] {
        const nb::gil_scoped_release release;
        return Model::place(program, *chosen, options);
    }();
    return placement_dict(placement, [&](const Placement::Stage& stage) {
        return stage.device == kHost ? host->backend : chosen->backend;
    });
}

}  // namespace

nb::dict placement_dict(const Placement& placement, const std::function<std::string(const Placement::Stage&)>& device) {
    nb::list blocks, stages, unmatched;
    for (const Placement::Block& block : placement.blocks) {
        nb::dict weights;
        for (size_t place = 0; place < kWeightPlaces; ++place) {
            if (block.weights[place] == 0) continue;
            const std::string_view name = place_name(static_cast<WeightPlace>(place));
            weights[nb::str(name.data(), name.size())] = block.weights[place];
        }
        nb::dict entry;
        entry["block"] = block_number(block.block);
        entry["place"] = std::string(place_name(block.place()));
        entry["weights"] = weights;
        entry["kv"] = block.kv;
        blocks.append(entry);
    }
    for (const Placement::Stage& stage : placement.stages) {
        stages.append(nb::make_tuple(device(stage), block_number(stage.first_block), block_number(stage.last_block)));
    }
    for (const std::string& rule : placement.unmatched) unmatched.append(rule);
    nb::dict result;
    result["automatic"] = placement.automatic;
    result["budget"] = placement.budget;
    result["reserved"] = placement.reserved;
    result["context"] = placement.context;
    result["activations"] = placement.activations;
    result["blocks"] = blocks;
    result["stages"] = stages;
    result["unmatched"] = unmatched;
    return result;
}

void bind_placement(nb::module_& m) {
    m.def("predict_placement", &predict_placement, nb::arg("program"), nb::arg("device"), nb::arg("weights"),
          nb::arg("gpu_layers"), nb::arg("context"), nb::arg("kv_type"), nb::arg("batch_tokens"),
          nb::arg("memory_budget"),
          nb::sig("def predict_placement(program: Program, device: str, weights: str, gpu_layers: int | None, context: "
                  "int, kv_type: str, batch_tokens: int, memory_budget: int) -> dict[str, object]"),
          "Where the weights of a model of this program would be; see Model.placement.");
    m.def(
        "check_placement_rules", [](const std::string& weights) { PlacementRules::parse(weights); }, nb::arg("weights"),
        "Raises RequestError for rules that cannot be read, saying what may be written.");
}

}  // namespace metallic
