#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <mutex>
#include <span>

#include "backend/metal/metal_heap.h"

namespace metallic::metal {

// Copies between host memory and any storage. Private memory is filled and read through a ring of staging buffers:
// while one is copied by the GPU, the next is filled by the host. Every call returns when its copy is done and its
// staging buffers are given back. Thread-safe.
class Transfers {
  public:
    explicit Transfers(std::shared_ptr<Context> context)
        : context_(std::move(context)), own_(heap_allocator(context_)), allocator_(own_) {}

    static constexpr uint64_t kStages = 4;
    static constexpr uint64_t kStageBytes = uint64_t{8} << 20;  // of each at most, as far as a copy needs them
    static constexpr uint64_t kLeastStageBytes = uint64_t{16} << 10;

    // Where staging buffers come from; none: from heaps of their own.
    void attach(std::shared_ptr<Allocator> allocator);
    void detach(const Allocator& allocator) noexcept;

    // These throw Error, DeviceError, OutOfMemory; what the target holds afterwards is then undefined.
    void upload(std::span<const std::byte> from, const BufferView& to);
    void download(const BufferView& from, std::span<std::byte> to);
    void copy(const BufferView& from, const BufferView& to);
    void clear(const BufferView& range);

  private:
    struct Stage {
        std::shared_ptr<const BufferView> memory;
        std::unique_ptr<Completion> completion;
        uint64_t running = 0;  // the completion's number; 0: it is idle
    };

    Binding bind(const Stage& stage, uint64_t bytes) const;
    void drop_stages() noexcept;
    void make_room(Stage*& stage, uint64_t bytes);
    // Idle, with room for so many bytes or less.
    Stage& next_stage(uint64_t bytes);
    // Idle, for what needs no memory.
    Stage& direct();
    // Waits for a stage's copy; what went wrong is kept for finish.
    void settle(Stage& stage);
    void blit(const Binding& from, const Binding& to, Stage& stage);
    void fill(const Binding& range);
    // Forgets a copy that an exception cut short.
    void begin();
    // Waits for all stages, gives them back and throws what went wrong.
    void finish();
    void stage_in(std::span<const std::byte> from, const Binding& to);
    void stage_out(const Binding& from, std::span<std::byte> to);
    void bounce(const Binding& from, const Binding& to);

    const std::shared_ptr<Context> context_;
    const std::shared_ptr<Allocator> own_;
    std::mutex mutex_;
    std::shared_ptr<Allocator> allocator_;
    std::array<Stage, kStages> stages_;
    Stage direct_;
    uint64_t turn_ = 0;
    std::exception_ptr failed_;
};

}  // namespace metallic::metal
