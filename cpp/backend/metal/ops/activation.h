#pragma once

#include <memory>

#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/preparation.h"

// Element-wise steps.
namespace metallic::metal {

std::unique_ptr<Operation> prepare(const AddStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const UnaryStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const GatedActivationStep& step, Preparation& preparation);

}  // namespace metallic::metal
