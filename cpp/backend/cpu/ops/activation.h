#pragma once

#include "backend/cpu/ops/preparation.h"

// Element-wise steps.
namespace metallic::cpu {

std::unique_ptr<Operation> prepare(const AddStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const UnaryStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const GatedActivationStep& step, Preparation& preparation);

}  // namespace metallic::cpu
