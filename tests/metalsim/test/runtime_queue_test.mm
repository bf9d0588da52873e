#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "runtime_support.h"

// Queues, command buffers, events, fences, order between encoders, counters.
namespace metalsim {
namespace {

using namespace std::chrono_literals;

class Queue : public RuntimeTest {
  protected:
    // A command buffer that adds 1 to each of `count` floats.
    id<MTLCommandBuffer> increment(id<MTLBuffer> of, NSUInteger count = 32) {
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        add(encoder, of, 1, count);
        [encoder endEncoding];
        return commands;
    }
};

TEST_F(Queue, CommandBuffersRunInTheOrderOfTheirCommits) {
    id<MTLBuffer> all = buffer(128);
    std::vector<id<MTLCommandBuffer>> committed;
    for (int i = 0; i < 20; ++i) {
        committed.push_back(increment(all));
        [committed.back() commit];
    }
    [committed.back() waitUntilCompleted];
    for (id<MTLCommandBuffer> commands : committed) expect_completed(commands);
    EXPECT_EQ(floats(all)[31], 20);
    expect_no_reports();
}

TEST_F(Queue, EnqueuedCommandBuffersKeepTheirPlace) {
    id<MTLBuffer> all = buffer(128);
    id<MTLCommandBuffer> first = [queue commandBuffer];
    [first enqueue];
    EXPECT_EQ([first status], MTLCommandBufferStatusEnqueued);
    id<MTLCommandBuffer> second = increment(all);
    [second commit];
    std::this_thread::sleep_for(20ms);
    EXPECT_LT([second status], MTLCommandBufferStatusScheduled);
    [first commit];
    [second waitUntilCompleted];
    EXPECT_EQ([first status], MTLCommandBufferStatusCompleted);
    EXPECT_LE([first GPUEndTime], [second GPUStartTime]);
}

TEST_F(Queue, HandlersRunOnAnotherThreadAndInTurn) {
    id<MTLCommandBuffer> commands = increment(buffer(128));
    std::vector<int> order;
    std::vector<int>* to = &order;
    std::atomic<bool> scheduled{false};
    std::atomic<bool>* was = &scheduled;
    const std::thread::id here = std::this_thread::get_id();
    [commands addCompletedHandler:^(id<MTLCommandBuffer> done) {
      EXPECT_NE(std::this_thread::get_id(), here);
      EXPECT_EQ([done status], MTLCommandBufferStatusCompleted);
      to->push_back(2);
    }];
    [commands addCompletedHandler:^(id<MTLCommandBuffer>) {
      to->push_back(3);
    }];
    [commands addScheduledHandler:^(id<MTLCommandBuffer>) {
      to->push_back(1);
      *was = true;
    }];
    [commands commit];
    [commands waitUntilScheduled];
    EXPECT_TRUE(scheduled);
    [commands waitUntilCompleted];
    EXPECT_EQ(order, (std::vector<int>{1, 2, 3}));
}

TEST_F(Queue, AHandlerThatBlocksDoesNotStopTheDevice) {
    std::atomic<bool> release{false};
    std::atomic<bool>* open = &release;
    id<MTLCommandBuffer> first = increment(buffer(128));
    [first addCompletedHandler:^(id<MTLCommandBuffer>) {
      while (!*open) std::this_thread::yield();
    }];
    id<MTLSharedEvent> event = own([device newSharedEvent]);
    id<MTLCommandBuffer> second = [queue commandBuffer];
    [second encodeSignalEvent:event value:1];
    [first commit];
    [second commit];
    EXPECT_TRUE([event waitUntilSignaledValue:1 timeoutMS:5000]);
    release = true;
    [first waitUntilCompleted];
    [second waitUntilCompleted];
}

TEST_F(Queue, WaitingInAHandlerForItselfIsReported) {
    id<MTLCommandBuffer> commands = increment(buffer(128));
    [commands addCompletedHandler:^(id<MTLCommandBuffer> self) {
      [self waitUntilCompleted];
    }];
    finish(commands);
    expect_report(Problem::api, "in a completion handler of the same command buffer");
}

TEST_F(Queue, TimesAreOfOneClock) {
    id<MTLCommandBuffer> commands = increment(buffer(128));
    EXPECT_EQ([commands GPUEndTime], 0);
    MTLTimestamp before = 0, after = 0, same = 0;
    [device sampleTimestamps:&before gpuTimestamp:&same];
    EXPECT_EQ(before, same);
    finish(commands);
    [device sampleTimestamps:&after gpuTimestamp:&same];
    EXPECT_LE(static_cast<double>(before) * 1e-9, [commands kernelStartTime]);
    EXPECT_LE([commands kernelStartTime], [commands kernelEndTime]);
    EXPECT_LT([commands GPUStartTime], [commands GPUEndTime]);
    EXPECT_LE([commands GPUEndTime], static_cast<double>(after) * 1e-9);
}

TEST_F(Queue, NoMoreCommandBuffersThanTheQueueHolds) {
    use({.stall_milliseconds = 50});
    id<MTLCommandQueue> small = own([device newCommandQueueWithMaxCommandBufferCount:2]);
    @autoreleasepool {
        id<MTLCommandBuffer> first = [small commandBuffer];
        id<MTLCommandBuffer> second = [small commandBuffer];
        EXPECT_TRUE([small commandBuffer] == nil);
        expect_report(Problem::api, "none of the queue's 2 command buffers completed");
        finish(first);
        EXPECT_TRUE([small commandBuffer] != nil);
        finish(second);
    }
    // What is thrown away without being committed gives its place back too.
    EXPECT_TRUE([small commandBuffer] != nil && [small commandBuffer] != nil);
}

TEST_F(Queue, AFullQueueMakesItsUserWait) {
    id<MTLCommandQueue> small = own([device newCommandQueueWithMaxCommandBufferCount:1]);
    id<MTLSharedEvent> event = own([device newSharedEvent]);
    id<MTLCommandBuffer> first = [small commandBuffer];
    [first encodeWaitForEvent:event value:1];
    [first commit];
    std::thread later([&] {
        std::this_thread::sleep_for(30ms);
        event.signaledValue = 1;
    });
    EXPECT_TRUE([small commandBuffer] != nil);  // once the first has completed
    EXPECT_EQ([event signaledValue], 1u);
    later.join();
    expect_no_reports();
}

TEST_F(Queue, CommandBuffersKeepTheirBuffers) {
    id<MTLSharedEvent> event = own([device newSharedEvent]);
    const uint64_t before = statistics().buffers_alive;
    id<MTLCommandBuffer> commands = nil;
    @autoreleasepool {
        commands = [[queue commandBuffer] retain];
        EXPECT_TRUE([commands retainedReferences]);
        [commands encodeWaitForEvent:event value:1];
        id<MTLBuffer> brief = [device newBufferWithLength:128 options:0];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        add(encoder, brief, 1, 32);
        [encoder endEncoding];
        [commands commit];
        [brief release];
    }
    EXPECT_EQ(statistics().buffers_alive, before + 1);
    event.signaledValue = 1;
    [commands waitUntilCompleted];
    expect_completed(commands);
    [commands release];
    EXPECT_EQ(statistics().buffers_alive, before);
    expect_no_reports();
}

TEST_F(Queue, UnretainedBuffersThatGoAreReported) {
    id<MTLSharedEvent> event = own([device newSharedEvent]);
    id<MTLCommandBuffer> commands = [queue commandBufferWithUnretainedReferences];
    EXPECT_FALSE([commands retainedReferences]);
    [commands encodeWaitForEvent:event value:1];
    id<MTLBuffer> brief = [device newBufferWithLength:128 options:0];
    brief.label = @"brief";
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    add(encoder, brief, 1, 32);
    [encoder endEncoding];
    [brief release];
    expect_report(Problem::use_after_release, "brief");
    event.signaledValue = 1;
    finish(commands);
    expect_reported(commands, Problem::use_after_release, "brief");
    // A buffer that stays is fine.
    id<MTLBuffer> stays = buffer(128);
    commands = [queue commandBufferWithUnretainedReferences];
    encoder = [commands computeCommandEncoder];
    add(encoder, stays, 1, 32);
    [encoder endEncoding];
    finish(commands);
    expect_completed(commands);
    expect_no_reports();
}

TEST_F(Queue, EventsOrderQueues) {
    id<MTLCommandQueue> other = own([device newCommandQueue]);
    id<MTLEvent> event = own([device newEvent]);
    id<MTLBuffer> all = buffer(128);
    id<MTLCommandBuffer> second = [other commandBuffer];
    [second encodeWaitForEvent:event value:1];
    id<MTLComputeCommandEncoder> encoder = [second computeCommandEncoder];
    add(encoder, all, 1, 32);
    [encoder endEncoding];
    [second commit];
    id<MTLCommandBuffer> first = increment(all);
    [first encodeSignalEvent:event value:1];
    [first commit];
    [second waitUntilCompleted];
    expect_completed(second);
    EXPECT_GE([second GPUEndTime], [first GPUStartTime]);
    EXPECT_EQ(floats(all)[0], 2);
}

TEST_F(Queue, AnEventThatNeverComesIsATimeout) {
    use({.stall_milliseconds = 30});
    id<MTLEvent> event = own([device newEvent]);
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    [commands encodeWaitForEvent:event value:7];
    finish(commands);
    EXPECT_EQ([commands status], MTLCommandBufferStatusError);
    EXPECT_EQ([[commands error] code], NSInteger{MTLCommandBufferErrorTimeout});
    EXPECT_NE(error_text(commands).find("value 7; it is 0"), std::string::npos);
}

TEST_F(Queue, SharedEventsNotifyTheirListeners) {
    id<MTLSharedEvent> event = own([device newSharedEvent]);
    MTLSharedEventListener* listener = own([[MTLSharedEventListener alloc] init]);
    std::atomic<uint64_t> told{0};
    std::atomic<uint64_t>* to = &told;
    [event notifyListener:listener
                  atValue:3
                    block:^(id<MTLSharedEvent>, uint64_t value) {
                      *to = value;
                    }];
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    [commands encodeSignalEvent:event value:2];
    [commands encodeSignalEvent:event value:5];
    finish(commands);
    EXPECT_FALSE([event waitUntilSignaledValue:6 timeoutMS:1]);
    EXPECT_EQ([event signaledValue], 5u);
    for (int i = 0; i < 1000 && told == 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(told, 5u);
}

// Two encoders on the same bytes of untracked memory: only a fence, an event, or the host orders them.
class Order : public Queue {
  protected:
    void SetUp() override {
        Queue::SetUp();
        set_mode(Mode::checked);
        memory_ = heap(4096);
        values = own([memory_ newBufferWithLength:128 options:MTLResourceStorageModeShared offset:0]);
        values.label = @"values";
        std::memset([values contents], 0, 128);
        fence = own([device newFence]);
    }
    enum class By { nothing, fence, event };
    id<MTLCommandBuffer> two_encoders(id<MTLBuffer> on, By by) {
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        add(encoder, on, 1, 32);
        if (by == By::fence) [encoder updateFence:fence];
        [encoder endEncoding];
        if (by == By::event) {
            id<MTLEvent> event = own([device newEvent]);
            [commands encodeSignalEvent:event value:1];
            [commands encodeWaitForEvent:event value:1];
        }
        encoder = [commands computeCommandEncoder];
        if (by == By::fence) [encoder waitForFence:fence];
        add(encoder, on, 1, 32);
        [encoder endEncoding];
        finish(commands);
        return commands;
    }
    id<MTLBuffer> values = nil;
    id<MTLFence> fence = nil;

  private:
    id<MTLHeap> memory_ = nil;
};

TEST_F(Order, EncodersOnUntrackedMemoryNeedAFence) {
    expect_reported(two_encoders(values, By::nothing), Problem::dispatch_hazard, "values");
    expect_completed(two_encoders(values, By::fence));
    expect_completed(two_encoders(values, By::event));
    expect_no_reports();
}

TEST_F(Order, EncodersOnTrackedMemoryNeedNone) {
    expect_completed(two_encoders(buffer(128), By::nothing));
    expect_no_reports();
}

TEST_F(Order, CommandBuffersOnUntrackedMemoryNeedTheHostOrAFence) {
    id<MTLCommandBuffer> first = increment(values);
    finish(first);
    id<MTLCommandBuffer> second = increment(values);  // the host has seen the first complete
    finish(second);
    expect_completed(second);
    expect_no_reports();
    first = increment(values);
    second = increment(values);
    [first commit];
    [second commit];
    [second waitUntilCompleted];
    expect_reported(second, Problem::dispatch_hazard, "values");
}

TEST_F(Order, DispatchesOfAConcurrentEncoderNeedABarrier) {
    const auto run = [&](MTLDispatchType type, int barrier) {
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoderWithDispatchType:type];
        EXPECT_EQ([encoder dispatchType], type);
        add(encoder, values, 1, 32);
        if (barrier == 1) [encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
        const id<MTLResource> resources[] = {values};
        if (barrier == 2) [encoder memoryBarrierWithResources:resources count:1];
        add(encoder, values, 1, 32);
        [encoder endEncoding];
        finish(commands);
        return commands;
    };
    expect_reported(run(MTLDispatchTypeConcurrent, 0), Problem::dispatch_hazard, "values");
    expect_completed(run(MTLDispatchTypeConcurrent, 1));
    expect_completed(run(MTLDispatchTypeConcurrent, 2));
    expect_completed(run(MTLDispatchTypeSerial, 0));
    expect_no_reports();
}

TEST_F(Order, BlitsAreAccessesToo) {
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    encoder.label = @"writer";
    add(encoder, values, 1, 32);
    [encoder endEncoding];
    id<MTLBlitCommandEncoder> blit = [commands blitCommandEncoder];
    [blit fillBuffer:values range:NSMakeRange(0, 128) value:0];
    [blit endEncoding];
    finish(commands);
    expect_reported(commands, Problem::dispatch_hazard, "values");
}

TEST_F(Queue, BlitsCopyAndFill) {
    id<MTLBuffer> from = buffer(256), to = buffer(256, MTLResourceStorageModePrivate), back = buffer(256);
    for (int i = 0; i < 64; ++i) floats(from)[i] = static_cast<float>(i);
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLBlitCommandEncoder> blit = [commands blitCommandEncoder];
    [blit copyFromBuffer:from sourceOffset:0 toBuffer:to destinationOffset:0 size:256];
    [blit fillBuffer:to range:NSMakeRange(8, 4) value:0];
    [blit copyFromBuffer:to sourceOffset:4 toBuffer:back destinationOffset:0 size:16];
    [blit endEncoding];
    finish(commands);
    expect_completed(commands);
    EXPECT_EQ(floats(back)[0], 1);
    EXPECT_EQ(floats(back)[1], 0);
    EXPECT_EQ(floats(back)[2], 3);
    EXPECT_EQ(floats(back)[4], 0);
    expect_no_reports();
}

TEST_F(Queue, CountersSampleTheBoundsOfEncoders) {
    ASSERT_EQ([[device counterSets] count], 1u);
    EXPECT_TRUE([device supportsCounterSampling:MTLCounterSamplingPointAtStageBoundary]);
    EXPECT_FALSE([device supportsCounterSampling:MTLCounterSamplingPointAtDispatchBoundary]);
    MTLCounterSampleBufferDescriptor* descriptor = [[MTLCounterSampleBufferDescriptor new] autorelease];
    descriptor.counterSet = [[device counterSets] objectAtIndex:0];
    EXPECT_TRUE([[descriptor.counterSet name] isEqualToString:MTLCommonCounterSetTimestamp]);
    descriptor.sampleCount = 4;
    NSError* error = nil;
    id<MTLCounterSampleBuffer> samples = own([device newCounterSampleBufferWithDescriptor:descriptor error:&error]);
    ASSERT_TRUE(samples != nil) << text([error localizedDescription]);
    MTLComputePassDescriptor* pass = [MTLComputePassDescriptor computePassDescriptor];
    pass.dispatchType = MTLDispatchTypeConcurrent;
    MTLComputePassSampleBufferAttachmentDescriptor* attachment =
        [pass.sampleBufferAttachments objectAtIndexedSubscript:0];
    attachment.sampleBuffer = samples;
    attachment.startOfEncoderSampleIndex = 1;
    attachment.endOfEncoderSampleIndex = 2;
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoderWithDescriptor:pass];
    EXPECT_EQ([encoder dispatchType], MTLDispatchTypeConcurrent);
    add(encoder, buffer(128), 1, 32);
    [encoder endEncoding];
    id<MTLBuffer> resolved = buffer(32);
    id<MTLBlitCommandEncoder> blit = [commands blitCommandEncoder];
    [blit resolveCounters:samples inRange:NSMakeRange(0, 4) destinationBuffer:resolved destinationOffset:0];
    [blit endEncoding];
    finish(commands);
    expect_completed(commands);
    NSData* data = [samples resolveCounterRange:NSMakeRange(0, 4)];
    ASSERT_EQ([data length], 32u);
    MTLCounterResultTimestamp stamps[4];
    std::memcpy(stamps, [data bytes], sizeof stamps);
    EXPECT_EQ(stamps[0].timestamp, MTLCounterErrorValue);
    EXPECT_LT(stamps[1].timestamp, stamps[2].timestamp);
    EXPECT_GE(static_cast<double>(stamps[1].timestamp) * 1e-9, [commands GPUStartTime] - 1e-6);
    EXPECT_EQ(std::memcmp([resolved contents], stamps, sizeof stamps), 0);
    EXPECT_TRUE([samples resolveCounterRange:NSMakeRange(3, 2)] == nil);
    expect_report(Problem::api, "beyond the buffer's end");
}

TEST_F(Queue, NothingIsLeftOver) {
    pipeline("add");
    const uint64_t before = statistics().objects_alive;
    @autoreleasepool {
        id<MTLBuffer> brief = [device newBufferWithLength:128 options:0];
        finish(increment(brief));
        [brief release];
    }
    // The queue's thread lets go of the last command buffer after it was announced.
    for (int i = 0; i < 1000 && statistics().objects_alive > before; ++i) std::this_thread::sleep_for(1ms);
    // increment() asked for another pipeline, which the test keeps.
    EXPECT_EQ(statistics().objects_alive, before + 1);
}

TEST_F(Queue, ThreadsMayEncodeAtTheSameTime) {
    id<MTLComputePipelineState> shared = pipeline("add");
    id<MTLBuffer> all = buffer(4 * 128);
    std::vector<std::thread> threads;
    for (NSUInteger t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 25; ++i) {
                @autoreleasepool {
                    id<MTLCommandBuffer> commands = [queue commandBuffer];
                    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
                    const float one = 1;
                    [encoder setComputePipelineState:shared];
                    [encoder setBuffer:all offset:t * 128 atIndex:0];
                    [encoder setBytes:&one length:4 atIndex:1];
                    [encoder dispatchThreads:MTLSizeMake(32, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
                    [encoder endEncoding];
                    [commands commit];
                    if (i % 5 == 0) [commands waitUntilCompleted];
                }
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    finish([queue commandBuffer]);
    for (int i = 0; i < 128; ++i) EXPECT_EQ(floats(all)[i], 25);
    expect_no_reports();
}

}  // namespace
}  // namespace metalsim
