#pragma once

#include "backend/cpu/ops/preparation.h"

namespace metallic::cpu {

std::unique_ptr<Operation> prepare(const SelectStep& step, Preparation& preparation);

}  // namespace metallic::cpu
