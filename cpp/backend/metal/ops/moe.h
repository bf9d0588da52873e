#pragma once

#include <memory>

#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/preparation.h"

// Routing and combination; the experts' products are in expert_matmul.h.
namespace metallic::metal {

std::unique_ptr<Operation> prepare(const RouteStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const CombineStep& step, Preparation& preparation);

}  // namespace metallic::metal
