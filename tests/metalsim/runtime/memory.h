#pragma once

#import <Metal/Metal.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "executor/executor.h"
#include "runtime/object.h"
#include "runtime/state.h"

// Device memory: ranges of host memory that the executor's checks know. Released ranges stay mapped for a while, so
// that a late access is reported and does no harm.
namespace metalsim {

struct DeviceState {
    DeviceModel model;
    std::mutex mutex;
    uint64_t allocated = 0;
    std::atomic<bool> lost{false};
    std::atomic<uint64_t> observations{0};  // how often the host saw work complete

    // One launch or blit at a time, so that reports belong to the command buffer that made them. What follows is under
    // it, and says what has not been ordered yet.
    std::mutex execution;
    uint64_t epoch = 1;           // of everything up to the last order
    bool tracked_writes = false;  // in this epoch
    uint64_t ordered_observations = 0;

    // Counts an allocation; false if it does not fit. A view of host memory always fits.
    bool reserve(uint64_t bytes, bool always);
    void unreserve(uint64_t bytes);
};

// Whether somebody uses an object without holding it: command buffers with unretained references share this with it.
struct Usage {
    std::atomic<bool> alive{true};
    std::atomic<uint32_t> in_flight{0};
};

// What buffers and heaps have in common.
struct AllocationState : Counted {
    id<MTLDevice> device = nil;
    DeviceState* owner = nullptr;
    std::byte* base = nullptr;
    uint64_t bytes = 0;
    Memory::Id region = 0;
    MTLStorageMode storage = MTLStorageModeShared;
    MTLCPUCacheMode cache = MTLCPUCacheModeDefaultCache;
    MTLHazardTrackingMode hazards = MTLHazardTrackingModeTracked;
    MTLPurgeableState purgeable = MTLPurgeableStateNonVolatile;
    std::shared_ptr<Usage> usage = std::make_shared<Usage>();
    std::mutex label_mutex;
    Ref<NSString*> label;
    std::atomic<uint64_t> seen_by{0};  // the serial of the command buffer that keeps it

    MTLResourceOptions options() const noexcept {
        return cache << MTLResourceCPUCacheModeShift | storage << MTLResourceStorageModeShift |
               hazards << MTLResourceHazardTrackingModeShift;
    }
    void set_label(NSString* text);
    NSString* get_label();
    std::string name();  // for reports
};

struct HeapState : AllocationState {
    MTLHeapType type = MTLHeapTypeAutomatic;
    struct Range {
        uint64_t offset, bytes;
        Memory::Id region;
        bool alive, aliasable;
    };
    std::mutex mutex;
    std::vector<Range> ranges;

    uint64_t used() noexcept;
    // Of an automatic heap: the first place that fits; UINT64_MAX if there is none.
    uint64_t find(uint64_t bytes, uint64_t alignment);
    uint64_t largest(uint64_t alignment);
    void add(uint64_t offset, uint64_t bytes, Memory::Id region);
    void remove(Memory::Id region);
    void make_aliasable(Memory::Id region);
};

struct BufferState : AllocationState {
    Ref<id<MTLHeap>> heap;
    uint64_t heap_offset = 0;
    bool owns_memory = false;
    bool aliasable = false;
    BlockRef<void (^)(void*, NSUInteger)> deallocator;
    std::atomic<bool> host_writes{false};  // contents was asked for: the host may have written anything
};

constexpr uint64_t kHeapAlignment = 256;
uint64_t page_bytes() noexcept;
inline uint64_t round_up(uint64_t value, uint64_t to) noexcept {
    return (value + to - 1) / to * to;
}

// Whether the host has memory at these pages.
bool is_mapped(const std::byte* base, uint64_t bytes) noexcept;
// Zeroed pages; null if the system has none.
std::byte* map_pages(uint64_t bytes);
// Marks the region as released and gives its pages back; the addresses stay taken until newer ones push them out.
void retire_pages(std::byte* base, uint64_t bytes, Memory::Id region);

// An allocation of the device; nil if it fails.
id<MTLBuffer> make_buffer(id<MTLDevice> device, uint64_t bytes, MTLResourceOptions options);
id<MTLBuffer> wrap_memory(id<MTLDevice> device, void* base, uint64_t bytes, MTLResourceOptions options,
                          void (^deallocator)(void*, NSUInteger));
id<MTLHeap> make_heap(id<MTLDevice> device, MTLHeapDescriptor* descriptor);

}  // namespace metalsim
