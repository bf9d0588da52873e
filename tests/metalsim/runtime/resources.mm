#include <cstdio>
#include <fstream>

#include "runtime/memory.h"
#include "runtime/objects.h"

// Heaps and buffers.

using metalsim::AllocationState;
using metalsim::BufferState;
using metalsim::DeviceState;
using metalsim::HeapState;

namespace {

metalsim::Memory& memory() {
    return metalsim::executor().memory();
}

void set_options(AllocationState* to, MTLResourceOptions options, MTLHazardTrackingMode by_default) {
    to->storage = static_cast<MTLStorageMode>((options & MTLResourceStorageModeMask) >> MTLResourceStorageModeShift);
    to->cache = static_cast<MTLCPUCacheMode>((options & MTLResourceCPUCacheModeMask) >> MTLResourceCPUCacheModeShift);
    to->hazards = static_cast<MTLHazardTrackingMode>((options & MTLResourceHazardTrackingModeMask) >>
                                                     MTLResourceHazardTrackingModeShift);
    if (to->hazards == MTLHazardTrackingModeDefault) to->hazards = by_default;
}

bool valid_length(const DeviceState& device, uint64_t bytes, MTLResourceOptions options, const char* method) {
    const auto refuse = [&](const std::string& why) {
        metalsim::report_misuse(std::string(method) + ": " + why);
        return false;
    };
    if (bytes == 0) return refuse("length is 0");
    if (bytes > device.model.max_buffer_bytes) {
        return refuse(std::to_string(bytes) + " bytes are more than maxBufferLength (" +
                      std::to_string(device.model.max_buffer_bytes) + ")");
    }
    if ((options & MTLResourceStorageModeMask) >> MTLResourceStorageModeShift == MTLStorageModeMemoryless) {
        return refuse("buffers cannot be memoryless");
    }
    return true;
}

void finish(MetalsimBuffer* buffer, BufferState* state, bool initialised, bool read_only) {
    (void)buffer;
    state->region = memory().add({state->base, state->bytes, "", initialised, read_only});
    metalsim::count(metalsim::counters().buffers_alive);
}

// Whether the host may only read the memory, as of a mapped file: then the device may not write it either.
bool is_read_only(const void* base) {
    std::ifstream maps("/proc/self/maps");
    const auto address = reinterpret_cast<uintptr_t>(base);
    for (std::string line; std::getline(maps, line);) {
        uintptr_t first = 0, end = 0;
        char rights[5] = "";
        if (std::sscanf(line.c_str(), "%lx-%lx %4s", &first, &end, rights) != 3) continue;
        if (address >= first && address < end) return rights[1] != 'w';
    }
    return false;
}

id<MTLBuffer> place_in_heap(id<MTLHeap> heap, HeapState& in, uint64_t offset, NSUInteger length) {
    MetalsimBuffer* buffer = [[MetalsimBuffer alloc] init];
    auto& made = metalsim::attach<BufferState>(buffer);
    made.device = in.device;
    made.owner = in.owner;
    made.base = in.base + offset;
    made.bytes = length;
    made.storage = in.storage;
    made.cache = in.cache;
    made.hazards = in.hazards;
    made.heap = metalsim::Ref<id<MTLHeap>>(heap);
    made.heap_offset = offset;
    finish(buffer, &made, false, false);
    in.add(offset, metalsim::round_up(length, metalsim::kHeapAlignment), made.region);
    return buffer;
}

// Options of a buffer in a heap say what the heap's say, or nothing.
bool matches_heap(const HeapState& heap, MTLResourceOptions options) {
    BufferState wanted;
    set_options(&wanted, options, heap.hazards);
    if (wanted.storage == heap.storage && wanted.cache == heap.cache && wanted.hazards == heap.hazards) return true;
    metalsim::report_misuse("newBufferWithLength:options: of a heap: the options differ from the heap's");
    return false;
}

}  // namespace

