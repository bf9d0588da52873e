#include "program/program.h"

namespace metallic {

const char* step_name(const StepOp& op) noexcept {
    static constexpr const char* kNames[] = {"embedding",        "norm",    "linear",   "add",       "unary",
                                             "gated_activation", "rope",    "kv_write", "attention", "route",
                                             "expert_linear",    "combine", "select"};
    static_assert(std::size(kNames) == std::variant_size_v<StepOp>);
    return op.valueless_by_exception() ? "" : kNames[op.index()];
}

}  // namespace metallic
