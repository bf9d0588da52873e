#include "runtime/events.h"

#include "runtime/objects.h"

// Events, shared events and their listeners, fences.

namespace metalsim {

uint64_t EventValue::value() {
    const std::lock_guard lock(mutex_);
    return value_;
}

void EventValue::raise(uint64_t value) {
    std::unique_lock lock(mutex_);
    value_ = std::max(value_, value);
    announce(lock);
}

void EventValue::set(uint64_t value) {
    std::unique_lock lock(mutex_);
    value_ = value;
    announce(lock);
}

void EventValue::announce(std::unique_lock<std::mutex>& lock) {
    change_.notify_all();
    std::vector<std::function<void(uint64_t)>> due;
    const auto end = waiting_.upper_bound(value_);
    for (auto at = waiting_.begin(); at != end; ++at) due.push_back(std::move(at->second));
    waiting_.erase(waiting_.begin(), end);
    const uint64_t now = value_;
    lock.unlock();
    for (const auto& call : due) call(now);
}

bool EventValue::wait(uint64_t value, uint64_t milliseconds) {
    std::unique_lock lock(mutex_);
    const auto reached = [&] { return value_ >= value; };
    // A longer wait overflows the clock.
    constexpr uint64_t kLongest = uint64_t{1000} * 60 * 60 * 24 * 365;
    return change_.wait_for(lock, std::chrono::milliseconds(std::min(milliseconds, kLongest)), reached);
}

void EventValue::when(uint64_t value, std::function<void(uint64_t)> call) {
    std::unique_lock lock(mutex_);
    waiting_.emplace(value, std::move(call));
    announce(lock);
}

}  // namespace metalsim

using metalsim::EventState;
using metalsim::FenceState;

namespace {

struct Listener : metalsim::Counted {
    dispatch_queue_t queue = nullptr;
    ~Listener() { dispatch_release(queue); }
};

}  // namespace

@implementation MetalsimFence
METALSIM_COPIED(FenceState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<FenceState>(self).device;
}
@end

@implementation MetalsimEvent
METALSIM_COPIED(EventState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<EventState>(self).device;
}
@end

@implementation MetalsimSharedEvent
METALSIM_COPIED(EventState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<EventState>(self).device;
}
- (uint64_t)signaledValue {
    return metalsim::state<EventState>(self).value->value();
}
- (void)setSignaledValue:(uint64_t)value {
    metalsim::state<EventState>(self).value->set(value);
}
- (BOOL)waitUntilSignaledValue:(uint64_t)value timeoutMS:(uint64_t)milliseconds {
    return metalsim::state<EventState>(self).value->wait(value, milliseconds);
}
- (void)notifyListener:(MTLSharedEventListener*)listener
               atValue:(uint64_t)value
                 block:(MTLSharedEventNotificationBlock)block {
    // The event lives at least until it has called back.
    metalsim::Ref<id<MTLSharedEvent>> event(self);
    metalsim::Ref<MTLSharedEventListener*> kept(listener);
    metalsim::BlockRef<MTLSharedEventNotificationBlock> call(block);
    metalsim::state<EventState>(self).value->when(value, [event, kept, call](uint64_t now) {
        id<MTLSharedEvent> signalled = event.get();
        MTLSharedEventNotificationBlock notify = call.get();
        dispatch_async([kept.get() dispatchQueue], ^{
          notify(signalled, now);
        });
    });
}
@end

@implementation MTLSharedEventListener
+ (MTLSharedEventListener*)sharedListener {
    static MTLSharedEventListener* const shared = [[MTLSharedEventListener alloc] init];
    return shared;
}
- (instancetype)init {
    dispatch_queue_t queue = dispatch_queue_create("shared events", nullptr);
    self = [self initWithDispatchQueue:queue];
    dispatch_release(queue);
    return self;
}
- (instancetype)initWithDispatchQueue:(dispatch_queue_t)dispatchQueue {
    self = [super init];
    if (self == nil) return nil;
    dispatch_retain(dispatchQueue);
    metalsim::attach<Listener>(self).queue = dispatchQueue;
    return self;
}
- (dispatch_queue_t)dispatchQueue {
    return metalsim::state<Listener>(self).queue;
}
@end
