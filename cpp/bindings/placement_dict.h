#pragma once

#include <nanobind/nanobind.h>

#include <functional>
#include <string>

#include "runtime/placement.h"

namespace metallic {

// A placement as Python sees it; `device` names a stage's device.
nanobind::dict placement_dict(const Placement& placement,
                              const std::function<std::string(const Placement::Stage&)>& device);

}  // namespace metallic
