#pragma once

#import <Metal/Metal.h>

#include <cstdint>
#include <span>
#include <vector>

#include "backend/metal/objc_ref.h"
#include "trace/events.h"

namespace metallic::metal {

// When the GPU ran the parts of one submission, by counter samples at the start and the end of each encoder: Apple's
// GPUs sample at stage boundaries only, so that a part that is to be timed gets an encoder of its own.
class StepClock {
  public:
    // For at most `parts` parts.
    StepClock(id<MTLDevice> device, uint32_t parts);

    // Samples that one buffer may hold: 32 KiB of timestamps.
    static constexpr uint32_t kMostParts = 32768 / sizeof(uint64_t) / 2;
    static bool supported(id<MTLDevice> device);

    explicit operator bool() const noexcept { return static_cast<bool>(samples_); }
    // Before the submission is committed.
    void start();
    // How to make the encoder of a part.
    MTLComputePassDescriptor* pass(uint32_t part);

    struct Span {
        uint64_t start_ns = 0, duration_ns = 0;  // by now_ns; 0, 0: unknown
    };
    // After it has ended: by part, valid until the next call.
    std::span<const Span> read(uint32_t parts);

  private:
    struct Moment {
        uint64_t host_ns = 0;
        MTLTimestamp gpu = 0;
    };
    Moment now() const;

    id<MTLDevice> device_;
    Ref<id<MTLCounterSampleBuffer>> samples_;
    Ref<MTLComputePassDescriptor*> pass_;
    Moment start_;
    std::vector<Span> spans_;
};

}  // namespace metallic::metal
