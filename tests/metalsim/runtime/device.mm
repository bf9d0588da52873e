#include <objc/runtime.h>

#include <algorithm>
#include <cerrno>

#include "runtime/commands.h"
#include "runtime/events.h"
#include "runtime/library.h"
#include "runtime/memory.h"
#include "runtime/objects.h"

// The device.

using metalsim::DeviceState;
using metalsim::make_error;
using metalsim::set_error;

namespace {

// Everything that a device made holds on to it without counting: devices live as long as the process.
id<MTLDevice> current_device() {
    static std::mutex* const mutex = new std::mutex;
    static auto* const devices = new std::vector<MetalsimDevice*>;
    static uint64_t generation = 0;
    const std::lock_guard lock(*mutex);
    const uint64_t now = metalsim::device_generation();
    if (devices->empty() || generation != now || metalsim::state<DeviceState>(devices->back()).lost) {
        devices->push_back([[MetalsimDevice alloc] init]);
        metalsim::attach<DeviceState>(devices->back()).model = metalsim::device_model();
        generation = now;
    }
    return devices->back();
}

bool before_macos_15(id<MTLDevice> device, const char* method) {
    if (metalsim::state<DeviceState>(device).model.macos_major >= 15) return false;
    metalsim::report_misuse(std::string(method) + " is new in macOS 15");
    return true;
}

NSError* no_library(const char* why) {
    return make_error(MTLLibraryErrorDomain, MTLLibraryErrorUnsupported, why);
}

}  // namespace

id<MTLDevice> MTLCreateSystemDefaultDevice(void) {
    return [current_device() retain];
}

NSArray<id<MTLDevice>>* MTLCopyAllDevices(void) {
    id device = current_device();
    return [[NSArray alloc] initWithObjects:&device count:1];
}

