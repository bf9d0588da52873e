#include <algorithm>

#include "runtime/commands.h"
#include "runtime/encoder.h"
#include "runtime/objects.h"

// Compute encoders: arguments and dispatches are checked as Metal's validation layer checks them, and recorded.

using metalsim::BufferState;
using metalsim::Command;
using metalsim::ComputeEncoderState;
using metalsim::Dispatch;
using metalsim::PipelineData;
using metalsim::Problem;

namespace {

constexpr NSUInteger kMostBytes = 4096;  // of setBytes: Metal Feature Set Tables

bool valid_index(ComputeEncoderState& encoder, NSUInteger index, const char* method) {
    if (index < kMetalsimBuffers) return true;
    encoder.misuse(Problem::limit, std::string(method) + ": index " + std::to_string(index) + " is not below 31");
    return false;
}

void set_buffer(ComputeEncoderState& encoder, id<MTLBuffer> buffer, NSUInteger offset, NSUInteger index,
                const char* method) {
    if (!encoder.open(method) || !valid_index(encoder, index, method)) return;
    ComputeEncoderState::Slot& slot = encoder.slots[index];
    if (buffer == nil) {
        slot = {};
        return;
    }
    BufferState& of = metalsim::state<BufferState>(buffer);
    if (of.owner != encoder.commands->owner) {
        return encoder.misuse(Problem::api,
                              std::string(method) + ": buffer \"" + of.name() + "\" is of another device");
    }
    if (offset >= of.bytes) {
        return encoder.misuse(Problem::out_of_bounds, std::string(method) + ": offset " + std::to_string(offset) +
                                                          " is not within buffer \"" + of.name() + "\" of " +
                                                          std::to_string(of.bytes) + " bytes");
    }
    encoder.commands->keep(buffer, of);
    slot = {of.base + offset, of.bytes - offset, of.region, &of, offset};
}

std::string size_text(MTLSize size) {
    return std::to_string(size.width) + "x" + std::to_string(size.height) + "x" + std::to_string(size.depth);
}

bool positive(MTLSize size) {
    return size.width > 0 && size.height > 0 && size.depth > 0;
}

bool within(MTLSize size, NSUInteger limit) {
    return size.width <= limit && size.height <= limit && size.depth <= limit;
}

metalsim::Size3 size_of(MTLSize size) {
    return {static_cast<uint32_t>(size.width), static_cast<uint32_t>(size.height), static_cast<uint32_t>(size.depth)};
}

bool check_sizes(ComputeEncoderState& encoder, const PipelineData& pipeline, MTLSize grid, MTLSize group) {
    const auto refuse = [&](const std::string& why) {
        encoder.misuse(Problem::limit, why);
        return false;
    };
    if (!positive(grid) || !within(grid, UINT32_MAX)) return refuse("a grid of " + size_text(grid));
    if (!positive(group) || !within(group, 1024)) return refuse("threadgroups of " + size_text(group) + " threads");
    const NSUInteger threads = group.width * group.height * group.depth;
    if (threads > pipeline.max_threads) {
        return refuse("threadgroups of " + size_text(group) + " threads are more than the pipeline's " +
                      std::to_string(pipeline.max_threads));
    }
    if (pipeline.multiple_of_width && threads % kMetalsimSimdWidth != 0) {
        return refuse("threadgroups of " + std::to_string(threads) +
                      " threads are no multiple of 32, which the pipeline's descriptor promised");
    }
    return true;
}

// Takes what the kernel declares from the argument table; false if something is missing.
bool bind_buffers(ComputeEncoderState& encoder, const PipelineData& pipeline, Dispatch* dispatch) {
    auto& bound = encoder.commands->bound;
    dispatch->first_bound = static_cast<uint32_t>(bound.size());
    for (const auto& argument : pipeline.buffers) {
        const ComputeEncoderState::Slot& slot = encoder.slots[argument.index];
        const auto refuse = [&](Problem problem, const std::string& why) {
            encoder.misuse(problem,
                           "argument " + argument.name + " at index " + std::to_string(argument.index) + " " + why);
            return false;
        };
        if (slot.at == nullptr) return refuse(Problem::api, "is not bound");
        if (reinterpret_cast<uintptr_t>(slot.at) % argument.alignment != 0) {
            return refuse(Problem::misaligned, "needs an offset that is a multiple of " +
                                                   std::to_string(argument.alignment) + ", not " +
                                                   std::to_string(slot.offset));
        }
        if (slot.bytes < argument.minimum_bytes) {
            return refuse(Problem::out_of_bounds, "needs " + std::to_string(argument.minimum_bytes) + " bytes, not " +
                                                      std::to_string(slot.bytes));
        }
        if (argument.writable && slot.buffer != nullptr && slot.buffer->hazards == MTLHazardTrackingModeTracked) {
            encoder.record().writes_tracked = true;
        }
        if (argument.writable && slot.buffer == nullptr) {
            return refuse(Problem::api, "is written by the kernel, but bound by setBytes");
        }
        bound.push_back({argument.index, slot.at, slot.bytes, slot.region});
    }
    dispatch->bound_count = static_cast<uint32_t>(bound.size()) - dispatch->first_bound;
    return true;
}

bool bind_threadgroup_memory(ComputeEncoderState& encoder, const PipelineData& pipeline, Dispatch* dispatch) {
    auto& lengths = encoder.commands->lengths;
    dispatch->first_length = static_cast<uint32_t>(lengths.size());
    uint64_t total = pipeline.static_bytes;
    for (const auto& argument : pipeline.threadgroup) {
        const uint32_t bytes = encoder.lengths[argument.index];
        if (bytes == 0) {
            encoder.misuse(Problem::api, "threadgroup argument " + argument.name + " at index " +
                                             std::to_string(argument.index) + " has no length");
            return false;
        }
        total += bytes;
        lengths.emplace_back(argument.index, bytes);
    }
    dispatch->length_count = static_cast<uint32_t>(lengths.size()) - dispatch->first_length;
    const uint32_t limit = encoder.commands->owner->model.max_threadgroup_bytes;
    if (total > limit) {
        encoder.misuse(Problem::limit,
                       std::to_string(total) + " bytes of threadgroup memory are more than " + std::to_string(limit));
    }
    return total <= limit;
}

// The checks and the record that all dispatches share.
void dispatch(ComputeEncoderState& encoder, const char* method, MTLSize grid, MTLSize group, bool threads,
              const std::byte* indirect = nullptr) {
    if (!encoder.open(method)) return;
    if (encoder.pipeline == nullptr) return encoder.misuse(Problem::api, std::string(method) + " without a pipeline");
    const PipelineData& pipeline = *encoder.pipeline;
    if (!check_sizes(encoder, pipeline, grid, group)) return;
    Dispatch made;
    made.pipeline = &pipeline;
    made.threads_per_threadgroup = size_of(group);
    if (threads) {
        made.threads = size_of(grid);
        const auto groups = [](NSUInteger count, NSUInteger by) {
            return static_cast<uint32_t>((count + by - 1) / by);
        };
        made.threadgroups = {groups(grid.width, group.width), groups(grid.height, group.height),
                             groups(grid.depth, group.depth)};
    } else {
        made.threadgroups = size_of(grid);
    }
    made.indirect = indirect;
    made.used_count = static_cast<uint32_t>(encoder.record().used.size());
    made.scope = encoder.scope_index();
    if (!bind_buffers(encoder, pipeline, &made) || !bind_threadgroup_memory(encoder, pipeline, &made)) return;
    auto& commands = *encoder.commands;
    commands.commands.push_back({Command::Kind::dispatch, static_cast<uint32_t>(commands.dispatches.size())});
    commands.dispatches.push_back(made);
}

void use(ComputeEncoderState& encoder, id allocation, bool writes, const char* method) {
    if (!encoder.open(method)) return;
    auto& of = metalsim::state<metalsim::AllocationState>(allocation);
    encoder.commands->keep(allocation, of);
    encoder.record().used.push_back({of.region, writes});
    if (writes && of.hazards == MTLHazardTrackingModeTracked) encoder.record().writes_tracked = true;
}

}  // namespace

