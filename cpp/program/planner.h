#pragma once

#include <cstdint>
#include <vector>

#include "program/program.h"

namespace metallic {

// Offsets in bytes of each value in one activation arena, from liveness: values that are never alive together share
// bytes. A value that no step touches has offset kUnplaced.
struct ArenaLayout {
    static constexpr uint64_t kUnplaced = ~uint64_t{0};
    std::vector<uint64_t> offsets;
    uint64_t bytes = 0;
};

// Rewrites a traced program into the form that backends run:
//  - logits, and every row-wise step that only leads to them, are computed for the requested rows alone;
//  - norm + linear, linears of one input, gate-up-activation, residual adds, and norm + RoPE + KV write are fused.
// The meaning of the program does not change. Throws Error when the program is malformed.
Program plan_program(const Program& traced);

ArenaLayout layout_arena(const Program& program, uint32_t max_tokens, uint32_t max_outputs);

}  // namespace metallic
