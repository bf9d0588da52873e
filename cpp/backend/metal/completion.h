#pragma once

#import <Metal/Metal.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

#include "backend/metal/objc_ref.h"

namespace metallic::metal {

// How a command buffer ended.
struct Outcome {
    Ref<NSError*> error;  // none: it succeeded
    double gpu_seconds = 0;
    uint64_t end_ns = 0;  // by now_ns, when the end was seen
};

// How many command buffers of a queue were committed, and have ended; how many are being encoded, of which each is
// committed next or dropped.
struct Progress {
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t committed = 0, ended = 0, encoding = 0;
};

// The end of one command buffer after another, as seen by any thread. The handler that Metal calls is made once and
// outlives this object where it must.
class Completion {
  public:
    explicit Completion(const std::shared_ptr<Progress>& progress);
    ~Completion();
    Completion(const Completion&) = delete;
    Completion& operator=(const Completion&) = delete;

    // The command buffer, which is committed next, is the one that is waited for from now on; the one before has ended.
    // Returns its number.
    uint64_t watch(id<MTLCommandBuffer> buffer);
    void wait(uint64_t number) const;
    // False when the time ran out.
    bool wait_for(uint64_t number, std::chrono::milliseconds time) const;
    bool ended(uint64_t number) const { return wait_for(number, std::chrono::milliseconds(0)); }
    Outcome outcome() const;

  private:
    struct State {
        mutable std::mutex mutex;
        std::condition_variable changed;
        uint64_t watched = 0, ended = 0;
        Outcome outcome;
    };
    static MTLCommandBufferHandler make_handler(std::shared_ptr<State> state, std::shared_ptr<Progress> progress);

    const std::shared_ptr<State> state_;
    const MTLCommandBufferHandler handler_;
};

}  // namespace metallic::metal