@implementation MetalsimDevice
- (NSString*)name {
    return metalsim::string_of(metalsim::state<DeviceState>(self).model.name);
}
- (uint64_t)registryID {
    return 1;
}
- (MTLArchitecture*)architecture {
    return [[MTLArchitecture new] autorelease];
}
- (MTLSize)maxThreadsPerThreadgroup {
    return MTLSizeMake(1024, 1024, 1024);
}
- (BOOL)isLowPower {
    return NO;
}
- (BOOL)isHeadless {
    return NO;
}
- (BOOL)isRemovable {
    return NO;
}
- (BOOL)hasUnifiedMemory {
    return metalsim::state<DeviceState>(self).model.unified_memory;
}
- (uint64_t)recommendedMaxWorkingSetSize {
    return metalsim::state<DeviceState>(self).model.memory_bytes;
}
- (MTLReadWriteTextureTier)readWriteTextureSupport {
    return MTLReadWriteTextureTier2;
}
- (MTLArgumentBuffersTier)argumentBuffersSupport {
    // Tier 2 comes with Apple6: Metal Feature Set Tables.
    return metalsim::state<DeviceState>(self).model.apple_family >= 6 ? MTLArgumentBuffersTier2
                                                                      : MTLArgumentBuffersTier1;
}
- (NSUInteger)currentAllocatedSize {
    DeviceState& device = metalsim::state<DeviceState>(self);
    const std::lock_guard lock(device.mutex);
    return device.allocated;
}
- (NSUInteger)maxThreadgroupMemoryLength {
    return metalsim::state<DeviceState>(self).model.max_threadgroup_bytes;
}
- (NSUInteger)maxBufferLength {
    return metalsim::state<DeviceState>(self).model.max_buffer_bytes;
}
- (NSArray<id<MTLCounterSet>>*)counterSets {
    return metalsim::state<DeviceState>(self).model.counter_sampling ? metalsim::make_counter_sets() : nil;
}
- (BOOL)supportsFamily:(MTLGPUFamily)gpuFamily {
    const metalsim::DeviceModel& model = metalsim::state<DeviceState>(self).model;
    const auto family = static_cast<uint32_t>(gpuFamily);
    if (family >= MTLGPUFamilyApple1 && family <= MTLGPUFamilyApple10) return family - 1000 <= model.apple_family;
    // Macs with Apple's GPUs (Apple7 and newer) also support Mac2.
    if (family == MTLGPUFamilyMac1 || family == MTLGPUFamilyMac2) return model.apple_family >= 7;
    if (family >= MTLGPUFamilyCommon1 && family <= MTLGPUFamilyCommon3) return YES;
    return gpuFamily == MTLGPUFamilyMetal3 && model.metal3;
}
- (MTLSizeAndAlign)heapBufferSizeAndAlignWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
    (void)options;
    return {metalsim::round_up(length, metalsim::kHeapAlignment), metalsim::kHeapAlignment};
}
- (id<MTLHeap>)newHeapWithDescriptor:(MTLHeapDescriptor*)descriptor {
    return metalsim::make_heap(self, descriptor);
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
    return metalsim::make_buffer(self, length, options);
}
- (id<MTLBuffer>)newBufferWithBytes:(const void*)pointer length:(NSUInteger)length options:(MTLResourceOptions)options {
    id<MTLBuffer> buffer = metalsim::make_buffer(self, length, options);
    if (buffer != nil)
        std::copy_n(static_cast<const std::byte*>(pointer), length,
                    metalsim::state<metalsim::BufferState>(buffer).base);
    return buffer;
}
- (id<MTLBuffer>)newBufferWithBytesNoCopy:(void*)pointer
                                   length:(NSUInteger)length
                                  options:(MTLResourceOptions)options
                              deallocator:(void (^)(void*, NSUInteger))deallocator {
    return metalsim::wrap_memory(self, pointer, length, options, deallocator);
}
- (id<MTLCommandQueue>)newCommandQueue {
    return metalsim::make_queue(self, 64);
}
- (id<MTLCommandQueue>)newCommandQueueWithMaxCommandBufferCount:(NSUInteger)maxCommandBufferCount {
    return metalsim::make_queue(self, maxCommandBufferCount);
}
- (id<MTLCommandQueue>)newCommandQueueWithDescriptor:(MTLCommandQueueDescriptor*)descriptor {
    if (before_macos_15(self, "newCommandQueueWithDescriptor:")) return nil;
    return metalsim::make_queue(self, [descriptor maxCommandBufferCount]);
}
- (id<MTLLibrary>)newDefaultLibrary {
    return nil;
}
- (id<MTLLibrary>)newLibraryWithURL:(NSURL*)url error:(NSError**)error {
    (void)url;
    set_error(error, no_library("metalsim runs MSL source, not what Apple's compiler makes of it"));
    return nil;
}
- (id<MTLLibrary>)newLibraryWithData:(dispatch_data_t)data error:(NSError**)error {
    (void)data;
    set_error(error, no_library("metalsim runs MSL source, not what Apple's compiler makes of it"));
    return nil;
}
- (id<MTLLibrary>)newLibraryWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error {
    return metalsim::make_library(self, source, options, error);
}
- (void)newLibraryWithSource:(NSString*)source
                     options:(MTLCompileOptions*)options
           completionHandler:(MTLNewLibraryCompletionHandler)completionHandler {
    MTLCompileOptions* copied = [[options copy] autorelease];
    dispatch_queue_t queue = dispatch_queue_create("compiler", nullptr);
    dispatch_async(queue, ^{
      NSError* error = nil;
      id<MTLLibrary> library = metalsim::make_library(self, source, copied, &error);
      completionHandler(library, error);
      [library release];
    });
    dispatch_release(queue);
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)computeFunction
                                                             error:(NSError**)error {
    MTLComputePipelineDescriptor* descriptor = [MTLComputePipelineDescriptor new];
    [descriptor setComputeFunction:computeFunction];
    id<MTLComputePipelineState> made = metalsim::make_pipeline(self, descriptor, MTLPipelineOptionNone, nullptr, error);
    [descriptor release];
    return made;
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor*)descriptor
                                                             options:(MTLPipelineOption)options
                                                          reflection:(MTLComputePipelineReflection**)reflection
                                                               error:(NSError**)error {
    return metalsim::make_pipeline(self, descriptor, options, reflection, error);
}
- (id<MTLBinaryArchive>)newBinaryArchiveWithDescriptor:(MTLBinaryArchiveDescriptor*)descriptor error:(NSError**)error {
    return metalsim::make_archive(self, [descriptor url], error);
}
- (id<MTLFence>)newFence {
    MetalsimFence* fence = [[MetalsimFence alloc] init];
    metalsim::attach<metalsim::FenceState>(fence).device = self;
    return fence;
}
- (id<MTLEvent>)newEvent {
    MetalsimEvent* event = [[MetalsimEvent alloc] init];
    metalsim::attach<metalsim::EventState>(event).device = self;
    return event;
}
- (id<MTLSharedEvent>)newSharedEvent {
    MetalsimSharedEvent* event = [[MetalsimSharedEvent alloc] init];
    metalsim::attach<metalsim::EventState>(event).device = self;
    return event;
}
- (id<MTLResidencySet>)newResidencySetWithDescriptor:(MTLResidencySetDescriptor*)desc error:(NSError**)error {
    set_error(error, nil);
    if (before_macos_15(self, "newResidencySetWithDescriptor:error:")) return nil;
    if (!metalsim::state<DeviceState>(self).model.residency_sets) {
        set_error(error, make_error(NSPOSIXErrorDomain, ENOTSUP, "this device has no residency sets"));
        return nil;
    }
    MetalsimResidencySet* set = [[MetalsimResidencySet alloc] init];
    auto& made = metalsim::attach<metalsim::ResidencyState>(set);
    made.device = self;
    made.label = metalsim::Ref<NSString*>::adopt([[desc label] copy]);
    return set;
}
- (BOOL)supportsCounterSampling:(MTLCounterSamplingPoint)samplingPoint {
    return metalsim::state<DeviceState>(self).model.counter_sampling &&
           samplingPoint == MTLCounterSamplingPointAtStageBoundary;
}
- (id<MTLCounterSampleBuffer>)newCounterSampleBufferWithDescriptor:(MTLCounterSampleBufferDescriptor*)descriptor
                                                             error:(NSError**)error {
    return metalsim::make_sample_buffer(self, descriptor, error);
}
- (void)sampleTimestamps:(MTLTimestamp*)cpuTimestamp gpuTimestamp:(MTLTimestamp*)gpuTimestamp {
    *cpuTimestamp = *gpuTimestamp = metalsim::nanoseconds_now();
}
- (BOOL)respondsToSelector:(SEL)aSelector {
    const bool newer = sel_isEqual(aSelector, @selector(newResidencySetWithDescriptor:error:)) ||
                       sel_isEqual(aSelector, @selector(newCommandQueueWithDescriptor:));
    if (newer && metalsim::state<DeviceState>(self).model.macos_major < 15) return NO;
    return [super respondsToSelector:aSelector];
}
@end
