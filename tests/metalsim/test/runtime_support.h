#pragma once

#import <Metal/Metal.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "metalsim/control.h"

// What the tests of the runtime share: a fresh device per test, a few kernels, and a look at the reports.
namespace metalsim {

inline constexpr const char* kKernels = R"(
#include <metal_stdlib>
using namespace metal;
constant uint factor [[function_constant(0)]];
constant bool has_bias [[function_constant(1)]];

kernel void add(device float* a [[buffer(0)]], constant float& b [[buffer(1)]],
                uint i [[thread_position_in_grid]]) { a[i] += b; }
kernel void copy(device const float* from [[buffer(0)]], device float* to [[buffer(1)]],
                 uint i [[thread_position_in_grid]]) { to[i] = from[i]; }
kernel void number(device uint* to [[buffer(0)]], uint i [[thread_position_in_grid]]) { to[i] = i + 1; }
kernel void scale(device float* a [[buffer(0)]], device const float* bias [[buffer(1), function_constant(has_bias)]],
                  uint i [[thread_position_in_grid]]) {
    a[i] = a[i] * float(factor) + (has_bias ? bias[i] : 0.0f);
}
struct Node { device float* values; };
kernel void reach(device const Node* nodes [[buffer(0)]], uint i [[thread_position_in_grid]]) {
    nodes[0].values[i] = 7.0f;
}
kernel void share(device float* a [[buffer(0)]], threadgroup float* t [[threadgroup(0)]],
                  uint i [[thread_position_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
    t[i] = float(i);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    a[i] = t[n - 1 - i];
}
)";

class RuntimeTest : public testing::Test {
  protected:
    void SetUp() override {
        pool_ = [[NSAutoreleasePool alloc] init];
        take_reports();
        clear_faults();
        set_mode(Mode::host);
        use({});
    }
    void TearDown() override {
        [library_ release];
        [queue release];
        [device release];
        for (id object : owned_) [object release];
        [pool_ drain];
        clear_faults();
        set_mode(Mode::host);
    }

    // Makes a device of this kind, and a queue.
    void use(const DeviceModel& model) {
        [queue release];
        [device release];
        [library_ release];
        library_ = nil;
        set_device(model);
        device = MTLCreateSystemDefaultDevice();
        queue = [device newCommandQueue];
    }
    template <class T>
    T own(T object) {
        owned_.push_back(object);
        return object;
    }
    id<MTLLibrary> library() {
        if (library_ != nil) return library_;
        NSError* error = nil;
        library_ = [device newLibraryWithSource:[NSString stringWithUTF8String:kKernels] options:nil error:&error];
        EXPECT_TRUE(library_ != nil) << text([error localizedDescription]);
        return library_;
    }
    id<MTLComputePipelineState> pipeline(const char* name, MTLFunctionConstantValues* constants = nil) {
        NSError* error = nil;
        NSString* called = [NSString stringWithUTF8String:name];
        id<MTLFunction> function = constants != nil
                                       ? [library() newFunctionWithName:called constantValues:constants error:&error]
                                       : [library() newFunctionWithName:called];
        id<MTLComputePipelineState> made = [device newComputePipelineStateWithFunction:function error:&error];
        EXPECT_TRUE(made != nil) << text([error localizedDescription]);
        [function release];
        return own(made);
    }
    id<MTLBuffer> buffer(NSUInteger bytes, MTLResourceOptions options = MTLResourceStorageModeShared) {
        return own([device newBufferWithLength:bytes options:options]);
    }
    id<MTLHeap> heap(NSUInteger bytes, MTLHeapType type = MTLHeapTypePlacement,
                     MTLStorageMode storage = MTLStorageModeShared) {
        MTLHeapDescriptor* descriptor = [[MTLHeapDescriptor new] autorelease];
        descriptor.size = bytes;
        descriptor.type = type;
        descriptor.storageMode = storage;
        return own([device newHeapWithDescriptor:descriptor]);
    }
    static float* floats(id<MTLBuffer> of) { return static_cast<float*>([of contents]); }
    static std::string text(NSString* from) { return from != nil ? [from UTF8String] : ""; }

    // Encodes a dispatch of `add`.
    void add(id<MTLComputeCommandEncoder> encoder, id<MTLBuffer> to, float value, NSUInteger count) {
        [encoder setComputePipelineState:pipeline("add")];
        [encoder setBuffer:to offset:0 atIndex:0];
        [encoder setBytes:&value length:sizeof value atIndex:1];
        [encoder dispatchThreads:MTLSizeMake(count, 1, 1) threadsPerThreadgroup:MTLSizeMake(32, 1, 1)];
    }
    static void finish(id<MTLCommandBuffer> commands) {
        [commands commit];
        [commands waitUntilCompleted];
    }
    static std::string error_text(id<MTLCommandBuffer> commands) {
        return text([[commands error] localizedDescription]);
    }
    void expect_completed(id<MTLCommandBuffer> commands) {
        EXPECT_EQ([commands status], MTLCommandBufferStatusCompleted) << error_text(commands);
    }
    // The command buffer failed by a report of this problem that says this.
    void expect_reported(id<MTLCommandBuffer> commands, Problem problem, const std::string& part) {
        EXPECT_EQ([commands status], MTLCommandBufferStatusError);
        EXPECT_EQ([[commands error] code], NSInteger{MTLCommandBufferErrorInvalidResource});
        EXPECT_NE(error_text(commands).find(part), std::string::npos) << error_text(commands);
        expect_report(problem, part);
    }
    // There is such a report; all are taken.
    static void expect_report(Problem problem, const std::string& part) {
        std::string all;
        bool found = false;
        for (const Report& report : take_reports()) {
            all += report.text() + "\n";
            found = found || (report.problem == problem && report.text().find(part) != std::string::npos);
        }
        EXPECT_TRUE(found) << "no \"" << part << "\" in:\n" << all;
    }
    static void expect_no_reports() {
        for (const Report& report : take_reports()) ADD_FAILURE() << report.text();
    }

    id<MTLDevice> device = nil;
    id<MTLCommandQueue> queue = nil;

  private:
    NSAutoreleasePool* pool_ = nil;
    id<MTLLibrary> library_ = nil;
    std::vector<id> owned_;
};

}  // namespace metalsim