namespace metalsim {

id<MTLBuffer> make_buffer(id<MTLDevice> device, uint64_t bytes, MTLResourceOptions options) {
    DeviceState& owner = state<DeviceState>(device);
    if (!valid_length(owner, bytes, options, "newBufferWithLength:options:")) return nil;
    if (take_fault(FaultKind::buffer_allocation)) return nil;
    const uint64_t mapped = round_up(bytes, page_bytes());
    if (!owner.reserve(mapped, false)) return nil;
    std::byte* base = map_pages(mapped);
    if (base == nullptr) {
        owner.unreserve(mapped);
        return nil;
    }
    MetalsimBuffer* buffer = [[MetalsimBuffer alloc] init];
    auto& made = attach<BufferState>(buffer);
    made.device = device;
    made.owner = &owner;
    made.base = base;
    made.bytes = bytes;
    made.owns_memory = true;
    set_options(&made, options, MTLHazardTrackingModeTracked);
    finish(buffer, &made, true, false);  // Metal clears new buffers
    return buffer;
}

id<MTLBuffer> wrap_memory(id<MTLDevice> device, void* base, uint64_t bytes, MTLResourceOptions options,
                          void (^deallocator)(void*, NSUInteger)) {
    DeviceState& owner = state<DeviceState>(device);
    if (!valid_length(owner, bytes, options, "newBufferWithBytesNoCopy")) return nil;
    const bool aligned = reinterpret_cast<uintptr_t>(base) % page_bytes() == 0 && bytes % page_bytes() == 0;
    const auto mode = (options & MTLResourceStorageModeMask) >> MTLResourceStorageModeShift;
    if (!aligned || base == nullptr || mode == MTLStorageModePrivate) {
        report_misuse(std::string("newBufferWithBytesNoCopy: ") +
                      (!aligned          ? "address and length must be multiples of the page size"
                       : base == nullptr ? "null address"
                                         : "storage cannot be private"));
        return nil;
    }
    if (take_fault(FaultKind::buffer_allocation)) return nil;
    owner.reserve(bytes, true);
    MetalsimBuffer* buffer = [[MetalsimBuffer alloc] init];
    auto& made = attach<BufferState>(buffer);
    made.device = device;
    made.owner = &owner;
    made.base = static_cast<std::byte*>(base);
    made.bytes = bytes;
    made.deallocator = BlockRef<void (^)(void*, NSUInteger)>(deallocator);
    set_options(&made, options, MTLHazardTrackingModeTracked);
    finish(buffer, &made, true, is_read_only(base));
    return buffer;
}

id<MTLHeap> make_heap(id<MTLDevice> device, MTLHeapDescriptor* descriptor) {
    DeviceState& owner = state<DeviceState>(device);
    const char* wrong = nullptr;
    if ([descriptor size] == 0) wrong = "size is 0";
    if ([descriptor type] == MTLHeapTypePlacement && !owner.model.placement_heaps) {
        wrong = "this device has no placement heaps";
    }
    if ([descriptor type] == MTLHeapTypeSparse) wrong = "sparse heaps hold textures only";
    if ([descriptor storageMode] == MTLStorageModeManaged || [descriptor storageMode] == MTLStorageModeMemoryless) {
        wrong = "storage must be shared or private";
    }
    if (wrong != nullptr) {
        report_misuse(std::string("newHeapWithDescriptor: ") + wrong);
        return nil;
    }
    if (take_fault(FaultKind::heap_allocation)) return nil;
    const uint64_t bytes = round_up([descriptor size], page_bytes());
    if (!owner.reserve(bytes, false)) return nil;
    std::byte* base = map_pages(bytes);
    if (base == nullptr) {
        owner.unreserve(bytes);
        return nil;
    }
    MetalsimHeap* heap = [[MetalsimHeap alloc] init];
    auto& made = attach<HeapState>(heap);
    made.device = device;
    made.owner = &owner;
    made.base = base;
    made.bytes = bytes;
    made.type = [descriptor type];
    set_options(&made, [descriptor resourceOptions], MTLHazardTrackingModeUntracked);
    made.region = memory().add({base, bytes, "heap", false, false});
    count(counters().heaps_alive);
    return heap;
}

}  // namespace metalsim

