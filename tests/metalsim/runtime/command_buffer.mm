#include "runtime/commands.h"
#include "runtime/objects.h"

// Command buffers, as an application sees them.

using metalsim::Command;
using metalsim::CommandBufferState;
using metalsim::Problem;

namespace {

bool committed(CommandBufferState& commands) {
    const std::lock_guard lock(commands.mutex);
    return commands.status >= MTLCommandBufferStatusCommitted;
}

// Whether commands may be added between encoders; reports if not.
bool may_record(CommandBufferState& commands, const char* method) {
    if (committed(commands)) {
        metalsim::report_misuse(std::string(method) + " of a command buffer that was committed");
        return false;
    }
    if (commands.encoding) {
        commands.misuse(Problem::api, "", metalsim::join_scope(commands.groups, "", {}),
                        std::string(method) + " while an encoder is open");
        return false;
    }
    return true;
}

void record_event(CommandBufferState& commands, Command::Kind kind, id<MTLEvent> event, uint64_t value) {
    commands.commands.push_back({kind, static_cast<uint32_t>(commands.events.size())});
    commands.events.push_back({metalsim::state<metalsim::EventState>(event).value, value});
}

void add_handler(CommandBufferState& commands, std::vector<metalsim::Handler> CommandBufferState::* to,
                 MTLCommandBufferHandler block, const char* method) {
    const std::lock_guard lock(commands.mutex);
    if (commands.status >= MTLCommandBufferStatusCommitted) {
        metalsim::report_misuse(std::string(method) + " of a command buffer that was committed");
    } else {
        (commands.*to).emplace_back(block);
    }
}

}  // namespace

@implementation MetalsimCommandBuffer
METALSIM_COPIED(CommandBufferState, NSString*, label, setLabel, label)
- (id<MTLDevice>)device {
    return metalsim::state<CommandBufferState>(self).device;
}
- (id<MTLCommandQueue>)commandQueue {
    return metalsim::state<CommandBufferState>(self).queue.get();
}
- (BOOL)retainedReferences {
    return metalsim::state<CommandBufferState>(self).retains;
}
- (MTLCommandBufferErrorOption)errorOptions {
    return metalsim::state<CommandBufferState>(self).options;
}
#define METALSIM_TIME(getter, field)                                                    \
    -(CFTimeInterval)getter {                                                           \
        CommandBufferState& commands = metalsim::state<CommandBufferState>(self);       \
        const std::lock_guard lock(commands.mutex);                                     \
        return commands.status >= MTLCommandBufferStatusCompleted ? commands.field : 0; \
    }
