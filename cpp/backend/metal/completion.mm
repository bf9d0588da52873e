#include "backend/metal/completion.h"

#include <Block.h>

#include "trace/events.h"

namespace metallic::metal {

// Metal keeps a copy of each handler; of a block that is on the heap already that is a count. The block copies the
// parameters, which it would not if they were references.
MTLCommandBufferHandler Completion::make_handler(std::shared_ptr<State> state, std::shared_ptr<Progress> progress) {
    return Block_copy(^(id<MTLCommandBuffer> buffer) {
      const AutoreleasePool pool;
      {  // first, so that who has waited for the buffer below finds it among those that have ended
          const std::lock_guard lock(progress->mutex);
          ++progress->ended;
          progress->changed.notify_all();
      }
      const std::lock_guard lock(state->mutex);
      state->outcome.error = Ref<NSError*>::share([buffer error]);
      state->outcome.gpu_seconds = [buffer GPUEndTime] - [buffer GPUStartTime];
      state->outcome.end_ns = now_ns();
      state->ended = state->watched;
      state->changed.notify_all();
    });
}

Completion::Completion(const std::shared_ptr<Progress>& progress)
    : state_(std::make_shared<State>()), handler_(make_handler(state_, progress)) {}

Completion::~Completion() {
    Block_release(handler_);
}

uint64_t Completion::watch(id<MTLCommandBuffer> buffer) {
    [buffer addCompletedHandler:handler_];
    const std::lock_guard lock(state_->mutex);
    return ++state_->watched;
}

void Completion::wait(uint64_t number) const {
    std::unique_lock lock(state_->mutex);
    state_->changed.wait(lock, [&] { return state_->ended >= number; });
}

bool Completion::wait_for(uint64_t number, std::chrono::milliseconds time) const {
    std::unique_lock lock(state_->mutex);
    return state_->changed.wait_for(lock, time, [&] { return state_->ended >= number; });
}

Outcome Completion::outcome() const {
    const std::lock_guard lock(state_->mutex);
    return state_->outcome;
}

}  // namespace metallic::metal
