#include "runtime_support.h"

// Each misuse of encoders and command buffers, planted; and after it a command buffer that is fine.
namespace metalsim {
namespace {

class Misuse : public RuntimeTest {
  protected:
    void SetUp() override {
        RuntimeTest::SetUp();
        values = buffer(256);
        values.label = @"values";
        begin();
    }
    void begin() {
        commands = [queue commandBuffer];
        encoder = [commands computeCommandEncoder];
        encoder.label = @"misuse";
        [encoder setComputePipelineState:pipeline("add")];
        const float one = 1;
        [encoder setBuffer:values offset:0 atIndex:0];
        [encoder setBytes:&one length:4 atIndex:1];
    }
    void dispatch(NSUInteger threads = 32, NSUInteger group = 32) {
        [encoder dispatchThreads:MTLSizeMake(threads, 1, 1) threadsPerThreadgroup:MTLSizeMake(group, 1, 1)];
    }
    // Ends, runs, and sees the failure; then runs a good one.
    void expect_failure(Problem problem, const std::string& part) {
        [encoder endEncoding];
        finish(commands);
        expect_reported(commands, problem, part);
        const float before = floats(values)[0];
        begin();
        dispatch();
        [encoder endEncoding];
        finish(commands);
        expect_completed(commands);
        EXPECT_EQ(floats(values)[0], before + 1);
        expect_no_reports();
    }

