#include <cstdlib>

#include "runtime_support.h"

// What can be set from outside of the process, before anything has asked for it.
namespace metalsim {
namespace {

const bool kSet = [] {
    setenv("METALSIM_MODE", "none", 1);
    setenv("METALSIM_DEVICE", "name=outside,apple=8,residency_sets=0,memory=65536,macos_major=14,macos_minor=2", 1);
    setenv("METALSIM_FAULTS", "command_buffer:nth=2,code=8;buffer_allocation:times=2", 1);
    return true;
}();

TEST(Environment, SetsModeDeviceAndFaults) {
    ASSERT_TRUE(kSet);
    @autoreleasepool {
        EXPECT_EQ(mode(), Mode::none);
        id<MTLDevice> device = MTLCreateSystemDefaultDevice();
        EXPECT_STREQ([[device name] UTF8String], "outside");
        EXPECT_TRUE([device supportsFamily:MTLGPUFamilyApple8]);
        EXPECT_FALSE([device supportsFamily:MTLGPUFamilyApple9]);
        EXPECT_EQ([device recommendedMaxWorkingSetSize], 65536u);
        bool available = true;
        if (__builtin_available(macOS 14.3, *)) {
        } else {
            available = false;
        }
        EXPECT_FALSE(available);
        EXPECT_TRUE([device newBufferWithLength:16 options:0] == nil);
        EXPECT_TRUE([device newBufferWithLength:16 options:0] == nil);
        id<MTLBuffer> third = [device newBufferWithLength:16 options:0];
        EXPECT_TRUE(third != nil);
        id<MTLCommandQueue> queue = [device newCommandQueue];
        for (const bool fails : {false, true, false}) {
            id<MTLCommandBuffer> commands = [queue commandBuffer];
            [commands commit];
            [commands waitUntilCompleted];
            EXPECT_EQ([commands status], fails ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted);
            if (fails) EXPECT_EQ([[commands error] code], NSInteger{MTLCommandBufferErrorOutOfMemory});
        }
        [third release];
        [queue release];
        [device release];
    }
}

}  // namespace
}  // namespace metalsim
