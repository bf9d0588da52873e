#pragma once

#include <memory>

#include "backend/backend.h"

namespace metallic::cpu {

// Facts of this machine with so many threads; 0: one per usable core.
DeviceInfo device_info(uint32_t threads = 0);

// The processor as a backend: programs run synchronously in submit, on the caller and `threads` - 1 workers, with
// results that do not depend on their number. 0 threads: one per usable core. Throws RequestError for more than 1024,
// DeviceError.
std::unique_ptr<Backend> create_backend(uint32_t threads);

}  // namespace metallic::cpu
