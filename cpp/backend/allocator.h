#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "backend/backend.h"

namespace metallic {

// Where a backend gets the memory that its plans and transfers need beside what they are handed: scratch, logits,
// constants, batch memory, staging. Thread-safe.
class Allocator {
  public:
    virtual ~Allocator() = default;
    // A range of a heap of the backend, aligned to 256 bytes, that lives as long as the view is held. Throws
    // OutOfMemory, naming `owner`; nothing changes then.
    virtual std::shared_ptr<const BufferView> allocate(uint64_t bytes, Storage storage, Tag tag, std::string_view owner,
                                                       Contents contents) = 0;
};

// A heap for each allocation, counted by nobody: for plans that are compiled without an allocator.
class HeapAllocator final : public Allocator {
  public:
    using CreateHeap = std::function<std::shared_ptr<Heap>(uint64_t, Storage, std::string_view, Contents)>;
    explicit HeapAllocator(CreateHeap create) : create_(std::move(create)) {}

    std::shared_ptr<const BufferView> allocate(uint64_t bytes, Storage storage, Tag, std::string_view owner,
                                               Contents contents) override {
        struct Held {
            std::shared_ptr<Heap> heap;
            BufferView view;
        };
        auto held = std::make_shared<Held>();
        held->heap = create_(bytes, storage, owner, contents);
        held->view = {held->heap.get(), 0, bytes};
        return {held, &held->view};
    }

  private:
    const CreateHeap create_;
};

}  // namespace metallic