namespace metalsim {

id<MTLComputeCommandEncoder> make_compute_encoder(id<MTLCommandBuffer> buffer, MTLDispatchType type,
                                                  MTLComputePassDescriptor* pass) {
    return make_encoder<MetalsimComputeEncoder, ComputeEncoderState>(buffer, type == MTLDispatchTypeSerial,
                                                                     samples_of(pass));
}

}  // namespace metalsim

@implementation MetalsimComputeEncoder
METALSIM_ENCODER(ComputeEncoderState)
- (MTLDispatchType)dispatchType {
    return metalsim::state<ComputeEncoderState>(self).record().serial ? MTLDispatchTypeSerial
                                                                      : MTLDispatchTypeConcurrent;
}
- (void)setComputePipelineState:(id<MTLComputePipelineState>)pipeline {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    if (!encoder.open("setComputePipelineState:")) return;
    const auto& data = metalsim::state<metalsim::PipelineState>(pipeline).data;
    if (encoder.pipeline == data.get()) return;
    encoder.pipeline = data.get();
    encoder.commands->pipelines.push_back(data);
}
- (void)setBytes:(const void*)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    if (!encoder.open("setBytes:length:atIndex:") || !valid_index(encoder, index, "setBytes:length:atIndex:")) return;
    if (length == 0 || length > kMostBytes) {
        return encoder.misuse(
            Problem::limit, "setBytes:length:atIndex: of " + std::to_string(length) + " bytes; 1 to 4096 are allowed");
    }
    metalsim::Memory::Id region = 0;
    std::byte* at = encoder.commands->copy_arguments(bytes, length, &region);
    encoder.slots[index] = {at, length, region, nullptr, 0};
}
- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
    set_buffer(metalsim::state<ComputeEncoderState>(self), buffer, offset, index, "setBuffer:offset:atIndex:");
}
- (void)setBufferOffset:(NSUInteger)offset atIndex:(NSUInteger)index {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    if (!encoder.open("setBufferOffset:atIndex:") || !valid_index(encoder, index, "setBufferOffset:atIndex:")) return;
    ComputeEncoderState::Slot& slot = encoder.slots[index];
    if (slot.buffer == nullptr) {
        return encoder.misuse(Problem::api,
                              "setBufferOffset:atIndex: without a buffer at index " + std::to_string(index));
    }
    if (offset >= slot.buffer->bytes) {
        return encoder.misuse(Problem::out_of_bounds, "setBufferOffset:atIndex: offset " + std::to_string(offset) +
                                                          " is not within buffer \"" + slot.buffer->name() + "\"");
    }
    slot.at = slot.buffer->base + offset;
    slot.bytes = slot.buffer->bytes - offset;
    slot.offset = offset;
}
- (void)setBuffers:(const id<MTLBuffer>[])buffers offsets:(const NSUInteger[])offsets withRange:(NSRange)range {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    for (NSUInteger i = 0; i < range.length; ++i) {
        set_buffer(encoder, buffers[i], offsets[i], range.location + i, "setBuffers:offsets:withRange:");
    }
}
- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    constexpr const char* kMethod = "setThreadgroupMemoryLength:atIndex:";
    if (!encoder.open(kMethod) || !valid_index(encoder, index, kMethod)) return;
    const uint32_t limit = encoder.commands->owner->model.max_threadgroup_bytes;
    if (length % 16 != 0 || length > limit) {
        return encoder.misuse(Problem::limit, std::string(kMethod) + " of " + std::to_string(length) +
                                                  " bytes; multiples of 16 up to " + std::to_string(limit) +
                                                  " are allowed");
    }
    encoder.lengths[index] = static_cast<uint32_t>(length);
}
- (void)dispatchThreadgroups:(MTLSize)threadgroupsPerGrid threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
    dispatch(metalsim::state<ComputeEncoderState>(self),
             "dispatchThreadgroups:threadsPerThreadgroup:", threadgroupsPerGrid, threadsPerThreadgroup, false);
}
- (void)dispatchThreads:(MTLSize)threadsPerGrid threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
    dispatch(metalsim::state<ComputeEncoderState>(self), "dispatchThreads:threadsPerThreadgroup:", threadsPerGrid,
             threadsPerThreadgroup, true);
}
- (void)dispatchThreadgroupsWithIndirectBuffer:(id<MTLBuffer>)indirectBuffer
                          indirectBufferOffset:(NSUInteger)indirectBufferOffset
                         threadsPerThreadgroup:(MTLSize)threadsPerThreadgroup {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    constexpr const char* kMethod = "dispatchThreadgroupsWithIndirectBuffer:";
    if (!encoder.open(kMethod)) return;
    BufferState& of = metalsim::state<BufferState>(indirectBuffer);
    constexpr NSUInteger kBytes = sizeof(MTLDispatchThreadgroupsIndirectArguments);
    if (indirectBufferOffset % 4 != 0 || of.bytes < kBytes || indirectBufferOffset > of.bytes - kBytes) {
        return encoder.misuse(indirectBufferOffset % 4 != 0 ? Problem::misaligned : Problem::out_of_bounds,
                              std::string(kMethod) + " offset " + std::to_string(indirectBufferOffset) +
                                  " in buffer \"" + of.name() + "\"");
    }
    encoder.commands->keep(indirectBuffer, of);
    dispatch(encoder, kMethod, MTLSizeMake(1, 1, 1), threadsPerThreadgroup, false, of.base + indirectBufferOffset);
}
- (void)useResource:(id<MTLResource>)resource usage:(MTLResourceUsage)usage {
    use(metalsim::state<ComputeEncoderState>(self), resource, (usage & MTLResourceUsageWrite) != 0,
        "useResource:usage:");
}
- (void)useResources:(const id<MTLResource>[])resources count:(NSUInteger)count usage:(MTLResourceUsage)usage {
    for (NSUInteger i = 0; i < count; ++i) [self useResource:resources[i] usage:usage];
}
- (void)useHeap:(id<MTLHeap>)heap {
    // Says no more than that the heap's resources are read: Apple's documentation of useHeap:.
    use(metalsim::state<ComputeEncoderState>(self), heap, false, "useHeap:");
}
- (void)useHeaps:(const id<MTLHeap>[])heaps count:(NSUInteger)count {
    for (NSUInteger i = 0; i < count; ++i) [self useHeap:heaps[i]];
}
- (void)memoryBarrierWithScope:(MTLBarrierScope)scope {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    if (!encoder.open("memoryBarrierWithScope:")) return;
    if ((scope & MTLBarrierScopeBuffers) == 0) return;
    metalsim::count(metalsim::counters().barriers);
    encoder.commands->commands.push_back({Command::Kind::barrier, 0});
}
- (void)memoryBarrierWithResources:(const id<MTLResource>[])resources count:(NSUInteger)count {
    auto& encoder = metalsim::state<ComputeEncoderState>(self);
    (void)resources;
    if (!encoder.open("memoryBarrierWithResources:count:") || count == 0) return;
    metalsim::count(metalsim::counters().barriers);
    encoder.commands->commands.push_back({Command::Kind::barrier, 0});
}
@end
