#pragma once

#include <cstdint>
#include <span>

#include "core/selection.h"

namespace metallic::cpu {

// The candidates of one row of logits, which the edits change; `out` may be longer than the selection's k. Relies on
// what check_selections checks.
void select_candidates(std::span<float> logits, const Selection& selection, std::span<Candidate> out) noexcept;

}  // namespace metallic::cpu
