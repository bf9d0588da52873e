#pragma once

#include <memory>
#include <optional>

#include "backend/backend.h"

namespace metallic::metal {

// Facts of this machine's GPU; none where there is no GPU that supports Metal 3.
std::optional<DeviceInfo> device_info();

// The GPU as a backend: programs run through one queue, up to three submissions of a plan in flight, in the order in
// which they were submitted. Throws DeviceError where there is none.
std::unique_ptr<Backend> create_backend();

}  // namespace metallic::metal