METALSIM_TIME(kernelStartTime, kernel_start)
METALSIM_TIME(kernelEndTime, kernel_end)
METALSIM_TIME(GPUStartTime, gpu_start)
METALSIM_TIME(GPUEndTime, gpu_end)
- (void)enqueue {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    {
        const std::lock_guard lock(commands.mutex);
        if (commands.status != MTLCommandBufferStatusNotEnqueued) return;
        commands.status = MTLCommandBufferStatusEnqueued;
    }
    metalsim::enqueue(self);
}
- (void)commit {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (committed(commands)) return metalsim::report_misuse("commit of a command buffer that was committed");
    if (commands.encoding) {
        commands.misuse(Problem::api, "", metalsim::join_scope(commands.groups, "", {}),
                        "commit while an encoder is open: endEncoding is missing",
                        static_cast<uint32_t>(commands.encoders.size() - 1));
    }
    if (!commands.groups.empty()) {
        commands.misuse(Problem::api, "", metalsim::join_scope(commands.groups, "", {}),
                        "commit with an open debug group");
    }
    {
        auto& queue = metalsim::state<metalsim::QueueState>(commands.queue.get());
        const std::lock_guard lock(queue.mutex);
        for (const auto& set : queue.sets) {
            commands.resident.push_back(metalsim::state<metalsim::ResidencyState>(set.get()).get());
        }
    }
    commands.observations = commands.owner->observations.load();
    [self enqueue];
    {
        const std::lock_guard lock(commands.mutex);
        commands.status = MTLCommandBufferStatusCommitted;
    }
    metalsim::wake(*commands.core);
}
- (void)addScheduledHandler:(MTLCommandBufferHandler)block {
    add_handler(metalsim::state<CommandBufferState>(self), &CommandBufferState::on_scheduled, block,
                "addScheduledHandler:");
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)block {
    add_handler(metalsim::state<CommandBufferState>(self), &CommandBufferState::on_completed, block,
                "addCompletedHandler:");
}
- (void)waitUntilScheduled {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (!committed(commands)) return metalsim::report_misuse("waitUntilScheduled before commit");
    std::unique_lock lock(commands.mutex);
    commands.change.wait(lock, [&] { return commands.scheduled_handlers_done; });
}
- (void)waitUntilCompleted {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (!committed(commands)) return metalsim::report_misuse("waitUntilCompleted before commit");
    if (metalsim::in_handler_of(self)) {
        return metalsim::report_misuse("waitUntilCompleted in a completion handler of the same command buffer");
    }
    std::unique_lock lock(commands.mutex);
    commands.change.wait(lock, [&] { return commands.completed_handlers_done; });
    commands.see_completion();
}
- (MTLCommandBufferStatus)status {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    const std::lock_guard lock(commands.mutex);
    if (commands.status >= MTLCommandBufferStatusCompleted) commands.see_completion();
    return commands.status;
}
- (NSError*)error {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    const std::lock_guard lock(commands.mutex);
    return [[commands.error.get() retain] autorelease];
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
    return metalsim::make_compute_encoder(self, MTLDispatchTypeSerial, nil);
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)dispatchType {
    return metalsim::make_compute_encoder(self, dispatchType, nil);
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDescriptor:(MTLComputePassDescriptor*)computePassDescriptor {
    return metalsim::make_compute_encoder(self, [computePassDescriptor dispatchType], computePassDescriptor);
}
- (id<MTLBlitCommandEncoder>)blitCommandEncoder {
    return metalsim::make_blit_encoder(self, nil);
}
- (id<MTLBlitCommandEncoder>)blitCommandEncoderWithDescriptor:(MTLBlitPassDescriptor*)blitPassDescriptor {
    return metalsim::make_blit_encoder(self, blitPassDescriptor);
}
- (void)encodeWaitForEvent:(id<MTLEvent>)event value:(uint64_t)value {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (!may_record(commands, "encodeWaitForEvent:value:")) return;
    record_event(commands, Command::Kind::wait, event, value);
}
- (void)encodeSignalEvent:(id<MTLEvent>)event value:(uint64_t)value {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (!may_record(commands, "encodeSignalEvent:value:")) return;
    record_event(commands, Command::Kind::signal, event, value);
}
- (void)pushDebugGroup:(NSString*)string {
    metalsim::state<CommandBufferState>(self).groups.emplace_back(metalsim::text_of(string));
}
- (void)popDebugGroup {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (commands.groups.empty()) {
        return commands.misuse(Problem::api, "", "", "popDebugGroup without pushDebugGroup");
    }
    commands.groups.pop_back();
}
- (void)useResidencySet:(id<MTLResidencySet>)residencySet {
    CommandBufferState& commands = metalsim::state<CommandBufferState>(self);
    if (committed(commands)) return metalsim::report_misuse("useResidencySet: of a command buffer that was committed");
    if (commands.resident.size() == metalsim::kMostResidencySets) {
        return commands.misuse(Problem::limit, "", "",
                               "useResidencySet: a command buffer takes at most 32 residency sets");
    }
    commands.resident.push_back(metalsim::state<metalsim::ResidencyState>(residencySet).get());
}
- (void)useResidencySets:(const id<MTLResidencySet>[])residencySets count:(NSUInteger)count {
    for (NSUInteger i = 0; i < count; ++i) [self useResidencySet:residencySets[i]];
}
@end
