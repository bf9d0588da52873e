#pragma once

#import <Metal/Metal.h>

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/metal/completion.h"
#include "backend/metal/ledger.h"
#include "backend/metal/objc_ref.h"
#include "backend/metal/residency.h"
#include "backend/metal/shader_library.h"

namespace metallic::metal {

// The device, its one queue, and what all heaps and plans share; lives as long as any of them. All work on the queue is
// ordered by one fence: memory is untracked, and each encoder waits for those committed before it.
class Context : public std::enable_shared_from_this<Context> {
  public:
    // Throws DeviceError when the device refuses a queue.
    Context(Ref<id<MTLDevice>> device, const ShaderSources& sources);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    const DeviceInfo info;
    id<MTLDevice> device() const noexcept { return device_.get(); }
    Residency& residency() noexcept { return residency_; }
    ShaderLibrary& shaders() noexcept { return shaders_; }
    Ledger& ledger() noexcept { return ledger_; }
    const Ledger& ledger() const noexcept { return ledger_; }
    const std::shared_ptr<Progress>& progress() const noexcept { return progress_; }

    // Whether this is a child of the process that made it: nothing that was committed will ever end here.
    bool forked() const noexcept { return getpid() != process_; }
    // Throws DeviceError where the process forked; `doing` is the scope.
    void check_process(const char* doing) const;
    // Also where the device was lost.
    void check_usable(const char* doing) const;
    // Nothing if the work succeeded; otherwise the error, remembered where it says that the device is lost.
    std::exception_ptr judge(const Outcome& outcome, const std::string& scope, uint64_t needed);
    // All that was committed has ended, and what waited for that has gone.
    void wait_idle();

    // Bytes of the recommended working set that heaps take, mapped files apart. Before it throws OutOfMemory it waits
    // for what is retired.
    void reserve(uint64_t bytes, const std::string& owner);
    void unreserve(uint64_t bytes) noexcept { reserved_ -= bytes; }
    [[noreturn]] void refuse(const std::string& why, uint64_t bytes, uint64_t available,
                             const std::string& owner) const;
    uint64_t available() const noexcept;

    // Releases these once the work that was committed so far, and what is being encoded, has ended.
    struct Retired {
        std::shared_ptr<const void> owner;  // of what buffers show, which goes after them
        Ref<id<MTLHeap>> heap;
        std::vector<Ref<id<MTLBuffer>>> buffers;
        bool mapped = false;
        uint64_t bytes = 0;  // reserved
        uint64_t after = 0;  // this many command buffers have ended
    };
    void retire(Retired what) noexcept;
    // Those whose work has ended; whoever has waited for work calls it, since nobody else may come.
    void release_retired() noexcept;
    // How often that was done. Asked for before memory is, so that what another thread releases meanwhile counts.
    uint64_t releases() const noexcept { return releases_; }
    // Waits for the work of all. False: nothing has gone since there were `seen` releases.
    bool release_all_retired(uint64_t seen);

    // Counts a command buffer as being encoded until it is committed or gone.
    class Encoding {
      public:
        explicit Encoding(Context& context) noexcept : context_(context) {}
        ~Encoding();
        Encoding(const Encoding&) = delete;
        Encoding& operator=(const Encoding&) = delete;
        void begin();
        void commit();

      private:
        Context& context_;
        bool open_ = false;
    };

    // One command buffer, encoded under the queue's lock; dropped with all that it holds unless it is committed.
    class Commands {
      public:
        enum class Lifetimes : uint8_t { kept_by_metal, kept_by_caller };
        Commands(Context& context, NSString* label, Lifetimes lifetimes);
        ~Commands();
        Commands(const Commands&) = delete;
        Commands& operator=(const Commands&) = delete;

        // Ends the encoder before. `pass` may be nil.
        id<MTLComputeCommandEncoder> compute(NSString* label, MTLComputePassDescriptor* pass);
        id<MTLBlitCommandEncoder> blit();
        // Returns the completion's number.
        uint64_t commit(Completion& completion);

      private:
        void begun(id<MTLCommandEncoder> encoder);
        void end() noexcept;

        Encoding encoding_;           // until the pool has let go of what was not committed
        const AutoreleasePool pool_;  // outlives what is encoded
        Context& context_;
        const std::lock_guard<std::mutex> lock_;
        id<MTLCommandBuffer> buffer_ = nil;
        id<MTLComputeCommandEncoder> compute_ = nil;
        id<MTLBlitCommandEncoder> blit_ = nil;
        bool fenced_ = false;  // an encoder of this buffer has updated the fence
    };

  private:
    void release_retired_until(uint64_t ended) noexcept;
    void wait_for(uint64_t begun);
    void leave_residency(std::span<const Retired> gone) noexcept;

    const Ref<id<MTLDevice>> device_;
    const Ref<id<MTLCommandQueue>> queue_;
    const Ref<id<MTLFence>> fence_;
    Ledger ledger_;
    const Ref<MTLCommandBufferDescriptor*> kept_by_metal_, kept_by_caller_;
    Residency residency_;
    ShaderLibrary shaders_;
    const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
    const pid_t process_ = getpid();
    std::atomic<bool> lost_{false};
    std::atomic<uint64_t> reserved_{0};

    std::mutex queue_mutex_;
    bool fence_updated_ = false;  // guarded by queue_mutex_

    std::mutex retired_mutex_;
    std::vector<Retired> retired_;
    std::atomic<uint64_t> releases_{0};
};

}  // namespace metallic::metal
