#include <algorithm>
#include <cstring>

#include "runtime/commands.h"

// Runs what command buffers have recorded.

namespace metalsim {
namespace {

class Execution {
  public:
    explicit Execution(CommandBufferState& commands) : commands_(commands), device_(*commands.owner) {}

    void run() {
        for (const Command& command : commands_.commands) {
            step(command);
            if (commands_.failed()) return blame();
        }
    }

  private:
    void step(const Command& command) {
        switch (command.kind) {
            case Command::Kind::begin_encoder:
                return begin(command.index);
            case Command::Kind::end_encoder:
                return end();
            case Command::Kind::dispatch:
                return dispatch(commands_.dispatches[command.index]);
            case Command::Kind::blit:
                return blit(commands_.blits[command.index]);
            case Command::Kind::barrier: {
                const std::lock_guard lock(device_.execution);
                return order();
            }
            case Command::Kind::signal:
                return commands_.events[command.index].event->raise(commands_.events[command.index].value);
            case Command::Kind::wait:
                return wait(commands_.events[command.index]);
        }
    }

    // With the execution mutex held, as everything below that touches the executor.
    void order() {
        executor().order();
        ++device_.epoch;
        device_.tracked_writes = false;
        device_.ordered_observations = device_.observations.load();
    }

    // Encoders follow each other only where something says so: Metal itself, for the resources that it tracks; a fence
    // or an event; or the host, which has seen earlier work complete before it committed this.
    void begin(uint32_t index) {
        EncoderRecord& encoder = commands_.encoders[index];
        encoder_ = index;
        encoder.state = MTLCommandEncoderErrorStateAffected;
        for (const SampleStep& sample : encoder.samples) take_sample(sample, sample.start);
        const std::lock_guard lock(device_.execution);
        bool needed = device_.tracked_writes || encoder.writes_tracked;
        needed = needed || commands_.observations > device_.ordered_observations;
        for (const auto& fence : encoder.waits) needed = needed || fence->epoch == device_.epoch;
        if (needed) order();
        first_dispatch_ = true;
    }

    void end() {
        EncoderRecord& encoder = commands_.encoders[*encoder_];
        {
            const std::lock_guard lock(device_.execution);
            device_.tracked_writes = device_.tracked_writes || encoder.writes_tracked;
            for (const auto& fence : encoder.updates) fence->epoch = device_.epoch;
        }
        for (const SampleStep& sample : encoder.samples) take_sample(sample, sample.end);
        encoder.state = MTLCommandEncoderErrorStateCompleted;
        encoder_.reset();
    }

    static void take_sample(const SampleStep& step, NSUInteger index) {
        if (index != MTLCounterDontSample) (*step.samples)[index] = nanoseconds_now();
    }

    void wait(const EventStep& step) {
        const uint32_t patience = device_.model.stall_milliseconds;
        if (!step.event->wait(step.value, patience)) {
            commands_.fail({MTLCommandBufferErrorTimeout,
                            "waited " + std::to_string(patience) + " ms for an event's value " +
                                std::to_string(step.value) + "; it is " + std::to_string(step.event->value()),
                            encoder_});
            return;
        }
        const std::lock_guard lock(device_.execution);
        order();
    }

    void dispatch(const Dispatch& what) {
        count(counters().dispatches);
        const PipelineData& pipeline = *what.pipeline;
        if (pipeline.mode == Mode::none) return;
        MetalsimArguments arguments{};
        for (uint32_t i = 0; i < what.bound_count; ++i) {
            const Bound& bound = commands_.bound[what.first_bound + i];
            arguments.buffers[bound.index] = bound.at;
            arguments.buffer_bytes[bound.index] = bound.bytes;
        }
        for (uint32_t i = 0; i < what.length_count; ++i) {
            const auto& [index, bytes] = commands_.lengths[what.first_length + i];
            arguments.threadgroup_bytes[index] = bytes;
        }
        arguments.function_constants = pipeline.constants.data();
        Launch launch;
        launch.function = pipeline.function;
        launch.arguments = &arguments;
        launch.threads_per_threadgroup = what.threads_per_threadgroup;
        launch.threadgroups = what.threadgroups;
        launch.threads = what.threads;
        launch.scope = commands_.scopes[what.scope];
        const std::lock_guard lock(device_.execution);
        if (what.indirect != nullptr && !read_indirect(what, &launch)) return;
        if (pipeline.mode == Mode::checked) {
            find_resident(what);
            launch.resident = &resident_;
            launch.writable = &writable_;
        }
        if (commands_.encoders[*encoder_].serial && !first_dispatch_) order();
        first_dispatch_ = false;
        if (!executor().run(launch)) collect_reports();
    }

