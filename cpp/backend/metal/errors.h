#pragma once

#import <Metal/Metal.h>

#include <exception>
#include <string>
#include <string_view>

#include "backend/metal/objc_ref.h"

namespace metallic::metal {

std::string to_string(NSString* text);
Ref<NSString*> to_ns_string(std::string_view text);
std::string description(NSError* error);

// The name of an MTLCommandBufferError, as a DeviceError's status.
std::string command_buffer_status(NSInteger code);

// What a command buffer that failed is for the caller. `scope` is where it failed as far as the caller knows; an
// encoder that Metal says has faulted is added. `needed` is what the command buffer uses, `available` what the device
// would have.
std::exception_ptr command_buffer_error(NSError* error, const std::string& scope, uint64_t needed, uint64_t available);

// An error that says the device will not come back.
bool is_device_lost(NSError* error);

}  // namespace metallic::metal
