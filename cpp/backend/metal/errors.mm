#include "backend/metal/errors.h"

#include "core/error.h"

namespace metallic::metal {
namespace {

bool of_command_buffer(NSError* error) {
    return [[error domain] isEqualToString:MTLCommandBufferErrorDomain];
}

// The encoder in which the error arose, with the debug groups that were open; empty when Metal does not say.
std::string faulted_encoder(NSError* error) {
    NSArray* infos = [[error userInfo] objectForKey:MTLCommandBufferEncoderInfoErrorKey];
    for (NSUInteger i = 0; i < [infos count]; ++i) {
        id<MTLCommandBufferEncoderInfo> info = [infos objectAtIndex:i];
        if ([info errorState] != MTLCommandEncoderErrorStateFaulted) continue;
        std::string path = to_string([info label]);
        NSArray<NSString*>* signposts = [info debugSignposts];
        if ([signposts count]) {
            const std::string last = to_string([signposts objectAtIndex:[signposts count] - 1]);
            path += (path.empty() || last.empty() ? "" : "/") + last;
        }
        return path;
    }
    return {};
}

}  // namespace

std::string to_string(NSString* text) {
    const char* bytes = [text UTF8String];
    return bytes ? bytes : "";
}

Ref<NSString*> to_ns_string(std::string_view text) {
    return Ref<NSString*>::adopt([[NSString alloc] initWithBytes:text.data()
                                                          length:text.size()
                                                        encoding:NSUTF8StringEncoding]);
}

std::string description(NSError* error) {
    if (!error) return "no reason was given";
    return to_string([error localizedDescription]);
}

std::string command_buffer_status(NSInteger code) {
    switch (code) {
        case MTLCommandBufferErrorInternal:
            return "internal";
        case MTLCommandBufferErrorTimeout:
            return "timeout";
        case MTLCommandBufferErrorPageFault:
            return "page fault";
        case MTLCommandBufferErrorAccessRevoked:
            return "access revoked";
        case MTLCommandBufferErrorNotPermitted:
            return "not permitted";
        case MTLCommandBufferErrorOutOfMemory:
            return "out of memory";
        case MTLCommandBufferErrorInvalidResource:
            return "invalid resource";
        case MTLCommandBufferErrorMemoryless:
            return "memoryless";
        case MTLCommandBufferErrorDeviceRemoved:
            return "device removed";
        case MTLCommandBufferErrorStackOverflow:
            return "stack overflow";
        default:
            return "error " + std::to_string(code);
    }
}

std::exception_ptr command_buffer_error(NSError* error, const std::string& scope, uint64_t needed, uint64_t available) {
    const bool known = error && of_command_buffer(error);
    const std::string faulted = error ? faulted_encoder(error) : std::string();
    const std::string& where = faulted.empty() ? scope : faulted;
    const std::string text = (where.empty() ? "" : where + ": ") + "the GPU reported: " + description(error);
    if (known && [error code] == MTLCommandBufferErrorOutOfMemory) {
        return std::make_exception_ptr(OutOfMemory(text, needed, available, where));
    }
    return std::make_exception_ptr(DeviceError(text, where, known ? command_buffer_status([error code]) : "error"));
}

bool is_device_lost(NSError* error) {
    return error && of_command_buffer(error) && [error code] == MTLCommandBufferErrorDeviceRemoved;
}

}  // namespace metallic::metal
