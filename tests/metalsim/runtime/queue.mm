#include <pthread.h>

#include <thread>

#include "core/signals.h"
#include "runtime/commands.h"
#include "runtime/objects.h"

// Command queues: one thread runs the command buffers in order, one calls their handlers.

NSErrorDomain const MTLCommandBufferErrorDomain = @"MTLCommandBufferErrorDomain";
NSErrorUserInfoKey const MTLCommandBufferEncoderInfoErrorKey = @"MTLCommandBufferEncoderInfoErrorKey";

using metalsim::CommandBufferState;
using metalsim::QueueState;
using metalsim::ResidencyState;

namespace metalsim {
namespace {

struct EncoderInfoState {
    Ref<NSString*> label;
    Ref<NSArray*> signposts;
    MTLCommandEncoderErrorState state;
};

const char* error_name(MTLCommandBufferError code) {
    switch (code) {
        case MTLCommandBufferErrorTimeout:
            return "Caused GPU Timeout Error";
        case MTLCommandBufferErrorPageFault:
            return "Caused GPU Address Fault Error";
        case MTLCommandBufferErrorAccessRevoked:
            return "Access Revoked";
        case MTLCommandBufferErrorNotPermitted:
            return "Insufficient Permission";
        case MTLCommandBufferErrorOutOfMemory:
            return "Insufficient Memory";
        case MTLCommandBufferErrorInvalidResource:
            return "Invalid Resource";
        case MTLCommandBufferErrorDeviceRemoved:
            return "Device Removed";
        case MTLCommandBufferErrorStackOverflow:
            return "Stack Overflow";
        default:
            return "Internal Error";
    }
}

NSError* error_of(const CommandBufferState& commands) {
    const Failure& failure = *commands.failure;
    NSDictionary* more = nil;
    if ((commands.options & MTLCommandBufferErrorOptionEncoderExecutionStatus) != 0) {
        std::vector<id> infos;
        for (const EncoderRecord& encoder : commands.encoders) {
            std::vector<id> signposts;
            for (const std::string& signpost : encoder.signposts) signposts.push_back(string_of(signpost));
            MetalsimEncoderInfo* info = [[[MetalsimEncoderInfo alloc] init] autorelease];
            attach<EncoderInfoState>(info, Ref<NSString*>(string_of(encoder.label)),
                                     Ref<NSArray*>([NSArray arrayWithObjects:signposts.data() count:signposts.size()]),
                                     encoder.state);
            infos.push_back(info);
        }
        NSArray* all = [NSArray arrayWithObjects:infos.data() count:infos.size()];
        more = [NSDictionary dictionaryWithObject:all forKey:MTLCommandBufferEncoderInfoErrorKey];
    }
    const std::string text = std::string(error_name(failure.code)) + ": " + failure.text;
    return make_error(MTLCommandBufferErrorDomain, static_cast<NSInteger>(failure.code), text, more);
}

void hand_over(QueueCore& core, id buffer, bool completed) {
    const std::lock_guard lock(core.mutex);
    core.handlers.emplace_back([buffer retain], completed);
    core.change.notify_all();
}

// Ends one phase; its handlers, if there are any, run on the other thread.
void announce(QueueCore& core, id buffer, MTLCommandBufferStatus status) {
    CommandBufferState& commands = state<CommandBufferState>(buffer);
    const bool completed = status >= MTLCommandBufferStatusCompleted;
    bool handlers = false;
    {
        const std::lock_guard lock(commands.mutex);
        commands.status = status;
        handlers = !(completed ? commands.on_completed : commands.on_scheduled).empty();
        // Handlers of the two phases run in turn: those of completion wait for those of scheduling.
        handlers = handlers || (completed && !commands.scheduled_handlers_done);
        if (!handlers) (completed ? commands.completed_handlers_done : commands.scheduled_handlers_done) = true;
        commands.change.notify_all();
    }
    if (handlers) hand_over(core, buffer, completed);
}

void run_command_buffer(QueueCore& core, id buffer) {
    CommandBufferState& commands = state<CommandBufferState>(buffer);
    commands.kernel_start = seconds_now();
    announce(core, buffer, MTLCommandBufferStatusScheduled);
    commands.kernel_end = commands.gpu_start = seconds_now();
    execute(commands);
    if (const auto fault = take_fault(FaultKind::slow_completion)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(fault->milliseconds));
    }
    commands.gpu_end = seconds_now();
    const bool failed = commands.failed();
    if (failed) {
        Ref<NSError*> error(error_of(commands));
        const std::lock_guard lock(commands.mutex);
        commands.error = std::move(error);
    }
    commands.let_go();
    free_slot(commands);
    announce(core, buffer, failed ? MTLCommandBufferStatusError : MTLCommandBufferStatusCompleted);
}

// The next command buffer of the order, once it was committed; nil when the queue is closed.
id next_command_buffer(QueueCore& core) {
    std::unique_lock lock(core.mutex);
    for (;;) {
        if (!core.order.empty()) {
            id first = core.order.front();
            CommandBufferState& commands = state<CommandBufferState>(first);
            const std::lock_guard inner(commands.mutex);
            if (commands.status >= MTLCommandBufferStatusCommitted) {
                core.order.pop_front();
                return first;
            }
        } else if (core.closed) {
            return nil;
        }
        core.change.wait(lock);
    }
}

void run_queue(const std::shared_ptr<QueueCore>& core) {
    while (id buffer = next_command_buffer(*core)) {
        @autoreleasepool {
            run_command_buffer(*core, buffer);
        }
        [buffer release];
    }
    const std::lock_guard lock(core->mutex);
    core->worker_ended = true;
    core->change.notify_all();
}

// The command buffer whose completion handlers this thread is calling.
thread_local id handled_here = nil;

void call_handlers(id buffer, bool completed) {
    CommandBufferState& commands = state<CommandBufferState>(buffer);
    std::vector<Handler> handlers;
    {
        const std::lock_guard lock(commands.mutex);
        handlers.swap(completed ? commands.on_completed : commands.on_scheduled);
        if (completed) commands.see_completion();
    }
    handled_here = completed ? buffer : nil;
    for (const Handler& handler : handlers) handler.get()(buffer);
    handlers.clear();
    handled_here = nil;
    const std::lock_guard lock(commands.mutex);
    (completed ? commands.completed_handlers_done : commands.scheduled_handlers_done) = true;
    commands.change.notify_all();
}

void run_handlers(const std::shared_ptr<QueueCore>& core) {
    for (;;) {
        std::pair<id, bool> next;
        {
            std::unique_lock lock(core->mutex);
            core->change.wait(lock, [&] { return !core->handlers.empty() || core->worker_ended; });
            if (core->handlers.empty()) return;
            next = core->handlers.front();
            core->handlers.pop_front();
        }
        @autoreleasepool {
            call_handlers(next.first, next.second);
            [next.first release];
        }
    }
}

// With the queue's mutex held.
void start_threads(const std::shared_ptr<QueueCore>& core) {
    if (std::exchange(core->started, true)) return;
    const metallic::SignalsBlocked blocked;
    std::thread([core] { run_queue(core); }).detach();
    std::thread([core] { run_handlers(core); }).detach();
}

}  // namespace

