#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "backend/backend.h"
#include "bindings/bindings.h"
#include "bindings/model_options.h"
#include "bindings/placement_dict.h"
#include "core/error.h"
#include "runtime/model.h"

namespace nb = nanobind;

namespace metallic {
namespace {

nb::object block_number(uint32_t block) {
    return block == kNoBlock ? nb::none() : nb::object(nb::int_(block));
}

nb::dict group_dict(const StagedPlan::Group& group, const std::string& device) {
    nb::dict entry;
    entry["device"] = device;
    entry["window"] = group.group.window;
    entry["layers"] = group.group.layers;
    entry["keys"] = std::string(dtype_info(group.layout.types().keys).name);
    entry["values"] = std::string(dtype_info(group.layout.types().values).name);
    entry["page_bytes"] = group.layout.page_bytes;
    entry["page_stride"] = PageStore::stride_of(group.layout.page_bytes);
    return entry;
}

// See Model::predict.
nb::dict predict_model(std::shared_ptr<ModelFile> file, const Program& program, uint32_t context_length,
                       const std::string& device, uint32_t threads, const std::string& kv_type, uint32_t batch_tokens,
                       uint64_t memory_budget, const std::string& weights, const std::string& precision,
                       std::optional<uint32_t> gpu_layers, uint32_t placement_context) {
    const ModelOptions options = model_options(context_length, threads, kv_type, batch_tokens, memory_budget, weights,
                                               precision, gpu_layers, placement_context);
    const Model::Prediction prediction = [&] {
        const nb::gil_scoped_release release;
        const std::shared_ptr<Backend> backend = create_backend({device, threads});
        return Model::predict(file, backend, program, options);
    }();
    const auto name = [&](uint32_t on) {
        return (on == kHost ? prediction.host : prediction.device)->device().backend;
    };
    nb::list groups;
    for (const StagedPlan::Group& group : prediction.needs.groups) groups.append(group_dict(group, name(group.device)));
    nb::dict result;
    result["weights"] = prediction.needs.bytes(Tag::weights);
    result["activations"] = prediction.needs.bytes(Tag::activations);
    result["groups"] = groups;
    result["placement"] =
        placement_dict(prediction.placement, [&](const Placement::Stage& stage) { return name(stage.device); });
    result["refused"] = prediction.refused ? nb::object(nb::str(prediction.refused->what())) : nb::none();
    return result;
}

}  // namespace

ModelOptions model_options(uint32_t context_length, uint32_t threads, const std::string& kv_type, uint32_t batch_tokens,
                           uint64_t memory_budget, const std::string& weights, const std::string& precision,
                           std::optional<uint32_t> gpu_layers, uint32_t placement_context) {
    ModelOptions options;
    options.placement = PlacementRules::parse(weights);
    if (gpu_layers) options.placement.set_device_layers(*gpu_layers);
    options.placement_context = placement_context;
    options.host = [threads] { return create_host_backend(threads); };
    options.kv_types = KvTypes::parse(kv_type);
    options.context_length = context_length;
    options.batch_tokens = batch_tokens;
    options.memory_budget = memory_budget;
    options.precision = parse_precision(precision);
    return options;
}

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
    m.def("predict_model", &predict_model, nb::arg("file"), nb::arg("program"), nb::arg("context_length"),
          nb::arg("device"), nb::arg("threads"), nb::arg("kv_type"), nb::arg("batch_tokens"), nb::arg("memory_budget"),
          nb::arg("weights"), nb::arg("precision"), nb::arg("gpu_layers"), nb::arg("placement_context"),
          nb::sig("def predict_model(file: GgufModelFile, program: Program, context_length: int, device: str, threads: "
                  "int, kv_type: str, batch_tokens: int, memory_budget: int, weights: str, precision: str, gpu_layers: "
                  "int | None, placement_context: int) -> dict[str, object]"),
          "What a model with these arguments takes: \"weights\" and \"activations\" in bytes; \"groups\", the pages of "
          "each cache group; \"placement\", as Model.placement then has it; and \"refused\", what a load says for want "
          "of memory, or None. Compiles the program, with the weights where the file is mapped: none is read but the "
          "few that a plan converts.");
    m.def(
        "check_placement_rules", [](const std::string& weights) { PlacementRules::parse(weights); }, nb::arg("weights"),
        "Raises RequestError for rules that cannot be read, saying what may be written.");
}

}  // namespace metallic