namespace {

// Called when an allocation goes away: nothing on the device may still use it.
void check_unused(AllocationState& gone, const char* kind) {
    gone.usage->alive = false;
    if (gone.usage->in_flight == 0) return;
    metalsim::Report report;
    report.problem = metalsim::Problem::use_after_release;
    report.buffer = gone.name();
    report.detail = std::string(kind) + " released while a command buffer with unretained references uses it";
    metalsim::add_report(std::move(report));
}

}  // namespace

#define METALSIM_ALLOCATION                                                \
    -(NSString*)label {                                                    \
        return metalsim::state<AllocationState>(self).get_label();         \
    }                                                                      \
    -(void)setLabel : (NSString*)label {                                   \
        metalsim::state<AllocationState>(self).set_label(label);           \
    }                                                                      \
    -(id<MTLDevice>)device {                                               \
        return metalsim::state<AllocationState>(self).device;              \
    }                                                                      \
    -(MTLStorageMode)storageMode {                                         \
        return metalsim::state<AllocationState>(self).storage;             \
    }                                                                      \
    -(MTLCPUCacheMode)cpuCacheMode {                                       \
        return metalsim::state<AllocationState>(self).cache;               \
    }                                                                      \
    -(MTLHazardTrackingMode)hazardTrackingMode {                           \
        return metalsim::state<AllocationState>(self).hazards;             \
    }                                                                      \
    -(MTLResourceOptions)resourceOptions {                                 \
        return metalsim::state<AllocationState>(self).options();           \
    }                                                                      \
    -(MTLPurgeableState)setPurgeableState : (MTLPurgeableState)wanted {    \
        AllocationState& of = metalsim::state<AllocationState>(self);      \
        const MTLPurgeableState before = of.purgeable;                     \
        if (wanted != MTLPurgeableStateKeepCurrent) of.purgeable = wanted; \
        return before;                                                     \
    }

@implementation MetalsimHeap
METALSIM_ALLOCATION
- (void)dealloc {
    HeapState& heap = metalsim::state<HeapState>(self);
    check_unused(heap, "heap");
    for (const HeapState::Range& range : heap.ranges) memory().forget(range.region);
    metalsim::retire_pages(heap.base, heap.bytes, heap.region);
    heap.owner->unreserve(heap.bytes);
    --metalsim::counters().heaps_alive;
    [super dealloc];
}
- (NSUInteger)size {
    return metalsim::state<HeapState>(self).bytes;
}
- (NSUInteger)allocatedSize {
    return metalsim::state<HeapState>(self).bytes;
}
- (NSUInteger)currentAllocatedSize {
    return metalsim::state<HeapState>(self).bytes;
}
- (NSUInteger)usedSize {
    return metalsim::state<HeapState>(self).used();
}
- (MTLHeapType)type {
    return metalsim::state<HeapState>(self).type;
}
- (NSUInteger)maxAvailableSizeWithAlignment:(NSUInteger)alignment {
    return metalsim::state<HeapState>(self).largest(alignment == 0 ? metalsim::kHeapAlignment : alignment);
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
    HeapState& heap = metalsim::state<HeapState>(self);
    if (heap.type != MTLHeapTypeAutomatic) {
        metalsim::report_misuse("newBufferWithLength:options: of a placement heap: an offset is needed");
        return nil;
    }
    if (!valid_length(*heap.owner, length, options, "newBufferWithLength:options:")) return nil;
    if (!matches_heap(heap, options) || metalsim::take_fault(metalsim::FaultKind::buffer_allocation)) return nil;
    const uint64_t offset = heap.find(metalsim::round_up(length, metalsim::kHeapAlignment), metalsim::kHeapAlignment);
    return offset != UINT64_MAX ? place_in_heap(self, heap, offset, length) : nil;
}
- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options offset:(NSUInteger)offset {
    HeapState& heap = metalsim::state<HeapState>(self);
    const auto refuse = [](const char* why) {
        metalsim::report_misuse(std::string("newBufferWithLength:options:offset: of a heap: ") + why);
        return static_cast<id<MTLBuffer>>(nil);
    };
    if (!valid_length(*heap.owner, length, options, "newBufferWithLength:options:offset:")) return nil;
    if (heap.type != MTLHeapTypePlacement) return refuse("it is no placement heap");
    if (offset % metalsim::kHeapAlignment != 0) return refuse("misaligned offset; see heapBufferSizeAndAlign");
    const uint64_t taken = metalsim::round_up(length, metalsim::kHeapAlignment);
    if (taken > heap.bytes || offset > heap.bytes - taken) return refuse("beyond the heap's end");
    if (!matches_heap(heap, options) || metalsim::take_fault(metalsim::FaultKind::buffer_allocation)) return nil;
    return place_in_heap(self, heap, offset, length);
}
@end

