#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/model.h"

namespace metallic {

// The options of a model as Python gives them. Throws RequestError for text that cannot be read.
ModelOptions model_options(uint32_t context_length, uint32_t threads, const std::string& kv_type, uint32_t batch_tokens,
                           uint64_t memory_budget, const std::string& weights, const std::string& precision,
                           std::optional<uint32_t> gpu_layers, uint32_t placement_context);

}  // namespace metallic