QueueState::~QueueState() {
    const std::lock_guard lock(core->mutex);
    core->closed = true;
    core->change.notify_all();
}

id<MTLCommandQueue> make_queue(id<MTLDevice> device, NSUInteger limit) {
    if (limit == 0) {
        report_misuse("a command queue for 0 command buffers");
        return nil;
    }
    MetalsimCommandQueue* queue = [[MetalsimCommandQueue alloc] init];
    auto& made = attach<QueueState>(queue);
    made.device = device;
    made.core->limit = limit;
    return queue;
}

bool in_handler_of(id command_buffer) {
    return handled_here == command_buffer;
}

void enqueue(id command_buffer) {
    CommandBufferState& commands = state<CommandBufferState>(command_buffer);
    QueueCore& core = *commands.core;
    const std::lock_guard lock(core.mutex);
    core.order.push_back([command_buffer retain]);
    start_threads(commands.core);
}

void wake(QueueCore& core) {
    const std::lock_guard lock(core.mutex);
    core.change.notify_all();
}

void free_slot(CommandBufferState& commands) {
    QueueCore& core = *commands.core;
    const std::lock_guard lock(core.mutex);
    if (std::exchange(commands.has_slot, false)) --core.taken;
    core.change.notify_all();
}

id<MTLCommandBuffer> make_command_buffer(id<MTLCommandQueue> queue, bool retains, MTLCommandBufferErrorOption options) {
    static std::atomic<uint64_t> next_serial{1};
    QueueState& of = state<QueueState>(queue);
    DeviceState& device = state<DeviceState>(of.device);
    {
        std::unique_lock lock(of.core->mutex);
        const auto patience = std::chrono::milliseconds(device.model.stall_milliseconds);
        if (!of.core->change.wait_for(lock, patience, [&] { return of.core->taken < of.core->limit; })) {
            lock.unlock();
            report_misuse("commandBuffer: none of the queue's " + std::to_string(of.core->limit) +
                          " command buffers completed");
            return nil;
        }
        ++of.core->taken;
    }
    MetalsimCommandBuffer* buffer = [[MetalsimCommandBuffer alloc] init];
    auto& made = attach<CommandBufferState>(buffer);
    made.device = of.device;
    made.owner = &device;
    made.queue = Ref<id<MTLCommandQueue>>(queue);
    made.core = of.core;
    made.retains = retains;
    made.options = options;
    made.serial = next_serial++;
    made.has_slot = true;
    return [buffer autorelease];
}

}  // namespace metalsim

