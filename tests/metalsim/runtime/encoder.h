#pragma once

#include "runtime/commands.h"

// What compute and blit encoders share.
namespace metalsim {

struct EncoderState : Counted {
    Ref<id<MTLCommandBuffer>> buffer;
    CommandBufferState* commands = nullptr;
    uint32_t index = 0;  // of the record
    bool ended = false;
    Ref<NSString*> label;
    std::vector<std::string> groups;
    std::optional<uint32_t> scope;  // of what is encoded next, if it did not change
    const PipelineData* pipeline = nullptr;

    EncoderRecord& record() { return commands->encoders[index]; }
    std::string scope_text();
    uint32_t scope_index();
    void misuse(Problem problem, std::string detail);
    // Whether commands may be encoded; reports if not.
    bool open(const char* method) {
        if (!ended) return true;
        report_late(method);
        return false;
    }
    void report_late(const char* method);
    void end();
    void abandon();  // released without endEncoding
    void set_label(NSString* text);
    void push(NSString* group);
    void pop();
    void signpost(NSString* text);
    void wait_for(id<MTLFence> fence);
    void update(id<MTLFence> fence);
};

struct ComputeEncoderState : EncoderState {
    struct Slot {
        std::byte* at = nullptr;
        uint64_t bytes = 0;
        Memory::Id region = 0;
        BufferState* buffer = nullptr;  // null of setBytes
        NSUInteger offset = 0;
    };
    std::array<Slot, kMetalsimBuffers> slots;
    std::array<uint32_t, kMetalsimThreadgroupArguments> lengths{};
};

// What an encoder of this pass samples at its bounds.
template <typename PassDescriptor>
std::vector<SampleStep> samples_of(PassDescriptor* pass) {
    constexpr NSUInteger kAttachments = 4;
    std::vector<SampleStep> samples;
    for (NSUInteger i = 0; pass != nil && i < kAttachments; ++i) {
        const auto at = [[pass sampleBufferAttachments] objectAtIndexedSubscript:i];
        if ([at sampleBuffer] == nil) continue;
        samples.push_back({state<SampleBufferState>([at sampleBuffer]).samples, [at startOfEncoderSampleIndex],
                           [at endOfEncoderSampleIndex]});
    }
    return samples;
}

// A new encoder object `T` with state `State` in the command buffer; nil, reported, where none can be opened.
template <typename T, typename State>
T* make_encoder(id<MTLCommandBuffer> buffer, bool serial, const std::vector<SampleStep>& samples) {
    auto& commands = state<CommandBufferState>(buffer);
    const auto index = open_encoder(commands, serial, samples);
    if (!index) return nil;
    T* const encoder = [[T alloc] init];
    auto& made = attach<State>(encoder);
    made.buffer = Ref<id<MTLCommandBuffer>>(buffer);
    made.commands = &commands;
    made.index = *index;
    return [encoder autorelease];
}

}  // namespace metalsim

#define METALSIM_ENCODER(T)                                                                                            \
    -(void)dealloc {                                                                                                   \
        metalsim::state<T>(self).abandon();                                                                            \
        [super dealloc];                                                                                               \
    }                                                                                                                  \
    -(id<MTLDevice>)device {                                                                                           \
        return metalsim::state<T>(self).commands->device;                                                              \
    }                                                                                                                  \
    -(NSString*)label {                                                                                                \
        return metalsim::state<T>(self).label.get();                                                                   \
    }                                                                                                                  \
    -(void)setLabel : (NSString*)label {                                                                               \
        metalsim::state<T>(self).set_label(label);                                                                     \
    }                                                                                                                  \
    -(void)endEncoding {                                                                                               \
        metalsim::state<T>(self).end();                                                                                \
    }                                                                                                                  \
    -(void)insertDebugSignpost : (NSString*)string {                                                                   \
        metalsim::state<T>(self).signpost(string);                                                                     \
    }                                                                                                                  \
    -(void)pushDebugGroup : (NSString*)string {                                                                        \
        metalsim::state<T>(self).push(string);                                                                         \
    }                                                                                                                  \
    -(void)popDebugGroup {                                                                                             \
        metalsim::state<T>(self).pop();                                                                                \
    }                                                                                                                  \
    -(void)updateFence : (id<MTLFence>)fence {                                                                         \
        metalsim::state<T>(self).update(fence);                                                                        \
    }                                                                                                                  \
    -(void)waitForFence : (id<MTLFence>)fence {                                                                        \
        metalsim::state<T>(self).wait_for(fence);                                                                      \
    }                                                                                                                  \
    -(void)sampleCountersInBuffer : (id<MTLCounterSampleBuffer>)sampleBuffer atSampleIndex                             \
        : (NSUInteger)sampleIndex withBarrier : (BOOL)barrier {                                                        \
        (void)sampleBuffer, (void)sampleIndex, (void)barrier;                                                          \
        metalsim::state<T>(self).misuse(metalsim::Problem::api,                                                        \
                                        "sampleCountersInBuffer: this device samples at the bounds of encoders only"); \
    }
