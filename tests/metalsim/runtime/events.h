#pragma once

#import <Metal/Metal.h>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/object.h"
#include "runtime/state.h"

namespace metalsim {

// The value of an event; command buffers that wait for it or signal it share it with the Metal object.
class EventValue {
  public:
    uint64_t value();
    // From a command buffer: the value never falls. From the host: what is set.
    void raise(uint64_t value);
    void set(uint64_t value);
    // False after `milliseconds`.
    bool wait(uint64_t value, uint64_t milliseconds);
    // Calls back once the value is reached, on the thread that brings it there.
    void when(uint64_t value, std::function<void(uint64_t)> call);

  private:
    void announce(std::unique_lock<std::mutex>& lock);

    std::mutex mutex_;
    std::condition_variable change_;
    uint64_t value_ = 0;
    std::multimap<uint64_t, std::function<void(uint64_t)>> waiting_;
};

struct EventState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<EventValue> value = std::make_shared<EventValue>();
    Ref<NSString*> label;
};

// The epoch of execution (see DeviceState) in which a fence was last updated.
struct FenceValue {
    std::atomic<uint64_t> epoch{0};
};

struct FenceState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<FenceValue> value = std::make_shared<FenceValue>();
    Ref<NSString*> label;
};

// Samples, written by the device.
struct SampleBufferState : Counted {
    id<MTLDevice> device = nil;
    std::shared_ptr<std::vector<std::atomic<uint64_t>>> samples;
    Ref<NSString*> label;
};

id<MTLCounterSampleBuffer> make_sample_buffer(id<MTLDevice> device, MTLCounterSampleBufferDescriptor* descriptor,
                                              NSError** error);
NSArray* make_counter_sets();

// What a residency set made resident when it was last committed.
struct Resident {
    struct Entry {
        uint64_t region = 0;
        uint64_t bytes = 0;
        Ref<id<MTLAllocation>> allocation;
    };
    std::vector<Entry> entries;
};

struct ResidencyState : Counted {
    id<MTLDevice> device = nil;
    Ref<NSString*> label;
    std::mutex mutex;
    std::vector<Ref<id<MTLAllocation>>> pending;
    std::shared_ptr<const Resident> committed = std::make_shared<Resident>();

    std::shared_ptr<const Resident> get();
};

}  // namespace metalsim
