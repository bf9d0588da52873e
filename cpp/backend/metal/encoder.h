#pragma once

#import <Metal/Metal.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace metallic::metal {

// Bytes of a buffer, borrowed.
struct Binding {
    id<MTLBuffer> buffer = nil;
    uint64_t offset = 0;
    uint64_t bytes = 0;

    Binding at(uint64_t more, uint64_t count) const noexcept { return {buffer, offset + more, count}; }
    Binding at(uint64_t more) const noexcept { return {buffer, offset + more, bytes - more}; }
};

// Small shared memory that lives as long as one submission, taken in turn from a ring; never allocates.
class BatchMemory {
  public:
    BatchMemory() = default;
    // `host` is where `memory` begins.
    BatchMemory(const Binding& memory, std::byte* host) noexcept : memory_(memory), host_(host) {}

    // `bytes` of it, aligned to 16, to be written through *host before the submission is committed. Throws Error when
    // an operation takes more than it reserved; see Preparation::reserve_batch.
    Binding take(uint64_t bytes, void** host);
    uint64_t left() const noexcept { return memory_.bytes - used_; }

  private:
    Binding memory_;
    std::byte* host_ = nullptr;
    uint64_t used_ = 0;
};

// What memory a submission uses instead of what was bound when the plan was compiled: each submission in flight
// has logits of its own.
struct Substitution {
    Binding compiled, own;

    Binding of(const Binding& binding) const noexcept {
        const bool inside = binding.buffer == compiled.buffer && binding.offset >= compiled.offset &&
                            binding.offset < compiled.offset + compiled.bytes;
        return inside ? Binding{own.buffer, binding.offset - compiled.offset + own.offset, binding.bytes} : binding;
    }
};

// One compute encoder with concurrent dispatch. Bindings say whether a kernel reads or writes them; a barrier goes
// before a dispatch that depends on one since the last barrier, and nowhere else. What is bound already is not bound
// again.
//
// pipeline() comes first and starts an empty set of bindings; every dispatch after it uses all that were made since.
class Encoder {
  public:
    void pipeline(id<MTLComputePipelineState> state);
    // Weights and batch memory, which no kernel of a submission writes: no dependency.
    void constant(uint32_t index, const Binding& binding);
    void read(uint32_t index, const Binding& binding);
    void write(uint32_t index, const Binding& binding);
    void read_write(uint32_t index, const Binding& binding);
    // Parameters by value, at most 4096 bytes.
    template <typename T>
    void params(uint32_t index, const T& value) {
        static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 4096);
        bytes(index, &value, sizeof(T));
    }
    void bytes(uint32_t index, const void* data, uint32_t count);
    void threadgroup_memory(uint32_t index, uint32_t bytes);
    // The pages of one layer of a cache group, which kernels reach by address.
    void reads_pages(uint32_t group, uint32_t layer);
    void writes_pages(uint32_t group, uint32_t layer);
    void dispatch(MTLSize threadgroups, MTLSize threads_per_threadgroup);
    void dispatch_threads(MTLSize threads, MTLSize threads_per_threadgroup);

    // ---- for the plan that drives it ----

    // Encodes into `encoder` from here on; nothing is bound in it, and all work before it is ordered.
    void begin(id<MTLComputeCommandEncoder> encoder, const Substitution& substitution) noexcept;
    uint64_t dispatches() const noexcept { return dispatches_; }
    uint64_t barriers() const noexcept { return barriers_; }

  private:
    static constexpr uint32_t kBuffers = 31;
    static constexpr uint32_t kRanges = 64;
    static constexpr uint32_t kPageLayers = 32;
    enum Access : uint8_t { kNothing = 0, kReads = 1, kWrites = 2 };

    struct Range {
        id<MTLBuffer> buffer;
        uint64_t begin, end;
        bool overlaps(const Range& other) const noexcept {
            return buffer == other.buffer && begin < other.end && other.begin < end;
        }
    };
    struct PageLayer {
        uint32_t group, layer;
        bool operator==(const PageLayer&) const = default;
    };
    // Entries in order of arrival; `add` is false when they are full.
    template <typename T, uint32_t Capacity>
    class List {
      public:
        bool add(const T& item) noexcept;
        void clear() noexcept { count_ = 0; }
        const T* begin() const noexcept { return items_.data(); }
        const T* end() const noexcept { return items_.data() + count_; }

      private:
        std::array<T, Capacity> items_;
        uint32_t count_ = 0;
    };
    struct Bound {  // in the encoder's argument table
        id<MTLBuffer> buffer = nil;
        uint64_t offset = 0;
    };

    void bind(uint32_t index, const Binding& compiled, Access access);
    void order_dispatch();
    bool depends() const noexcept;
    bool remember() noexcept;
    void forget() noexcept;

    id<MTLComputeCommandEncoder> encoder_ = nil;
    id<MTLComputePipelineState> pipeline_ = nil;
    Substitution substitution_;
    std::array<Bound, kBuffers> bound_;
    std::array<uint32_t, kBuffers> threadgroup_bytes_{};

    // Of the next dispatch.
    std::array<Range, kBuffers> accessed_;
    std::array<Access, kBuffers> access_{};
    uint32_t accessed_slots_ = 0;  // bit by index
    List<PageLayer, kPageLayers> reads_pages_, writes_pages_;

    // Since the last barrier.
    List<Range, kRanges> read_, written_;
    List<PageLayer, kPageLayers> pages_read_, pages_written_;

    uint64_t dispatches_ = 0, barriers_ = 0;
};

}  // namespace metallic::metal
