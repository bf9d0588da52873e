#pragma once

#import <Metal/Metal.h>

#include "backend/backend.h"
#include "backend/metal/objc_ref.h"

namespace metallic::metal {

// The GPU that the system prefers, if it supports Metal 3; none otherwise.
Ref<id<MTLDevice>> find_device();

DeviceInfo describe(id<MTLDevice> device);

}  // namespace metallic::metal
