#pragma once

#include "backend/cpu/ops/preparation.h"

// Mixtures of experts: routing, the experts' products and their weighted sum.
namespace metallic::cpu {

std::unique_ptr<Operation> prepare(const RouteStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const ExpertLinearStep& step, Preparation& preparation);
std::unique_ptr<Operation> prepare(const CombineStep& step, Preparation& preparation);

}  // namespace metallic::cpu
