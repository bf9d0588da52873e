#include "runtime/encoder.h"
#include "runtime/objects.h"

// Blit encoders.

using metalsim::Blit;
using metalsim::BufferState;
using metalsim::Command;
using metalsim::EncoderState;
using metalsim::Problem;

namespace {

void record(EncoderState& encoder, Blit blit, BufferState& to) {
    auto& commands = *encoder.commands;
    blit.scope = encoder.scope_index();
    if (to.hazards == MTLHazardTrackingModeTracked) encoder.record().writes_tracked = true;
    commands.commands.push_back({Command::Kind::blit, static_cast<uint32_t>(commands.blits.size())});
    commands.blits.push_back(std::move(blit));
}

// Ranges must lie in their buffer and be of whole words, as macOS demands.
bool check_range(EncoderState& encoder, BufferState& buffer, NSUInteger offset, NSUInteger bytes, const char* method) {
    const auto refuse = [&](Problem problem, const std::string& why) {
        encoder.misuse(problem, std::string(method) + ": " + why + " (" + std::to_string(bytes) + " bytes at offset " +
                                    std::to_string(offset) + " of buffer \"" + buffer.name() + "\")");
        return false;
    };
    if (buffer.owner != encoder.commands->owner) return refuse(Problem::api, "a buffer of another device");
    if (bytes == 0) return refuse(Problem::limit, "nothing to do");
    if (offset > buffer.bytes || bytes > buffer.bytes - offset) return refuse(Problem::out_of_bounds, "out of bounds");
    if (offset % 4 != 0 || bytes % 4 != 0) {
        return refuse(Problem::misaligned, "offset and size must be multiples of 4 on macOS");
    }
    return true;
}

}  // namespace

namespace metalsim {

id<MTLBlitCommandEncoder> make_blit_encoder(id<MTLCommandBuffer> buffer, MTLBlitPassDescriptor* pass) {
    return make_encoder<MetalsimBlitEncoder, EncoderState>(buffer, true, samples_of(pass));
}

}  // namespace metalsim

@implementation MetalsimBlitEncoder
METALSIM_ENCODER(EncoderState)
- (void)synchronizeResource:(id<MTLResource>)resource {
    auto& encoder = metalsim::state<EncoderState>(self);
    if (!encoder.open("synchronizeResource:")) return;
    if (metalsim::state<metalsim::AllocationState>(resource).storage != MTLStorageModeManaged) {
        encoder.misuse(Problem::api, "synchronizeResource: is for managed resources only");
    }
}
- (void)fillBuffer:(id<MTLBuffer>)buffer range:(NSRange)range value:(uint8_t)value {
    auto& encoder = metalsim::state<EncoderState>(self);
    BufferState& of = metalsim::state<BufferState>(buffer);
    if (!encoder.open("fillBuffer:range:value:")) return;
    if (!check_range(encoder, of, range.location, range.length, "fillBuffer:range:value:")) return;
    encoder.commands->keep(buffer, of);
    Blit blit;
    blit.kind = Blit::Kind::fill;
    blit.to = of.base + range.location;
    blit.bytes = range.length;
    blit.value = value;
    record(encoder, blit, of);
}
- (void)copyFromBuffer:(id<MTLBuffer>)sourceBuffer
          sourceOffset:(NSUInteger)sourceOffset
              toBuffer:(id<MTLBuffer>)destinationBuffer
     destinationOffset:(NSUInteger)destinationOffset
                  size:(NSUInteger)size {
    auto& encoder = metalsim::state<EncoderState>(self);
    constexpr const char* kMethod = "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:";
    BufferState& from = metalsim::state<BufferState>(sourceBuffer);
    BufferState& to = metalsim::state<BufferState>(destinationBuffer);
    if (!encoder.open(kMethod)) return;
    if (!check_range(encoder, from, sourceOffset, size, kMethod)) return;
    if (!check_range(encoder, to, destinationOffset, size, kMethod)) return;
    Blit blit;
    blit.from = from.base + sourceOffset;
    blit.to = to.base + destinationOffset;
    blit.bytes = size;
    if (blit.from < blit.to + size && blit.to < blit.from + size) {
        return encoder.misuse(Problem::api, std::string(kMethod) + ": source and destination overlap");
    }
    encoder.commands->keep(sourceBuffer, from);
    encoder.commands->keep(destinationBuffer, to);
    record(encoder, blit, to);
}
- (void)resolveCounters:(id<MTLCounterSampleBuffer>)sampleBuffer
                inRange:(NSRange)range
      destinationBuffer:(id<MTLBuffer>)destinationBuffer
      destinationOffset:(NSUInteger)destinationOffset {
    auto& encoder = metalsim::state<EncoderState>(self);
    constexpr const char* kMethod = "resolveCounters:inRange:destinationBuffer:destinationOffset:";
    BufferState& to = metalsim::state<BufferState>(destinationBuffer);
    if (!encoder.open(kMethod)) return;
    const auto& samples = metalsim::state<metalsim::SampleBufferState>(sampleBuffer).samples;
    if (range.location > samples->size() || range.length > samples->size() - range.location) {
        return encoder.misuse(Problem::out_of_bounds, std::string(kMethod) + ": beyond the sample buffer's end");
    }
    const NSUInteger bytes = range.length * sizeof(MTLCounterResultTimestamp);
    if (!check_range(encoder, to, destinationOffset, bytes, kMethod)) return;
    encoder.commands->keep(destinationBuffer, to);
    Blit blit;
    blit.kind = Blit::Kind::resolve;
    blit.to = to.base + destinationOffset;
    blit.bytes = bytes;
    blit.samples = samples;
    blit.range = range;
    record(encoder, blit, to);
}
@end
