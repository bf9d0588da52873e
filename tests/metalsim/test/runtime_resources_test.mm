#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "runtime_support.h"

// Buffers, heaps, residency sets, and what the device says of itself.
namespace metalsim {
namespace {

class Resources : public RuntimeTest {};

TEST_F(Resources, TheDeviceIsWhatTheModelSays) {
    use({.name = "a GPU", .apple_family = 7, .metal3 = true, .memory_bytes = 1 << 20, .max_buffer_bytes = 1 << 16});
    EXPECT_EQ(text([device name]), "a GPU");
    EXPECT_TRUE([device supportsFamily:MTLGPUFamilyApple7]);
    EXPECT_FALSE([device supportsFamily:MTLGPUFamilyApple8]);
    EXPECT_TRUE([device supportsFamily:MTLGPUFamilyMetal3]);
    EXPECT_FALSE([device supportsFamily:MTLGPUFamilyMetal4]);
    EXPECT_TRUE([device hasUnifiedMemory]);
    EXPECT_EQ([device recommendedMaxWorkingSetSize], 1u << 20);
    EXPECT_EQ([device maxBufferLength], 1u << 16);
    id<MTLDevice> again = own(MTLCreateSystemDefaultDevice());
    EXPECT_EQ(again, device);
    EXPECT_EQ([own(MTLCopyAllDevices()) objectAtIndex:0], device);
    use({.unified_memory = false});
    EXPECT_FALSE([device hasUnifiedMemory]);
}

TEST_F(Resources, NewBuffersAreZeroAndAddressable) {
    id<MTLBuffer> made = buffer(1000);
    EXPECT_EQ([made length], 1000u);
    EXPECT_EQ(floats(made)[100], 0);
    EXPECT_EQ([made gpuAddress], reinterpret_cast<uint64_t>([made contents]));
    id<MTLBuffer> filled = own([device newBufferWithBytes:"abcd" length:4 options:MTLResourceStorageModeShared]);
    EXPECT_EQ(std::memcmp([filled contents], "abcd", 4), 0);
    EXPECT_EQ([made hazardTrackingMode], MTLHazardTrackingModeTracked);
    expect_no_reports();
}

TEST_F(Resources, PrivateBuffersHaveNoContents) {
    id<MTLBuffer> made = buffer(64, MTLResourceStorageModePrivate);
    made.label = @"secret";
    EXPECT_NE([made gpuAddress], 0u);
    EXPECT_TRUE([made contents] == nullptr);
    expect_report(Problem::api, "contents of buffer \"secret\": its storage is private");
}

TEST_F(Resources, MemoryIsCountedAndEnds) {
    use({.memory_bytes = 1 << 20});
    const NSUInteger before = [device currentAllocatedSize];
    @autoreleasepool {
        id<MTLBuffer> half = [device newBufferWithLength:1 << 19 options:0];
        EXPECT_EQ([device currentAllocatedSize], before + (1 << 19));
        EXPECT_TRUE([device newBufferWithLength:(1 << 19) + 1 options:0] == nil);
        id<MTLBuffer> other = [device newBufferWithLength:1 << 19 options:0];
        EXPECT_TRUE(other != nil);
        [half release];
        [other release];
    }
    EXPECT_EQ([device currentAllocatedSize], before);
    EXPECT_TRUE([heap(1 << 21) size] == 0);
    expect_no_reports();  // running out is no misuse
}

TEST_F(Resources, LimitsOfBuffersAreKept) {
    use({.max_buffer_bytes = 4096});
    EXPECT_TRUE([device newBufferWithLength:4097 options:0] == nil);
    expect_report(Problem::api, "more than maxBufferLength");
    EXPECT_TRUE([device newBufferWithLength:0 options:0] == nil);
    expect_report(Problem::api, "length is 0");
}

TEST_F(Resources, NoCopyBuffersAreTheHostsPages) {
    const auto page = static_cast<NSUInteger>(sysconf(_SC_PAGE_SIZE));
    void* pages = mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    __block NSUInteger freed = 0;
    id<MTLBuffer> made = [device newBufferWithBytesNoCopy:pages
                                                   length:2 * page
                                                  options:MTLResourceStorageModeShared
                                              deallocator:^(void* pointer, NSUInteger length) {
                                                freed = length;
                                                munmap(pointer, length);
                                              }];
    EXPECT_EQ([made contents], pages);
    [made release];
    EXPECT_EQ(freed, 2 * page);
    void* odd = static_cast<char*>(mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) + 16;
    EXPECT_TRUE([device newBufferWithBytesNoCopy:odd length:page options:0 deallocator:nil] == nil);
    expect_report(Problem::api, "multiples of the page size");
    EXPECT_TRUE([device newBufferWithBytesNoCopy:static_cast<char*>(odd) - 16
                                          length:page - 1
                                         options:0
                                     deallocator:nil] == nil);
    expect_report(Problem::api, "multiples of the page size");
}

TEST_F(Resources, NoCopyBuffersEndBeforeTheirPages) {
    const auto page = static_cast<NSUInteger>(sysconf(_SC_PAGE_SIZE));
    for (const NSUInteger gone : {0, 1, 299}) {
        auto* pages = static_cast<char*>(mmap(nullptr, 300 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        id<MTLBuffer> made = [device newBufferWithBytesNoCopy:pages length:300 * page options:0 deallocator:nil];
        made.label = @"file";
        munmap(pages + gone * page, page);
        [made release];
        expect_report(Problem::api, "the memory of buffer \"file\" was unmapped before the buffer was released");
        munmap(pages, gone * page);
        munmap(pages + (gone + 1) * page, (299 - gone) * page);
    }
}

TEST_F(Resources, ReadOnlyPagesMayNotBeWritten) {
    set_mode(Mode::checked);
    const auto page = static_cast<NSUInteger>(sysconf(_SC_PAGE_SIZE));
    void* pages = mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    id<MTLBuffer> made = own([device newBufferWithBytesNoCopy:pages length:page options:0 deallocator:nil]);
    made.label = @"file";
    id<MTLCommandBuffer> commands = [queue commandBuffer];
    id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
    add(encoder, made, 1, 1);
    [encoder endEncoding];
    finish(commands);
    expect_reported(commands, Problem::read_only, "file");
}

TEST_F(Resources, PlacementHeapsPutBuffersWhereTheyAreAsked) {
    id<MTLHeap> all = heap(1 << 16);
    EXPECT_EQ([all hazardTrackingMode], MTLHazardTrackingModeUntracked);
    const MTLSizeAndAlign one = [device heapBufferSizeAndAlignWithLength:100 options:MTLResourceStorageModeShared];
    EXPECT_GE(one.size, 100u);
    id<MTLBuffer> first = own([all newBufferWithLength:100 options:MTLResourceStorageModeShared offset:0]);
    id<MTLBuffer> second = own([all newBufferWithLength:100 options:MTLResourceStorageModeShared offset:one.size]);
    EXPECT_EQ([second gpuAddress], [first gpuAddress] + one.size);
    EXPECT_EQ([second heap], all);
    EXPECT_EQ([second heapOffset], one.size);
    EXPECT_EQ([all usedSize], 2 * one.size);
    EXPECT_EQ([all maxAvailableSizeWithAlignment:one.align], (1 << 16) - 2 * one.size);
    id<MTLBuffer> over = own([all newBufferWithLength:100 options:MTLResourceStorageModeShared offset:0]);
    static_cast<char*>([first contents])[5] = 'x';
    EXPECT_EQ(static_cast<char*>([over contents])[5], 'x');  // the same bytes
    expect_no_reports();
}

TEST_F(Resources, MisplacedBuffersAreReported) {
    id<MTLHeap> all = heap(1 << 16);
    const MTLResourceOptions shared = MTLResourceStorageModeShared;
    EXPECT_TRUE([all newBufferWithLength:16 options:shared offset:8] == nil);
    expect_report(Problem::api, "misaligned offset");
    EXPECT_TRUE([all newBufferWithLength:512 options:shared offset:(1 << 16) - 256] == nil);
    expect_report(Problem::api, "beyond the heap's end");
    EXPECT_TRUE([all newBufferWithLength:512 options:MTLResourceStorageModePrivate offset:0] == nil);
    expect_report(Problem::api, "differ from the heap's");
    EXPECT_TRUE([all newBufferWithLength:512 options:shared] == nil);
    expect_report(Problem::api, "an offset is needed");
    use({.placement_heaps = false});
    EXPECT_TRUE(heap(4096) == nil);
    expect_report(Problem::api, "no placement heaps");
}

TEST_F(Resources, AutomaticHeapsFindPlaces) {
    id<MTLHeap> all = heap(4096, MTLHeapTypeAutomatic);
    id<MTLBuffer> first = [all newBufferWithLength:2048 options:MTLResourceStorageModeShared];
    id<MTLBuffer> second = own([all newBufferWithLength:2048 options:MTLResourceStorageModeShared]);
    EXPECT_NE([first gpuAddress], [second gpuAddress]);
    EXPECT_TRUE([all newBufferWithLength:1 options:MTLResourceStorageModeShared] == nil);
    [first release];
    id<MTLBuffer> third = own([all newBufferWithLength:1024 options:MTLResourceStorageModeShared]);
    EXPECT_EQ([third heapOffset], 0u);
    [second makeAliasable];
    EXPECT_TRUE([second isAliasable]);
    EXPECT_TRUE(own([all newBufferWithLength:2048 options:MTLResourceStorageModeShared]) != nil);
    expect_no_reports();
}

TEST_F(Resources, ABufferKeepsItsHeap) {
    const uint64_t before = statistics().heaps_alive;
    MTLHeapDescriptor* descriptor = [[MTLHeapDescriptor new] autorelease];
    descriptor.size = 4096;
    descriptor.type = MTLHeapTypePlacement;
    id<MTLHeap> all = [device newHeapWithDescriptor:descriptor];
    EXPECT_EQ([all storageMode], MTLStorageModePrivate);  // the descriptor's default
    id<MTLBuffer> in = [all newBufferWithLength:64 options:MTLResourceStorageModePrivate offset:0];
    [all release];
    EXPECT_EQ(statistics().heaps_alive, before + 1);
    [in release];
    EXPECT_EQ(statistics().heaps_alive, before);
}

TEST_F(Resources, ResidencySetsCountFromTheirCommit) {
    MTLResidencySetDescriptor* descriptor = [[MTLResidencySetDescriptor new] autorelease];
    descriptor.label = @"weights";
    NSError* error = nil;
    id<MTLResidencySet> set = own([device newResidencySetWithDescriptor:descriptor error:&error]);
    ASSERT_TRUE(set != nil);
    EXPECT_EQ(text([set label]), "weights");
    id<MTLBuffer> one = buffer(4096);
    id<MTLHeap> two = heap(8192);
    const id<MTLAllocation> both[] = {one, two};
    [set addAllocations:both count:2];
    EXPECT_EQ([set allocationCount], 2u);
    EXPECT_TRUE([set containsAllocation:two]);
    EXPECT_EQ([set allocatedSize], 0u);
    [set commit];
    EXPECT_EQ([set allocatedSize], 4096u + 8192u);
    [set removeAllocation:one];
    EXPECT_EQ([set allocatedSize], 4096u + 8192u);
    [set commit];
    EXPECT_EQ([set allocatedSize], 8192u);
    EXPECT_EQ([[set allAllocations] count], 1u);
    [set removeAllAllocations];
    EXPECT_EQ([set allocationCount], 0u);
}

TEST_F(Resources, ADeviceMayHaveNoResidencySets) {
    use({.residency_sets = false});
    NSError* error = nil;
    EXPECT_TRUE([device newResidencySetWithDescriptor:[[MTLResidencySetDescriptor new] autorelease]
                                                error:&error] == nil);
    EXPECT_TRUE(error != nil);
    expect_no_reports();
}

TEST_F(Resources, TooManyResidencySetsAreReported) {
    for (int i = 0; i < 33; ++i) {
        MTLResidencySetDescriptor* descriptor = [[MTLResidencySetDescriptor new] autorelease];
        [queue addResidencySet:own([device newResidencySetWithDescriptor:descriptor error:nil])];
    }
    expect_report(Problem::api, "at most 32 residency sets");
}

// Memory that a kernel reaches through a pointer must be resident: what says so, and that nothing does.
TEST_F(Resources, MemoryReachedByAddressMustBeResident) {
    set_mode(Mode::checked);
    id<MTLHeap> all = heap(4096);
    id<MTLBuffer> values = own([all newBufferWithLength:256 options:MTLResourceStorageModeShared offset:0]);
    values.label = @"values";
    id<MTLBuffer> nodes = buffer(8);
    const uint64_t address = [values gpuAddress];
    std::memcpy([nodes contents], &address, 8);
    MTLResidencySetDescriptor* descriptor = [[MTLResidencySetDescriptor new] autorelease];
    id<MTLResidencySet> set = own([device newResidencySetWithDescriptor:descriptor error:nil]);
    [set addAllocation:all];
    const auto run = [&](int how) {
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        if (how == 3) [commands useResidencySet:set];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:pipeline("reach")];
        [encoder setBuffer:nodes offset:0 atIndex:0];
        if (how == 1) [encoder useResource:values usage:MTLResourceUsageWrite];
        if (how == 4) [encoder useResource:values usage:MTLResourceUsageRead];
        if (how == 2) [encoder useHeap:all];
        [encoder dispatchThreads:MTLSizeMake(4, 1, 1) threadsPerThreadgroup:MTLSizeMake(4, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        return commands;
    };
    expect_reported(run(0), Problem::not_resident, "values");
    expect_completed(run(1));
    // useHeap: stands for reading alone: Apple's documentation of it.
    expect_reported(run(2), Problem::read_only, "values");
    expect_reported(run(4), Problem::read_only, "values");
    expect_reported(run(3), Problem::not_resident, "values");  // added, but not committed
    [set commit];
    expect_completed(run(3));
    [queue addResidencySet:set];
    expect_completed(run(0));
    [queue removeResidencySet:set];
    expect_reported(run(0), Problem::not_resident, "values");
    EXPECT_EQ(floats(values)[3], 7);
}

TEST_F(Resources, HeapMemoryIsNotInitialised) {
    set_mode(Mode::checked);
    id<MTLHeap> all = heap(4096, MTLHeapTypePlacement, MTLStorageModePrivate);
    id<MTLBuffer> from = own([all newBufferWithLength:256 options:MTLResourceStorageModePrivate offset:0]);
    from.label = @"unwritten";
    id<MTLBuffer> to = buffer(256);
    const auto run = [&] {
        id<MTLCommandBuffer> commands = [queue commandBuffer];
        id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
        [encoder setComputePipelineState:pipeline("copy")];
        [encoder setBuffer:from offset:0 atIndex:0];
        [encoder setBuffer:to offset:0 atIndex:1];
        [encoder dispatchThreads:MTLSizeMake(8, 1, 1) threadsPerThreadgroup:MTLSizeMake(8, 1, 1)];
        [encoder endEncoding];
        finish(commands);
        return commands;
    };
    expect_reported(run(), Problem::uninitialised_read, "unwritten");
    id<MTLCommandBuffer> fill = [queue commandBuffer];
    id<MTLBlitCommandEncoder> blit = [fill blitCommandEncoder];
    [blit fillBuffer:from range:NSMakeRange(0, 256) value:0];
    [blit endEncoding];
    finish(fill);
    expect_completed(fill);
    expect_completed(run());
}

TEST_F(Resources, ManagedMemoryAloneIsSynchronised) {
    [buffer(64) didModifyRange:NSMakeRange(0, 4)];
    expect_report(Problem::api, "managed buffers only");
    id<MTLBuffer> managed = buffer(64, MTLResourceStorageModeManaged);
    [managed didModifyRange:NSMakeRange(60, 8)];
    expect_report(Problem::api, "beyond the buffer's end");
    [managed didModifyRange:NSMakeRange(0, 64)];
    expect_no_reports();
    EXPECT_EQ([managed setPurgeableState:MTLPurgeableStateVolatile], MTLPurgeableStateNonVolatile);
    EXPECT_EQ([managed setPurgeableState:MTLPurgeableStateKeepCurrent], MTLPurgeableStateVolatile);
}

}  // namespace
}  // namespace metalsim
