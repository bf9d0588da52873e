#pragma once

#include <memory>
#include <string_view>

#include "backend/allocator.h"
#include "backend/backend.h"
#include "backend/metal/context.h"
#include "backend/metal/encoder.h"

namespace metallic::metal {

class MetalHeap : public Heap {
  public:
    explicit MetalHeap(std::shared_ptr<Context> context) : context_(std::move(context)) {}
    MetalHeap(const MetalHeap&) = delete;
    MetalHeap& operator=(const MetalHeap&) = delete;

    // The buffer that holds a range of the heap. Throws Error for a range outside of it, OutOfMemory.
    virtual Binding bind(uint64_t offset, uint64_t bytes) = 0;
    // What was begun when the heap was made has completed: the bytes are what they shall be. Throws DeviceError when it
    // failed; it is tried again the next time.
    virtual void settle() {}

    Context& context() const noexcept { return *context_; }

  protected:
    const std::shared_ptr<Context> context_;
};

// A placement heap with one buffer that spans it. `storage` as in Heap; mapped storage is written by its maker and read
// by everybody else. Throws OutOfMemory.
std::shared_ptr<MetalHeap> allocate_heap(const std::shared_ptr<Context>& context, uint64_t bytes, Storage storage,
                                         std::string_view label, Contents contents);

// A view without a copy of a part of a mapping of whole pages that `owner` keeps alive. What lies in more bytes than a
// buffer may have is seen through several buffers, made as they are needed. Throws OutOfMemory.
std::shared_ptr<MetalHeap> wrap_mapping(const std::shared_ptr<Context>& context, std::span<const std::byte> bytes,
                                        std::shared_ptr<const void> owner, std::string_view label);

// A heap for each allocation.
std::shared_ptr<Allocator> heap_allocator(std::shared_ptr<Context> context);

// The same heap; null for one of another backend or device.
MetalHeap* metal_heap(const BufferView& view, const Context& context) noexcept;

}  // namespace metallic::metal