    // Sizes that the device reads. None of them may be 0 or too large to be a grid.
    bool read_indirect(const Dispatch& what, Launch* launch) {
        MTLDispatchThreadgroupsIndirectArguments sizes;
        std::memcpy(&sizes, what.indirect, sizeof sizes);
        executor().touch(what.indirect, sizeof sizes, false, commands_.scopes[what.scope]);
        launch->threadgroups = {sizes.threadgroupsPerGrid[0], sizes.threadgroupsPerGrid[1],
                                sizes.threadgroupsPerGrid[2]};
        return launch->threadgroups.count() != 0;
    }

    // What the dispatch may touch. The list of an encoder changes seldom, that of a dispatch is merged into it.
    void find_resident(const Dispatch& what) {
        writable_.clear();
        const EncoderRecord& encoder = commands_.encoders[*encoder_];
        for (const auto& set : commands_.resident) {
            for (const auto& entry : set->entries) writable_.push_back(entry.region);
        }
        for (uint32_t i = 0; i < what.bound_count; ++i) {
            const Memory::Id region = commands_.bound[what.first_bound + i].region;
            if (region != 0) writable_.push_back(region);
        }
        resident_ = writable_;
        for (uint32_t i = 0; i < what.used_count; ++i) {
            resident_.push_back(encoder.used[i].region);
            if (encoder.used[i].writes) writable_.push_back(encoder.used[i].region);
        }
        for (auto* const ids : {&resident_, &writable_}) {
            std::sort(ids->begin(), ids->end());
            ids->erase(std::unique(ids->begin(), ids->end()), ids->end());
        }
    }

    void blit(const Blit& what) {
        count(counters().blits);
        const std::string& scope = commands_.scopes[what.scope];
        const std::lock_guard lock(device_.execution);
        if (!first_dispatch_) order();
        first_dispatch_ = false;
        if (what.kind == Blit::Kind::copy) {
            executor().touch(what.from, what.bytes, false, scope);
            executor().touch(what.to, what.bytes, true, scope);
            std::memmove(what.to, what.from, what.bytes);
        } else if (what.kind == Blit::Kind::fill) {
            executor().touch(what.to, what.bytes, true, scope);
            std::memset(what.to, what.value, what.bytes);
        } else {
            executor().touch(what.to, what.bytes, true, scope);
            for (NSUInteger i = 0; i < what.range.length; ++i) {
                const uint64_t stamp = (*what.samples)[what.range.location + i];
                std::memcpy(what.to + i * sizeof stamp, &stamp, sizeof stamp);
            }
        }
        executor().memory().mark_written(what.to, what.bytes);
        collect_reports();
    }

    void collect_reports() {
        for (Report& report : executor().take_reports()) {
            commands_.fail({MTLCommandBufferErrorInvalidResource, report.text(), encoder_});
            add_report(std::move(report));
        }
    }

    // States of the encoders of a command buffer that failed.
    void blame() {
        if (encoder_) commands_.encoders[*encoder_].state = MTLCommandEncoderErrorStateFaulted;
    }

    CommandBufferState& commands_;
    DeviceState& device_;
    std::optional<uint32_t> encoder_;
    bool first_dispatch_ = true;
    std::vector<Memory::Id> resident_, writable_;
};

// What keeps a command buffer from running at all.
void check_before(CommandBufferState& commands) {
    if (take_fault(FaultKind::device_lost)) commands.owner->lost = true;
    if (commands.owner->lost) {
        commands.fail({MTLCommandBufferErrorDeviceRemoved, "the device was removed", {}});
        return;
    }
    if (const auto fault = take_fault(FaultKind::command_buffer)) {
        commands.fail({static_cast<MTLCommandBufferError>(fault->code), "an injected failure", 0});
        return;
    }
    for (size_t i = 0; i < commands.borrowed.size(); ++i) {
        if (commands.borrowed[i]->alive) continue;
        commands.misuse(
            Problem::use_after_release, "", "",
            "\"" + commands.borrowed_names[i] + "\" was released before the command buffer that uses it ran");
    }
}

}  // namespace

void execute(CommandBufferState& commands) {
    count(counters().command_buffers);
    check_before(commands);
    if (!commands.failed()) {
        Execution(commands).run();
    } else if (commands.failure->encoder && *commands.failure->encoder < commands.encoders.size()) {
        commands.encoders[*commands.failure->encoder].state = MTLCommandEncoderErrorStateFaulted;
    }
}

}  // namespace metalsim
