#pragma once

#include "backend/cpu/ops/preparation.h"

namespace metallic::cpu {

std::unique_ptr<Operation> prepare(const AttentionStep& step, Preparation& preparation);

}  // namespace metallic::cpu