    id<MTLBuffer> values = nil;
    id<MTLCommandBuffer> commands = nil;
    id<MTLComputeCommandEncoder> encoder = nil;
};

TEST_F(Misuse, NoPipeline) {
    [encoder endEncoding];
    encoder = [commands computeCommandEncoder];
    dispatch();
    expect_failure(Problem::api, "without a pipeline");
}

TEST_F(Misuse, BytesOverTheLimit) {
    const std::vector<char> bytes(4097);
    [encoder setBytes:bytes.data() length:4096 atIndex:2];
    [encoder setBytes:bytes.data() length:4097 atIndex:2];
    dispatch();
    expect_failure(Problem::limit, "setBytes:length:atIndex: of 4097 bytes");
    EXPECT_EQ(floats(values)[0], 1);  // the command buffer that failed did not run
}

TEST_F(Misuse, NoBytes) {
    [encoder setBytes:"" length:0 atIndex:2];
    expect_failure(Problem::limit, "of 0 bytes");
}

TEST_F(Misuse, IndexOutOfTheTable) {
    [encoder setBuffer:values offset:0 atIndex:30];
    [encoder setBuffer:values offset:0 atIndex:31];
    expect_failure(Problem::limit, "index 31 is not below 31");
}

TEST_F(Misuse, OffsetBeyondTheBuffer) {
    [encoder setBuffer:values offset:256 atIndex:0];
    expect_failure(Problem::out_of_bounds, "offset 256 is not within buffer \"values\" of 256 bytes");
}

TEST_F(Misuse, OffsetOfNoBuffer) {
    [encoder setBufferOffset:0 atIndex:5];
    expect_failure(Problem::api, "without a buffer at index 5");
}

TEST_F(Misuse, NewOffsetBeyondTheBuffer) {
    [encoder setBufferOffset:128 atIndex:0];
    [encoder setBufferOffset:256 atIndex:0];
    expect_failure(Problem::out_of_bounds, "offset 256 is not within buffer \"values\"");
}

TEST_F(Misuse, MisalignedOffset) {
    [encoder setBuffer:values offset:2 atIndex:0];
    dispatch(4, 4);
    expect_failure(Problem::misaligned, "argument a at index 0 needs an offset that is a multiple of 4, not 2");
}

TEST_F(Misuse, MissingBuffer) {
    [encoder setBuffer:nil offset:0 atIndex:0];
    dispatch();
    expect_failure(Problem::api, "argument a at index 0 is not bound");
}

TEST_F(Misuse, BytesForAWrittenArgument) {
    const float bytes[32] = {};
    [encoder setBytes:bytes length:sizeof bytes atIndex:0];
    dispatch();
    expect_failure(Problem::api, "is written by the kernel, but bound by setBytes");
}

TEST_F(Misuse, TooFewBytesForAReference) {
    [encoder setBytes:"ab" length:2 atIndex:1];
    dispatch();
    expect_failure(Problem::out_of_bounds, "argument b at index 1 needs 4 bytes, not 2");
}

TEST_F(Misuse, EmptyGrid) {
    dispatch(0, 32);
    expect_failure(Problem::limit, "a grid of 0x1x1");
}

TEST_F(Misuse, EmptyThreadgroup) {
    dispatch(32, 0);
    expect_failure(Problem::limit, "threadgroups of 0x1x1 threads");
}

TEST_F(Misuse, GridOverTheLimit) {
    [encoder dispatchThreadgroups:MTLSizeMake(uint64_t{1} << 32, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
    expect_failure(Problem::limit, "a grid of 4294967296x1x1");
}

TEST_F(Misuse, ThreadgroupOverTheLimit) {
    [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 33, 1)];
    expect_failure(Problem::limit, "32x33x1 threads are more than the pipeline's 1024");
}

TEST_F(Misuse, ThreadgroupOverThePipelinesOwnLimit) {
    MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
    descriptor.computeFunction = own([library() newFunctionWithName:@"add"]);
    descriptor.maxTotalThreadsPerThreadgroup = 64;
    descriptor.threadGroupSizeIsMultipleOfThreadExecutionWidth = YES;
    id<MTLComputePipelineState> small = own([device newComputePipelineStateWithDescriptor:descriptor
                                                                                  options:0
                                                                               reflection:nil
                                                                                    error:nil]);
    EXPECT_EQ([small maxTotalThreadsPerThreadgroup], 64u);
    EXPECT_EQ([small threadExecutionWidth], 32u);
    [encoder setComputePipelineState:small];
    dispatch(64, 64);
    dispatch(96, 96);
    expect_failure(Problem::limit, "are more than the pipeline's 64");
    [encoder endEncoding];
    begin();
    [encoder setComputePipelineState:small];
    dispatch(48, 48);
    expect_failure(Problem::limit, "no multiple of 32");
}

TEST_F(Misuse, ThreadgroupMemory) {
    [encoder setThreadgroupMemoryLength:24 atIndex:0];
    expect_failure(Problem::limit, "multiples of 16 up to 32768");
    begin();
    [encoder setThreadgroupMemoryLength:32784 atIndex:0];
    expect_failure(Problem::limit, "of 32784 bytes");
    begin();
    [encoder setComputePipelineState:pipeline("share")];
    dispatch();
    expect_failure(Problem::api, "threadgroup argument t at index 0 has no length");
}

TEST_F(Misuse, EncodingAfterTheEnd) {
    [encoder endEncoding];
    dispatch();
    finish(commands);
    expect_reported(commands, Problem::api, "dispatchThreads:threadsPerThreadgroup: after endEncoding");
    begin();
    [encoder endEncoding];
    [encoder endEncoding];
    finish(commands);
    expect_reported(commands, Problem::api, "endEncoding after endEncoding");
}

TEST_F(Misuse, TwoEncodersAtOnce) {
    EXPECT_TRUE([commands computeCommandEncoder] == nil);
    expect_failure(Problem::api, "an encoder was made while another is open");
}

TEST_F(Misuse, CommitWithAnOpenEncoder) {
    finish(commands);
    expect_reported(commands, Problem::api, "endEncoding is missing");
    [encoder endEncoding];
    take_reports();
}

TEST_F(Misuse, AnEncoderReleasedWithoutItsEnd) {
    id<MTLCommandBuffer> other = [queue commandBuffer];
    @autoreleasepool {
        [other computeCommandEncoder];
    }
    expect_report(Problem::api, "released without endEncoding");
    [encoder endEncoding];
}

TEST_F(Misuse, CommitTwice) {
    [encoder endEncoding];
    finish(commands);
    [commands commit];
    expect_report(Problem::api, "commit of a command buffer that was committed");
    EXPECT_TRUE([commands computeCommandEncoder] == nil);
    expect_report(Problem::api, "an encoder of a command buffer that was committed");
    [commands addCompletedHandler:^(id<MTLCommandBuffer>){
    }];
    expect_report(Problem::api, "addCompletedHandler: of a command buffer that was committed");
    [[queue commandBuffer] waitUntilCompleted];
    expect_report(Problem::api, "waitUntilCompleted before commit");
}

TEST_F(Misuse, EventsInsideAnEncoder) {
    [commands encodeSignalEvent:own([device newEvent]) value:1];
    expect_failure(Problem::api, "encodeSignalEvent:value: while an encoder is open");
}

TEST_F(Misuse, UnbalancedDebugGroups) {
    [encoder popDebugGroup];
    expect_failure(Problem::api, "popDebugGroup without pushDebugGroup");
    begin();
    [encoder pushDebugGroup:@"open"];
    expect_failure(Problem::api, "endEncoding with an open debug group");
}

TEST_F(Misuse, ReportsCarryTheScope) {
    [commands pushDebugGroup:@"forward"];
    [encoder pushDebugGroup:@"block.3"];
    dispatch(0, 32);
    [encoder popDebugGroup];
    [encoder endEncoding];
    [commands popDebugGroup];
    finish(commands);
    const std::vector<Report> reports = take_reports();
    ASSERT_EQ(reports.size(), 1u);
    EXPECT_EQ(reports[0].scope, "forward/misuse/block.3");
    EXPECT_EQ(reports[0].kernel, "add");
}

TEST_F(Misuse, CountersInsideAnEncoder) {
    MTLCounterSampleBufferDescriptor* descriptor = [[MTLCounterSampleBufferDescriptor new] autorelease];
    descriptor.counterSet = [[device counterSets] objectAtIndex:0];
    descriptor.sampleCount = 1;
    id<MTLCounterSampleBuffer> samples = own([device newCounterSampleBufferWithDescriptor:descriptor error:nil]);
    [encoder sampleCountersInBuffer:samples atSampleIndex:0 withBarrier:NO];
    expect_failure(Problem::api, "samples at the bounds of encoders only");
}

TEST_F(Misuse, BuffersOfAnotherDevice) {
    id<MTLBuffer> old = values;
    [encoder endEncoding];
    use({});
    values = buffer(256);
    begin();
    [encoder setBuffer:old offset:0 atIndex:0];
    expect_failure(Problem::api, "of another device");
}

TEST_F(Misuse, IndirectArguments) {
    id<MTLBuffer> sizes = buffer(16);
    static_cast<uint32_t*>([sizes contents])[1] = 2;
    static_cast<uint32_t*>([sizes contents])[2] = static_cast<uint32_t*>([sizes contents])[3] = 1;
    const MTLSize group = MTLSizeMake(16, 1, 1);
    [encoder dispatchThreadgroupsWithIndirectBuffer:sizes indirectBufferOffset:4 threadsPerThreadgroup:group];
    [encoder endEncoding];
    finish(commands);
    expect_completed(commands);
    EXPECT_EQ(floats(values)[31], 1);
    EXPECT_EQ(floats(values)[32], 0);
    begin();
    [encoder dispatchThreadgroupsWithIndirectBuffer:sizes indirectBufferOffset:8 threadsPerThreadgroup:group];
    expect_failure(Problem::out_of_bounds, "offset 8");
    begin();
    [encoder dispatchThreadgroupsWithIndirectBuffer:sizes indirectBufferOffset:2 threadsPerThreadgroup:group];
    expect_failure(Problem::misaligned, "offset 2");
}

class BlitMisuse : public Misuse {
  protected:
    void SetUp() override {
        Misuse::SetUp();
        [encoder endEncoding];
        blit = [commands blitCommandEncoder];
    }
    void expect_blit_failure(Problem problem, const std::string& part) {
        [blit endEncoding];
        encoder = nil;
        expect_failure(problem, part);
    }
    id<MTLBlitCommandEncoder> blit = nil;
};

TEST_F(BlitMisuse, OutOfBounds) {
    [blit fillBuffer:values range:NSMakeRange(252, 8) value:0];
    expect_blit_failure(Problem::out_of_bounds, "8 bytes at offset 252 of buffer \"values\"");
}

TEST_F(BlitMisuse, NotWords) {
    [blit fillBuffer:values range:NSMakeRange(2, 8) value:0];
    expect_blit_failure(Problem::misaligned, "multiples of 4 on macOS");
}

TEST_F(BlitMisuse, Nothing) {
    [blit fillBuffer:values range:NSMakeRange(0, 0) value:0];
    expect_blit_failure(Problem::limit, "nothing to do");
}

TEST_F(BlitMisuse, Overlap) {
    [blit copyFromBuffer:values sourceOffset:0 toBuffer:values destinationOffset:4 size:16];
    expect_blit_failure(Problem::api, "source and destination overlap");
}

TEST_F(BlitMisuse, SharedMemoryIsNotSynchronised) {
    [blit synchronizeResource:values];
    expect_blit_failure(Problem::api, "managed resources only");
}

}  // namespace
}  // namespace metalsim
