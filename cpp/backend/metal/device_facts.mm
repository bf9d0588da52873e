#include "backend/metal/device_facts.h"

#include "backend/metal/errors.h"

namespace metallic::metal {
namespace {

// The newest of Apple's GPU families that the device belongs to; 0: it is no Apple GPU. Families have ascending values.
int apple_family(id<MTLDevice> device) {
    constexpr int kFirst = 1, kLast = 16;
    int newest = 0;
    for (int n = kFirst; n <= kLast; ++n) {
        if ([device supportsFamily:static_cast<MTLGPUFamily>(MTLGPUFamilyApple1 + (n - kFirst))]) newest = n;
    }
    return newest;
}

}  // namespace

Ref<id<MTLDevice>> find_device() {
    const AutoreleasePool pool;
    // There is no default device in a process without a window server.
    auto device = Ref<id<MTLDevice>>::adopt(MTLCreateSystemDefaultDevice());
    if (!device) {
        const auto all = Ref<NSArray<id<MTLDevice>>*>::adopt(MTLCopyAllDevices());
        if ([all.get() count]) device = Ref<id<MTLDevice>>::share([all.get() objectAtIndex:0]);
    }
    if (device && ![device.get() supportsFamily:MTLGPUFamilyMetal3]) return {};
    return device;
}

// Which family has what: Apple's Metal Feature Set Tables. SIMD-group matrices come with Apple7, bfloat with Apple6
// and, by the Metal Shading Language Specification, with Metal 3.1, which is macOS 14's.
DeviceInfo describe(id<MTLDevice> device) {
    const AutoreleasePool pool;
    const int family = apple_family(device);
    DeviceInfo info;
    info.backend = "metal";
    info.name = to_string([device name]);
    info.detail = (family ? "apple" + std::to_string(family) + " " : "") +
                  ([device supportsFamily:MTLGPUFamilyMac2] ? "mac2 " : "") + "metal3";
    info.unified_memory = [device hasUnifiedMemory];
    info.half_arithmetic = family > 0;
    if (__builtin_available(macOS 14.0, *)) info.bfloat16_arithmetic = family >= 6;
    info.matrix_units = family >= 7;
    info.selects_candidates = true;  // the logits need not be read back
    info.threads = 1;
    info.memory_bytes = [device recommendedMaxWorkingSetSize];
    info.max_buffer_bytes = [device maxBufferLength];
    return info;
}

}  // namespace metallic::metal
