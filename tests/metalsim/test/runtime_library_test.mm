#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "runtime_support.h"

// Libraries, function constants, pipelines, archives; faults; modes.
namespace metalsim {
namespace {

class Library : public RuntimeTest {
  protected:
    // `scale` with these constants, run over four floats that are 1.
    float scaled(MTLFunctionConstantValues* constants, id<MTLBuffer> bias) {
        id<MTLBuffer> values = buffer(16);
        for (int i = 0; i < 4; ++i) floats(values)[i] = 1;
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:pipeline("scale", constants)];
        [encoder setBuffer:values offset:0 atIndex:0];
        if (bias != nil) [encoder setBuffer:bias offset:0 atIndex:1];
        [encoder dispatchThreads:MTLSizeMake(4, 1, 1) threadsPerThreadgroup:MTLSizeMake(4, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        expect_completed(commands);
        return floats(values)[3];
    }
    static MTLFunctionConstantValues* constants(uint32_t factor, bool bias) {
        MTLFunctionConstantValues* values = [[MTLFunctionConstantValues new] autorelease];
        [values setConstantValue:&factor type:MTLDataTypeUInt atIndex:0];
        [values setConstantValue:&bias type:MTLDataTypeBool withName:@"has_bias"];
        return values;
    }
    id<MTLCommandBuffer> run_add(id<MTLBuffer> on) {
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        encoder.label = @"first";
        [encoder insertDebugSignpost:@"here"];
        add(encoder, on, 1, 32);
        [encoder endEncoding];
        encoder = [commands computeCommandEncoder];
        encoder.label = @"second";
        add(encoder, on, 1, 32);
        [encoder endEncoding];
        finish(commands);
        return commands;
    }
};

TEST_F(Library, NamesItsKernels) {
    NSArray<NSString*>* names = [library() functionNames];
    EXPECT_EQ([names count], 6u);
    EXPECT_TRUE([library() newFunctionWithName:@"absent"] == nil);
    NSError* error = nil;
    EXPECT_TRUE([library() newFunctionWithName:@"absent" constantValues:constants(1, false) error:&error] == nil);
    EXPECT_EQ([error code], NSInteger { MTLLibraryErrorFunctionNotFound });
    EXPECT_TRUE([[error domain] isEqualToString:MTLLibraryErrorDomain]);
    id<MTLFunction> function = own([library() newFunctionWithName:@"scale"]);
    EXPECT_EQ(text([function name]), "scale");
    NSDictionary* known = [function functionConstantsDictionary];
    EXPECT_EQ([[known objectForKey:@"factor"] type], MTLDataTypeUInt);
    EXPECT_EQ([[known objectForKey:@"has_bias"] index], 1u);
}

TEST_F(Library, SourceThatDoesNotCompileSaysWhy) {
    NSError* error = nil;
    id<MTLLibrary> made = [device newLibraryWithSource:@"kernel void f(device float* x [[buffer(0)]]) { x = y; }"
                                               options:nil
                                                 error:&error];
    EXPECT_TRUE(made == nil);
    EXPECT_EQ([error code], NSInteger { MTLLibraryErrorCompileFailure });
    EXPECT_NE(text([error localizedDescription]).find("'y'"), std::string::npos) << text([error localizedDescription]);
}

TEST_F(Library, MacrosAreDefined) {
    MTLCompileOptions* options = [[MTLCompileOptions new] autorelease];
    options.preprocessorMacros = @{@"TYPE" : @"uint", @"COUNT" : @3};
    NSError* error = nil;
    NSString* source = @"#include <metal_stdlib>\nusing namespace metal;\n"
                        "kernel void f(device TYPE* x [[buffer(0)]]) { x[0] = COUNT; }";
    id<MTLLibrary> made = own([device newLibraryWithSource:source options:options error:&error]);
    EXPECT_TRUE(made != nil) << text([error localizedDescription]);
}

TEST_F(Library, OptionsSayTheLanguage) {
    const auto made = [&](MTLLanguageVersion version, NSString* source) {
        MTLCompileOptions* options = [[MTLCompileOptions new] autorelease];
        options.languageVersion = version;
        NSError* error = nil;
        id<MTLLibrary> library = own([device newLibraryWithSource:source options:options error:&error]);
        return library != nil ? std::string() : text([error localizedDescription]);
    };
    NSString* const old = @"#if __METAL_VERSION__ != 240\n#error another\n#endif\n"
                           "kernel void f(device float* x [[buffer(0)]]) { x[0] = 1; }";
    EXPECT_EQ(made(MTLLanguageVersion2_4, old), "");
    EXPECT_NE(made(MTLLanguageVersion3_0, old).find("another"), std::string::npos);
    NSString* const brain = @"kernel void f(device bfloat* x [[buffer(0)]]) { x[0] = bfloat(1); }";
    EXPECT_EQ(made(MTLLanguageVersion3_1, brain), "");
    EXPECT_NE(made(MTLLanguageVersion3_0, brain).find("before Metal 3.1"), std::string::npos);
    for (const NSUInteger none : {0ul, (2ul << 16) + 5, (3ul << 16) + 3, (5ul << 16)}) {
        EXPECT_NE(made(static_cast<MTLLanguageVersion>(none), brain).find("no version"), std::string::npos);
    }
}

// Safe mode does what is written: under fast math a compiler may cancel the sum, or take it that nothing is a NaN.
TEST_F(Library, MathModesAreHonoured) {
    NSString* const source = @"#include <metal_stdlib>\nusing namespace metal;\n"
                              "kernel void f(device float* x [[buffer(0)]]) {\n"
                              "    x[0] = (x[0] + x[1]) - x[1];\n"
                              "    x[2] = x[3] != x[3] ? 1.0f : 2.0f;\n"
                              "}";
    const auto run = [&](MTLCompileOptions* options) {
        NSError* error = nil;
        id<MTLLibrary> made = own([device newLibraryWithSource:source options:options error:&error]);
        if (made == nil) return std::pair(-1.0f, -1.0f);
        id<MTLComputePipelineState> state =
            own([device newComputePipelineStateWithFunction:own([made newFunctionWithName:@"f"]) error:&error]);
        id<MTLBuffer> values = buffer(16);
        floats(values)[0] = 1, floats(values)[1] = 1e9f, floats(values)[2] = 0, floats(values)[3] = NAN;
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:state];
        [encoder setBuffer:values offset:0 atIndex:0];
        [encoder dispatchThreads:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(1, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        expect_completed(commands);
        return std::pair(floats(values)[0], floats(values)[2]);
    };
    MTLCompileOptions* options = [[MTLCompileOptions new] autorelease];
    EXPECT_EQ([options mathMode], MTLMathModeFast);
    EXPECT_EQ(run(options), std::pair(1.0f, 2.0f));
    EXPECT_EQ(run(nil), std::pair(1.0f, 2.0f));
    options.mathMode = MTLMathModeRelaxed;
    EXPECT_FALSE([options fastMathEnabled]);
    EXPECT_EQ(run(options), std::pair(1.0f, 1.0f));
    options.fastMathEnabled = NO;
    EXPECT_EQ([options mathMode], MTLMathModeSafe);
    EXPECT_EQ(run(options), std::pair(0.0f, 1.0f));
    options.mathMode = static_cast<MTLMathMode>(3);
    EXPECT_EQ(run(options), std::pair(-1.0f, -1.0f)) << "no such mode";
}

TEST_F(Library, MayBeMadeInTheBackground) {
    dispatch_queue_t done = dispatch_queue_create("done", nullptr);
    id<MTLSharedEvent> event = own([device newSharedEvent]);
    [device newLibraryWithSource:@"kernel void f(device float* x [[buffer(0)]]) { x[0] = 1; }"
                         options:nil
               completionHandler:^(id<MTLLibrary> made, NSError* error) {
                 EXPECT_TRUE(made != nil && error == nil);
                 event.signaledValue = 1;
               }];
    EXPECT_TRUE([event waitUntilSignaledValue:1 timeoutMS:60000]);
    dispatch_release(done);
}

TEST_F(Library, CompiledLibrariesAreRefused) {
    NSError* error = nil;
    dispatch_data_t data = dispatch_data_create("MTLB", 4, nullptr, DISPATCH_DATA_DESTRUCTOR_DEFAULT);
    EXPECT_TRUE([device newLibraryWithData:data error:&error] == nil);
    EXPECT_EQ([error code], NSInteger { MTLLibraryErrorUnsupported });
    dispatch_release(data);
}

TEST_F(Library, ConstantsSpecialise) {
    EXPECT_EQ(scaled(constants(3, false), nil), 3);
    id<MTLBuffer> bias = buffer(16);
    floats(bias)[3] = 10;
    EXPECT_EQ(scaled(constants(5, true), bias), 15);
    expect_no_reports();
}

TEST_F(Library, ConstantsOfAnotherTypeAreRefused) {
    MTLFunctionConstantValues* wrong = [[MTLFunctionConstantValues new] autorelease];
    const float value = 1;
    [wrong setConstantValue:&value type:MTLDataTypeFloat atIndex:0];
    NSError* error = nil;
    EXPECT_TRUE([library() newFunctionWithName:@"scale" constantValues:wrong error:&error] == nil);
    EXPECT_NE(text([error localizedDescription]).find("declared uint, its value is float"), std::string::npos);
}

TEST_F(Library, MissingConstantsFailThePipeline) {
    id<MTLFunction> bare = own([library() newFunctionWithName:@"scale"]);
    NSError* error = nil;
    EXPECT_TRUE([device newComputePipelineStateWithFunction:bare error:&error] == nil);
    EXPECT_NE(text([error localizedDescription]).find("has_bias"), std::string::npos)
        << text([error localizedDescription]);
}

TEST_F(Library, ReflectionNamesTheArguments) {
    MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
    descriptor.computeFunction = own([library() newFunctionWithName:@"scale"
                                                     constantValues:constants(1, true)
                                                              error:nil]);
    MTLComputePipelineReflection* reflection = nil;
    own([device newComputePipelineStateWithDescriptor:descriptor
                                              options:MTLPipelineOptionBindingInfo
                                           reflection:&reflection
                                                error:nil]);
    ASSERT_EQ([[reflection bindings] count], 2u);
    id<MTLBinding> second = [[reflection bindings] objectAtIndex:1];
    EXPECT_EQ(text([second name]), "bias");
    EXPECT_EQ([second index], 1u);
    EXPECT_EQ([second access], MTLBindingAccessReadOnly);
}

TEST_F(Library, ThreadgroupMemoryIsShared) {
    id<MTLBuffer> values = buffer(128);
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    [encoder setComputePipelineState:pipeline("share")];
    [encoder setBuffer:values offset:0 atIndex:0];
    [encoder setThreadgroupMemoryLength:128 atIndex:0];
    [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
    [encoder endEncoding];
    finish(commands);
    expect_completed(commands);
    EXPECT_EQ(floats(values)[0], 31);
}

TEST_F(Library, ArchivesRememberPipelines) {
    const auto path = std::filesystem::temp_directory_path() / ("metalsim-" + std::to_string(getpid()) + ".archive");
    NSURL* url = [NSURL fileURLWithPath:[NSString stringWithUTF8String:path.c_str()]];
    MTLComputePipelineDescriptor* descriptor = [[MTLComputePipelineDescriptor new] autorelease];
    const auto with = [&](uint32_t factor) {
        descriptor.computeFunction = own([library() newFunctionWithName:@"scale"
                                                         constantValues:constants(factor, false)
                                                                  error:nil]);
    };
    const auto make = [&](MTLPipelineOption options) {
        NSError* error = nil;
        return own([device newComputePipelineStateWithDescriptor:descriptor
                                                         options:options
                                                      reflection:nil
                                                           error:&error]);
    };
    {
        MTLBinaryArchiveDescriptor* empty = [[MTLBinaryArchiveDescriptor new] autorelease];
        id<MTLBinaryArchive> archive = own([device newBinaryArchiveWithDescriptor:empty error:nil]);
        with(3);
        EXPECT_TRUE([archive addComputePipelineFunctionsWithDescriptor:descriptor error:nil]);
        EXPECT_TRUE([archive serializeToURL:url error:nil]);
        NSError* error = nil;
        EXPECT_FALSE([archive serializeToURL:[NSURL fileURLWithPath:@"/nowhere/at/all"] error:&error]);
        EXPECT_TRUE([[error domain] isEqualToString:MTLBinaryArchiveDomain]);
    }
    MTLBinaryArchiveDescriptor* stored = [[MTLBinaryArchiveDescriptor new] autorelease];
    stored.url = url;
    id<MTLBinaryArchive> archive = own([device newBinaryArchiveWithDescriptor:stored error:nil]);
    ASSERT_TRUE(archive != nil);
    descriptor.binaryArchives = [NSArray arrayWithObject:archive];
    const uint64_t hits = statistics().archive_hits;
    EXPECT_TRUE(make(MTLPipelineOptionFailOnBinaryArchiveMiss) != nil);
    EXPECT_EQ(statistics().archive_hits, hits + 1);
    with(4);  // another specialisation
    EXPECT_TRUE(make(MTLPipelineOptionFailOnBinaryArchiveMiss) == nil);
    EXPECT_TRUE(make(MTLPipelineOptionNone) != nil);
    EXPECT_EQ(statistics().archive_hits, hits + 1);
    std::ofstream(path) << "something else\n";
    NSError* error = nil;
    EXPECT_TRUE([device newBinaryArchiveWithDescriptor:stored error:&error] == nil);
    EXPECT_EQ([error code], NSInteger { MTLBinaryArchiveErrorInvalidFile });
    std::filesystem::remove(path);
}

TEST_F(Library, ModeNoneRunsNoKernel) {
    set_mode(Mode::none);
    id<MTLBuffer> values = buffer(128);
    const Statistics before = statistics();
    expect_completed(run_add(values));
    EXPECT_EQ(floats(values)[0], 0);
    EXPECT_EQ(statistics().dispatches, before.dispatches + 2);
    EXPECT_EQ(statistics().encoders, before.encoders + 2);
}

TEST_F(Library, EncodingSendsNoRetain) {
    id<MTLComputePipelineState> state = pipeline("add");
    id<MTLBuffer> values = buffer(128);
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    const uint64_t before = statistics().retains;
    const float one = 1;
    for (int i = 0; i < 10; ++i) {
        [encoder setComputePipelineState:state];
        [encoder setBuffer:values offset:0 atIndex:0];
        [encoder setBytes:&one length:4 atIndex:1];
        [encoder dispatchThreads:MTLSizeMake(32, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
        [encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
    }
    EXPECT_EQ(statistics().retains, before);
    [encoder endEncoding];
    finish(commands);
    expect_completed(commands);
    EXPECT_EQ(floats(values)[0], 10);
}

TEST_F(Library, CheckedKernelsReportWhatTheyTouch) {
    set_mode(Mode::checked);
    id<MTLBuffer> values = buffer(64);
    values.label = @"short";
    expect_reported(run_add(values), Problem::out_of_bounds, "short");
}

// ---- faults ----

class Faults : public Library {};

TEST_F(Faults, AllocationsFailAtTheNthCall) {
    inject({.kind = FaultKind::buffer_allocation, .nth = 2, .times = 2});
    EXPECT_TRUE(buffer(16) != nil);
    EXPECT_TRUE(buffer(16) == nil);
    EXPECT_TRUE(buffer(16) == nil);
    EXPECT_TRUE(buffer(16) != nil);
    inject({.kind = FaultKind::heap_allocation});
    EXPECT_TRUE(heap(4096) == nil);
    EXPECT_TRUE(heap(4096) != nil);
    expect_no_reports();
}

TEST_F(Faults, LibrariesAndPipelinesFail) {
    inject({.kind = FaultKind::library});
    NSError* error = nil;
    NSString* source = @"kernel void f(device float* x [[buffer(0)]]) { x[0] = 1; }";
    EXPECT_TRUE([device newLibraryWithSource:source options:nil error:&error] == nil);
    EXPECT_TRUE([[error domain] isEqualToString:MTLLibraryErrorDomain]);
    EXPECT_TRUE(own([device newLibraryWithSource:source options:nil error:&error]) != nil);
    id<MTLFunction> function = own([library() newFunctionWithName:@"add"]);
    inject({.kind = FaultKind::pipeline});
    EXPECT_TRUE([device newComputePipelineStateWithFunction:function error:&error] == nil);
    EXPECT_TRUE(error != nil);
    EXPECT_TRUE(own([device newComputePipelineStateWithFunction:function error:&error]) != nil);
}

TEST_F(Faults, CommandBuffersFailWithEachCode) {
    id<MTLBuffer> values = buffer(128);
    for (const MTLCommandBufferError code :
         {MTLCommandBufferErrorInternal, MTLCommandBufferErrorTimeout, MTLCommandBufferErrorPageFault,
          MTLCommandBufferErrorAccessRevoked, MTLCommandBufferErrorNotPermitted, MTLCommandBufferErrorOutOfMemory,
          MTLCommandBufferErrorInvalidResource, MTLCommandBufferErrorMemoryless, MTLCommandBufferErrorStackOverflow}) {
        inject({.kind = FaultKind::command_buffer, .code = static_cast<int64_t>(code)});
        id<MTLCommandBuffer> failed = run_add(values);
        EXPECT_EQ([failed status], MTLCommandBufferStatusError);
        EXPECT_TRUE([[[failed error] domain] isEqualToString:MTLCommandBufferErrorDomain]);
        EXPECT_EQ([[failed error] code], static_cast<NSInteger>(code));
        EXPECT_TRUE([[[failed error] userInfo] objectForKey:MTLCommandBufferEncoderInfoErrorKey] == nil);
        expect_completed(run_add(values));
    }
    EXPECT_EQ(floats(values)[0], 18);  // those that failed did nothing
    expect_no_reports();
}

TEST_F(Faults, ErrorsSayWhichEncoderWasAtFault) {
    set_mode(Mode::checked);
    id<MTLBuffer> values = buffer(128);
    values.label = @"values";
    MTLCommandBufferDescriptor* descriptor = [[MTLCommandBufferDescriptor new] autorelease];
    descriptor.errorOptions = MTLCommandBufferErrorOptionEncoderExecutionStatus;
    id<MTLCommandBuffer> commands = [queue commandBufferWithDescriptor:descriptor];
    const char* names[] = {"good", "bad", "later"};
    for (int i = 0; i < 3; ++i) {
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        encoder.label = [NSString stringWithUTF8String:names[i]];
        [encoder insertDebugSignpost:@"here"];
        add(encoder, values, 1, i == 1 ? 64 : 32);
        [encoder endEncoding];
    }
    finish(commands);
    expect_reported(commands, Problem::out_of_bounds, "bad");
    NSArray<id<MTLCommandBufferEncoderInfo>>* infos =
        [[[commands error] userInfo] objectForKey:MTLCommandBufferEncoderInfoErrorKey];
    ASSERT_EQ([infos count], 3u);
    const MTLCommandEncoderErrorState states[] = {
        MTLCommandEncoderErrorStateCompleted, MTLCommandEncoderErrorStateFaulted, MTLCommandEncoderErrorStatePending};
    for (NSUInteger i = 0; i < 3; ++i) {
        EXPECT_EQ(text([[infos objectAtIndex:i] label]), names[i]);
        EXPECT_EQ([[infos objectAtIndex:i] errorState], states[i]);
        EXPECT_EQ(text([[[infos objectAtIndex:i] debugSignposts] objectAtIndex:0]), "here");
    }
    EXPECT_EQ(floats(values)[0], 2);
}

TEST_F(Faults, CompletionMayBeSlow) {
    id<MTLBuffer> values = buffer(128);
    run_add(values);
    inject({.kind = FaultKind::slow_completion, .milliseconds = 40});
    id<MTLCommandBuffer> slow = run_add(values);
    expect_completed(slow);
    EXPECT_GE([slow GPUEndTime] - [slow GPUStartTime], 0.04);
}

TEST_F(Faults, ALostDeviceStaysLost) {
    id<MTLBuffer> values = buffer(128);
    inject({.kind = FaultKind::device_lost, .nth = 2});
    expect_completed(run_add(values));
    for (int i = 0; i < 2; ++i) {
        id<MTLCommandBuffer> failed = run_add(values);
        EXPECT_EQ([[failed error] code], NSInteger{MTLCommandBufferErrorDeviceRemoved});
    }
    id<MTLDevice> next = own(MTLCreateSystemDefaultDevice());
    EXPECT_NE(next, device);
    use({});
    expect_completed(run_add(buffer(128)));
}

}  // namespace
}  // namespace metalsim