@implementation MetalsimBuffer
METALSIM_ALLOCATION
- (void)dealloc {
    BufferState& buffer = metalsim::state<BufferState>(self);
    check_unused(buffer, "buffer");
    if (buffer.heap) {
        metalsim::state<HeapState>(buffer.heap.get()).remove(buffer.region);
    } else if (buffer.owns_memory) {
        const uint64_t mapped = metalsim::round_up(buffer.bytes, metalsim::page_bytes());
        metalsim::retire_pages(buffer.base, mapped, buffer.region);
        buffer.owner->unreserve(mapped);
    } else {
        if (!metalsim::is_mapped(buffer.base, buffer.bytes)) {
            metalsim::report_misuse("newBufferWithBytesNoCopy: the memory of buffer \"" + buffer.name() +
                                    "\" was unmapped before the buffer was released");
        }
        memory().release(buffer.region);
        memory().forget(buffer.region);
        buffer.owner->unreserve(buffer.bytes);
        if (buffer.deallocator.get() != nullptr) buffer.deallocator.get()(buffer.base, buffer.bytes);
    }
    --metalsim::counters().buffers_alive;
    [super dealloc];
}
- (NSUInteger)length {
    return metalsim::state<BufferState>(self).bytes;
}
- (NSUInteger)allocatedSize {
    return metalsim::round_up(
        [self length], metalsim::state<BufferState>(self).heap ? metalsim::kHeapAlignment : metalsim::page_bytes());
}
- (id<MTLHeap>)heap {
    return metalsim::state<BufferState>(self).heap.get();
}
- (NSUInteger)heapOffset {
    return metalsim::state<BufferState>(self).heap_offset;
}
- (void*)contents {
    BufferState& buffer = metalsim::state<BufferState>(self);
    if (buffer.storage == MTLStorageModePrivate) {
        metalsim::report_misuse("contents of buffer \"" + buffer.name() + "\": its storage is private");
        return nullptr;
    }
    if (!buffer.host_writes.exchange(true)) memory().mark_written(buffer.base, buffer.bytes);
    return buffer.base;
}
- (MTLGPUAddress)gpuAddress {
    return reinterpret_cast<MTLGPUAddress>(metalsim::state<BufferState>(self).base);
}
- (void)didModifyRange:(NSRange)range {
    BufferState& buffer = metalsim::state<BufferState>(self);
    if (buffer.storage != MTLStorageModeManaged) {
        metalsim::report_misuse("didModifyRange: is for managed buffers only");
    } else if (range.location > buffer.bytes || range.length > buffer.bytes - range.location) {
        metalsim::report_misuse("didModifyRange: beyond the buffer's end");
    }
}
- (void)addDebugMarker:(NSString*)marker range:(NSRange)range {
    BufferState& buffer = metalsim::state<BufferState>(self);
    (void)marker;
    if (range.location > buffer.bytes || range.length > buffer.bytes - range.location) {
        metalsim::report_misuse("addDebugMarker:range: beyond the buffer's end");
    }
}
- (void)removeAllDebugMarkers {
}
- (void)makeAliasable {
    BufferState& buffer = metalsim::state<BufferState>(self);
    if (!buffer.heap) return metalsim::report_misuse("makeAliasable: the buffer is in no heap");
    buffer.aliasable = true;
    metalsim::state<HeapState>(buffer.heap.get()).make_aliasable(buffer.region);
}
- (BOOL)isAliasable {
    return metalsim::state<BufferState>(self).aliasable;
}
@end
