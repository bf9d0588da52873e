#include "backend/metal/step_clock.h"

#include <algorithm>

namespace metallic::metal {
namespace {

id<MTLCounterSet> timestamps(id<MTLDevice> device) {
    NSArray<id<MTLCounterSet>>* sets = [device counterSets];
    for (NSUInteger i = 0; i < [sets count]; ++i) {
        id<MTLCounterSet> set = [sets objectAtIndex:i];
        if ([[set name] isEqualToString:MTLCommonCounterSetTimestamp]) return set;
    }
    return nil;
}

}  // namespace

bool StepClock::supported(id<MTLDevice> device) {
    const AutoreleasePool pool;
    return [device supportsCounterSampling:MTLCounterSamplingPointAtStageBoundary] && timestamps(device);
}

StepClock::StepClock(id<MTLDevice> device, uint32_t parts) : device_(device) {
    const AutoreleasePool pool;
    const auto descriptor =
        Ref<MTLCounterSampleBufferDescriptor*>::adopt([[MTLCounterSampleBufferDescriptor alloc] init]);
    [descriptor.get() setCounterSet:timestamps(device)];
    [descriptor.get() setLabel:@"steps"];
    [descriptor.get() setStorageMode:MTLStorageModeShared];
    [descriptor.get() setSampleCount:2 * std::min(parts, kMostParts)];
    NSError* error = nil;
    samples_ = Ref<id<MTLCounterSampleBuffer>>::adopt([device newCounterSampleBufferWithDescriptor:descriptor.get()
                                                                                             error:&error]);
    pass_ = Ref<MTLComputePassDescriptor*>::share([MTLComputePassDescriptor computePassDescriptor]);
    [pass_.get() setDispatchType:MTLDispatchTypeConcurrent];
    spans_.resize(parts);
}

StepClock::Moment StepClock::now() const {
    MTLTimestamp cpu = 0, gpu = 0;
    [device_ sampleTimestamps:&cpu gpuTimestamp:&gpu];
    return {now_ns(), gpu};
}

void StepClock::start() {
    start_ = now();
}

MTLComputePassDescriptor* StepClock::pass(uint32_t part) {
    MTLComputePassSampleBufferAttachmentDescriptor* attachment =
        [[pass_.get() sampleBufferAttachments] objectAtIndexedSubscript:0];
    [attachment setSampleBuffer:samples_.get()];
    [attachment setStartOfEncoderSampleIndex:2 * part];
    [attachment setEndOfEncoderSampleIndex:2 * part + 1];
    return pass_.get();
}

// The GPU's clock has a rate of its own: Apple's "Converting GPU timestamps into CPU time" interpolates between two
// moments at which both clocks were read.
std::span<const StepClock::Span> StepClock::read(uint32_t parts) {
    const AutoreleasePool pool;
    std::fill(spans_.begin(), spans_.end(), Span{});
    const Moment end = now();
    NSData* data = [samples_.get() resolveCounterRange:NSMakeRange(0, 2 * parts)];
    const auto* const times = static_cast<const MTLCounterResultTimestamp*>([data bytes]);
    const uint64_t count = [data length] / sizeof(MTLCounterResultTimestamp);
    const double rate = end.gpu > start_.gpu ? static_cast<double>(end.host_ns - start_.host_ns) /
                                                   static_cast<double>(end.gpu - start_.gpu)
                                             : 1.0;
    for (uint32_t i = 0; i < parts && 2 * i + 1 < count; ++i) {
        const uint64_t from = times[2 * i].timestamp, to = times[2 * i + 1].timestamp;
        if (from == MTLCounterErrorValue || to == MTLCounterErrorValue || to < from || from < start_.gpu) continue;
        spans_[i].start_ns = start_.host_ns + static_cast<uint64_t>(static_cast<double>(from - start_.gpu) * rate);
        spans_[i].duration_ns = static_cast<uint64_t>(static_cast<double>(to - from) * rate);
    }
    return std::span(spans_).first(parts);
}

}  // namespace metallic::metal