@implementation MetalsimEncoderInfo
- (NSString*)label {
    return metalsim::state<metalsim::EncoderInfoState>(self).label.get();
}
- (NSArray<NSString*>*)debugSignposts {
    return metalsim::state<metalsim::EncoderInfoState>(self).signposts.get();
}
- (MTLCommandEncoderErrorState)errorState {
    return metalsim::state<metalsim::EncoderInfoState>(self).state;
}
@end

@implementation MetalsimCommandQueue
METALSIM_COPIED(QueueState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<QueueState>(self).device;
}
- (id<MTLCommandBuffer>)commandBuffer {
    return metalsim::make_command_buffer(self, true, MTLCommandBufferErrorOptionNone);
}
- (id<MTLCommandBuffer>)commandBufferWithUnretainedReferences {
    return metalsim::make_command_buffer(self, false, MTLCommandBufferErrorOptionNone);
}
- (id<MTLCommandBuffer>)commandBufferWithDescriptor:(MTLCommandBufferDescriptor*)descriptor {
    return metalsim::make_command_buffer(self, [descriptor retainedReferences], [descriptor errorOptions]);
}
- (void)addResidencySet:(id<MTLResidencySet>)residencySet {
    QueueState& queue = metalsim::state<QueueState>(self);
    const std::lock_guard lock(queue.mutex);
    for (const auto& held : queue.sets) {
        if (held.get() == residencySet) return;
    }
    if (queue.sets.size() == metalsim::kMostResidencySets) {
        return metalsim::report_misuse("addResidencySet: a queue takes at most 32 residency sets");
    }
    queue.sets.emplace_back(residencySet);
}
- (void)addResidencySets:(const id<MTLResidencySet>[])residencySets count:(NSUInteger)count {
    for (NSUInteger i = 0; i < count; ++i) [self addResidencySet:residencySets[i]];
}
- (void)removeResidencySet:(id<MTLResidencySet>)residencySet {
    QueueState& queue = metalsim::state<QueueState>(self);
    const std::lock_guard lock(queue.mutex);
    std::erase_if(queue.sets, [&](const auto& held) { return held.get() == residencySet; });
}
- (void)removeResidencySets:(const id<MTLResidencySet>[])residencySets count:(NSUInteger)count {
    for (NSUInteger i = 0; i < count; ++i) [self removeResidencySet:residencySets[i]];
}
@end
