#pragma once

#include <memory>

#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/preparation.h"

namespace metallic::metal {

std::unique_ptr<Operation> prepare(const KvWriteStep& step, Preparation& preparation);

}  // namespace metallic::metal
