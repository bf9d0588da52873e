#include "runtime/events.h"
#include "runtime/memory.h"
#include "runtime/objects.h"

// Counters: time stamps, at the bounds of encoders, as Apple's own GPUs have them.

NSErrorDomain const MTLCounterErrorDomain = @"MTLCounterErrorDomain";
MTLCommonCounter const MTLCommonCounterTimestamp = @"GPUTimestamp";
MTLCommonCounterSet const MTLCommonCounterSetTimestamp = @"timestamp";

using metalsim::SampleBufferState;

namespace {
constexpr NSUInteger kMostSamples = 4096;  // 32 KB
}

@implementation MetalsimCounter
- (NSString*)name {
    return MTLCommonCounterTimestamp;
}
@end

@implementation MetalsimCounterSet
- (NSString*)name {
    return MTLCommonCounterSetTimestamp;
}
- (NSArray<id<MTLCounter>>*)counters {
    return [NSArray arrayWithObject:[[MetalsimCounter new] autorelease]];
}
@end

@implementation MetalsimCounterSampleBuffer
- (id<MTLDevice>)device {
    return metalsim::state<SampleBufferState>(self).device;
}
- (NSString*)label {
    return metalsim::state<SampleBufferState>(self).label.get();
}
- (NSUInteger)sampleCount {
    return metalsim::state<SampleBufferState>(self).samples->size();
}
- (NSData*)resolveCounterRange:(NSRange)range {
    const auto& samples = *metalsim::state<SampleBufferState>(self).samples;
    if (range.location > samples.size() || range.length > samples.size() - range.location) {
        metalsim::report_misuse("resolveCounterRange: beyond the buffer's end");
        return nil;
    }
    std::vector<MTLCounterResultTimestamp> results(range.length);
    for (NSUInteger i = 0; i < range.length; ++i) results[i].timestamp = samples[range.location + i].load();
    return [NSData dataWithBytes:results.data() length:results.size() * sizeof results[0]];
}
@end

namespace metalsim {

NSArray* make_counter_sets() {
    return [NSArray arrayWithObject:[[MetalsimCounterSet new] autorelease]];
}

id<MTLCounterSampleBuffer> make_sample_buffer(id<MTLDevice> device, MTLCounterSampleBufferDescriptor* descriptor,
                                              NSError** error) {
    if (error != nullptr) *error = nil;
    const char* wrong = nullptr;
    if (!state<DeviceState>(device).model.counter_sampling) wrong = "this device samples no counters";
    if ([descriptor counterSet] == nil) wrong = "counterSet is nil";
    if ([descriptor sampleCount] == 0 || [descriptor sampleCount] > kMostSamples) wrong = "sampleCount";
    if (wrong != nullptr) {
        if (error != nullptr) *error = make_error(MTLCounterErrorDomain, MTLCounterSampleBufferErrorInvalid, wrong);
        return nil;
    }
    MetalsimCounterSampleBuffer* buffer = [[MetalsimCounterSampleBuffer alloc] init];
    auto& made = attach<SampleBufferState>(buffer);
    made.device = device;
    made.samples = std::make_shared<std::vector<std::atomic<uint64_t>>>([descriptor sampleCount]);
    for (auto& sample : *made.samples) sample = MTLCounterErrorValue;
    made.label = Ref<NSString*>::adopt([[descriptor label] copy]);
    return buffer;
}

}  // namespace metalsim
