#include "backend/metal/encoder.h"

#include <bit>
#include <string>

#include "core/error.h"

namespace metallic::metal {

Binding BatchMemory::take(uint64_t bytes, void** host) {
    const uint64_t aligned = (bytes + 15) / 16 * 16;
    if (aligned > left()) {
        throw Error("an operation takes " + std::to_string(bytes) + " bytes of batch memory, " +
                    std::to_string(left()) + " are left: it reserved too few");
    }
    const Binding taken = memory_.at(used_, bytes);
    *host = host_ + used_;
    used_ += aligned;
    return taken;
}

template <typename T, uint32_t Capacity>
bool Encoder::List<T, Capacity>::add(const T& item) noexcept {
    if (count_ == Capacity) return false;
    items_[count_++] = item;
    return true;
}

void Encoder::begin(id<MTLComputeCommandEncoder> encoder, const Substitution& substitution) noexcept {
    encoder_ = encoder;
    pipeline_ = nil;
    substitution_ = substitution;
    bound_.fill({});
    threadgroup_bytes_.fill(0);
    accessed_slots_ = 0;
    reads_pages_.clear();
    writes_pages_.clear();
    forget();
}

void Encoder::pipeline(id<MTLComputePipelineState> state) {
    accessed_slots_ = 0;
    reads_pages_.clear();
    writes_pages_.clear();
    if (state == pipeline_) return;
    [encoder_ setComputePipelineState:state];
    pipeline_ = state;
}

void Encoder::bind(uint32_t index, const Binding& compiled, Access access) {
    const Binding binding = substitution_.of(compiled);
    Bound& bound = bound_[index];
    if (bound.buffer != binding.buffer) {
        [encoder_ setBuffer:binding.buffer offset:binding.offset atIndex:index];
    } else if (bound.offset != binding.offset) {
        [encoder_ setBufferOffset:binding.offset atIndex:index];
    }
    bound = {binding.buffer, binding.offset};
    accessed_slots_ &= ~(1u << index);
    if (access == kNothing) return;
    accessed_slots_ |= 1u << index;
    access_[index] = access;
    accessed_[index] = {binding.buffer, binding.offset, binding.offset + binding.bytes};
}

void Encoder::constant(uint32_t index, const Binding& binding) {
    bind(index, binding, kNothing);
}

void Encoder::read(uint32_t index, const Binding& binding) {
    bind(index, binding, kReads);
}

void Encoder::write(uint32_t index, const Binding& binding) {
    bind(index, binding, kWrites);
}

// A write waits for whatever a read would wait for, and more.
void Encoder::read_write(uint32_t index, const Binding& binding) {
    bind(index, binding, kWrites);
}

void Encoder::bytes(uint32_t index, const void* data, uint32_t count) {
    [encoder_ setBytes:data length:count atIndex:index];
    bound_[index] = {};
    accessed_slots_ &= ~(1u << index);
}

void Encoder::threadgroup_memory(uint32_t index, uint32_t bytes) {
    const uint32_t whole = (bytes + 15) / 16 * 16;  // the lengths that Metal takes
    if (threadgroup_bytes_[index] == whole) return;
    [encoder_ setThreadgroupMemoryLength:whole atIndex:index];
    threadgroup_bytes_[index] = whole;
}

void Encoder::reads_pages(uint32_t group, uint32_t layer) {
    if (!reads_pages_.add({group, layer})) throw Error("a kernel that reads the pages of too many layers");
}

void Encoder::writes_pages(uint32_t group, uint32_t layer) {
    if (!writes_pages_.add({group, layer})) throw Error("a kernel that writes the pages of too many layers");
}

bool Encoder::depends() const noexcept {
    const auto any = [](const auto& list, const auto& matches) {
        for (const auto& item : list) {
            if (matches(item)) return true;
        }
        return false;
    };
    for (uint32_t left = accessed_slots_; left; left &= left - 1) {
        const uint32_t index = static_cast<uint32_t>(std::countr_zero(left));
        const auto overlaps = [&](const Range& other) { return accessed_[index].overlaps(other); };
        if (any(written_, overlaps) || (access_[index] == kWrites && any(read_, overlaps))) return true;
    }
    for (const PageLayer& read : reads_pages_) {
        if (any(pages_written_, [&](const PageLayer& other) { return other == read; })) return true;
    }
    for (const PageLayer& written : writes_pages_) {
        const auto same = [&](const PageLayer& other) { return other == written; };
        if (any(pages_written_, same) || any(pages_read_, same)) return true;
    }
    return false;
}

// False when there is no room to remember what the next dispatch accesses.
bool Encoder::remember() noexcept {
    for (uint32_t left = accessed_slots_; left; left &= left - 1) {
        const uint32_t index = static_cast<uint32_t>(std::countr_zero(left));
        if (!(access_[index] == kWrites ? written_ : read_).add(accessed_[index])) return false;
    }
    for (const PageLayer& read : reads_pages_) {
        if (!pages_read_.add(read)) return false;
    }
    for (const PageLayer& written : writes_pages_) {
        if (!pages_written_.add(written)) return false;
    }
    return true;
}

void Encoder::forget() noexcept {
    read_.clear();
    written_.clear();
    pages_read_.clear();
    pages_written_.clear();
}

void Encoder::order_dispatch() {
    ++dispatches_;
    if (!depends() && remember()) return;
    [encoder_ memoryBarrierWithScope:MTLBarrierScopeBuffers];
    ++barriers_;
    forget();
    remember();  // one dispatch always fits
}

void Encoder::dispatch(MTLSize threadgroups, MTLSize threads_per_threadgroup) {
    order_dispatch();
    [encoder_ dispatchThreadgroups:threadgroups threadsPerThreadgroup:threads_per_threadgroup];
}

void Encoder::dispatch_threads(MTLSize threads, MTLSize threads_per_threadgroup) {
    order_dispatch();
    [encoder_ dispatchThreads:threads threadsPerThreadgroup:threads_per_threadgroup];
}

}  // namespace metallic::metal
