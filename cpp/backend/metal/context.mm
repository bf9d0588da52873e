#include "backend/metal/context.h"

#include <algorithm>
#include <limits>

#include "backend/metal/device_facts.h"
#include "backend/metal/errors.h"
#include "core/error.h"

namespace metallic::metal {
namespace {

// Command buffers that may exist at once; more than submissions and transfers ever have.
constexpr NSUInteger kCommandBuffers = 64;

Ref<id<MTLCommandQueue>> make_queue(id<MTLDevice> device) {
    auto queue = Ref<id<MTLCommandQueue>>::adopt([device newCommandQueueWithMaxCommandBufferCount:kCommandBuffers]);
    if (!queue) throw DeviceError("the device gave no command queue", "metal/queue", "refused");
    [queue.get() setLabel:@"metallic"];
    return queue;
}

// Metal says which encoder failed only where it is asked to watch them, which costs time.
Ref<MTLCommandBufferDescriptor*> make_descriptor(bool retained, bool watched) {
    auto descriptor = Ref<MTLCommandBufferDescriptor*>::adopt([[MTLCommandBufferDescriptor alloc] init]);
    [descriptor.get() setRetainedReferences:retained];
    if (watched) [descriptor.get() setErrorOptions:MTLCommandBufferErrorOptionEncoderExecutionStatus];
    return descriptor;
}

}  // namespace

Context::Context(Ref<id<MTLDevice>> device, const ShaderSources& sources)
    : info(describe(device.get())),
      device_(std::move(device)),
      queue_(make_queue(device_.get())),
      fence_(Ref<id<MTLFence>>::adopt([device_.get() newFence])),
      kept_by_metal_(make_descriptor(true, ledger_.kept())),
      kept_by_caller_(make_descriptor(false, ledger_.kept())),
      residency_(device_.get(), queue_.get()),
      shaders_(device_.get(), sources) {
    if (!fence_) throw DeviceError("the device gave no fence", "metal/queue", "refused");
}

Context::~Context() {
    if (!forked()) wait_idle();
    release_retired_until(std::numeric_limits<uint64_t>::max());
}

void Context::check_process(const char* doing) const {
    if (forked()) {
        throw DeviceError("the process was forked after the model was loaded; load it in the child", doing, "forked");
    }
}

void Context::check_usable(const char* doing) const {
    check_process(doing);
    if (lost_) throw DeviceError("the GPU was removed or reset; create the backend anew", doing, "device removed");
}

std::exception_ptr Context::judge(const Outcome& outcome, const std::string& scope, uint64_t needed) {
    NSError* const error = outcome.error.get();
    if (!error) return nullptr;
    const AutoreleasePool pool;
    if (is_device_lost(error)) lost_ = true;
    return command_buffer_error(error, scope, needed, available());
}

void Context::wait_idle() {
    uint64_t committed = 0;
    {
        const std::lock_guard lock(progress_->mutex);
        committed = progress_->committed;
    }
    wait_for(committed);
    release_retired();
}

// So many have ended, or as many as there are when some are dropped.
void Context::wait_for(uint64_t begun) {
    std::unique_lock lock(progress_->mutex);
    progress_->changed.wait(
        lock, [&] { return progress_->ended >= std::min(begun, progress_->committed + progress_->encoding); });
}

uint64_t Context::available() const noexcept {
    const uint64_t allocated = [device_.get() currentAllocatedSize];
    return info.memory_bytes > allocated ? info.memory_bytes - allocated : 0;
}

void Context::refuse(const std::string& why, uint64_t bytes, uint64_t available, const std::string& owner) const {
    throw OutOfMemory("cannot allocate " + std::to_string(bytes) + " bytes for " + owner + ": " + why, bytes, available,
                      owner);
}

void Context::reserve(uint64_t bytes, const std::string& owner) {
    if (bytes > info.max_buffer_bytes) {
        refuse("the device's largest buffer is " + std::to_string(info.max_buffer_bytes) + " bytes", bytes,
               info.max_buffer_bytes, owner);
    }
    for (;;) {
        const uint64_t seen = releases();
        uint64_t reserved = reserved_, left = 0;
        do {
            left = info.memory_bytes > reserved ? info.memory_bytes - reserved : 0;
        } while (bytes <= left && !reserved_.compare_exchange_weak(reserved, reserved + bytes));
        if (bytes <= left) return;
        if (release_all_retired(seen)) continue;
        refuse(std::to_string(left) + " of the recommended working set of " + std::to_string(info.memory_bytes) +
                   " bytes are available",
               bytes, left, owner);
    }
}

void Context::retire(Retired what) noexcept {
    // By encoders from now on; one that is open may name them.
    for (const auto& buffer : what.buffers) residency_.forget(buffer.get());
    try {
        const std::lock_guard lock(retired_mutex_);
        {
            const std::lock_guard counting(progress_->mutex);
            what.after = progress_->committed + progress_->encoding;
        }
        retired_.push_back(std::move(what));
    } catch (const std::bad_alloc&) {
        // Then it is released at once, which is safe when nothing is in flight.
        wait_for(what.after);
        leave_residency({&what, 1});
        unreserve(what.bytes);
        return;
    }
    release_retired();
}

void Context::release_retired() noexcept {
    uint64_t ended = 0;
    {
        const std::lock_guard lock(progress_->mutex);
        ended = progress_->ended;
    }
    release_retired_until(ended);
}

void Context::release_retired_until(uint64_t ended) noexcept {
    const std::lock_guard lock(retired_mutex_);
    const auto gone =
        std::partition(retired_.begin(), retired_.end(), [&](const Retired& one) { return one.after > ended; });
    if (gone == retired_.end()) return;
    leave_residency({gone, retired_.end()});
    uint64_t bytes = 0;
    for (auto one = gone; one != retired_.end(); ++one) bytes += one->bytes;
    retired_.erase(gone, retired_.end());
    unreserve(bytes);
    ++releases_;
}

bool Context::release_all_retired(uint64_t seen) {
    if (forked()) return false;
    uint64_t last = 0;
    {
        const std::lock_guard lock(retired_mutex_);
        for (const Retired& one : retired_) last = std::max(last, one.after);
    }
    wait_for(last);
    release_retired();
    return releases() != seen;
}

// The set keeps what was removed from it until its commit; a buffer must not outlive the mapping that it shows.
void Context::leave_residency(std::span<const Retired> gone) noexcept {
    const AutoreleasePool pool;
    for (const Retired& one : gone) {
        if (one.heap) residency_.remove(one.heap.get());
        if (!one.mapped) continue;
        for (const auto& buffer : one.buffers) residency_.remove(buffer.get());
    }
    residency_.commit();
}

void Context::Encoding::begin() {
    const std::lock_guard lock(context_.progress_->mutex);
    ++context_.progress_->encoding;
    open_ = true;
}

void Context::Encoding::commit() {
    const std::lock_guard lock(context_.progress_->mutex);
    --context_.progress_->encoding;
    ++context_.progress_->committed;
    open_ = false;
}

// What waits for one that is dropped would wait for one that may never come.
Context::Encoding::~Encoding() {
    if (!open_) return;
    {
        const std::lock_guard lock(context_.retired_mutex_);
        Progress& progress = *context_.progress_;
        const std::lock_guard counting(progress.mutex);
        --progress.encoding;
        for (Retired& one : context_.retired_) one.after = std::min(one.after, progress.committed + progress.encoding);
        progress.changed.notify_all();
    }
    context_.release_retired();
}

Context::Commands::Commands(Context& context, NSString* label, Lifetimes lifetimes)
    : encoding_(context), context_(context), lock_(context.queue_mutex_) {
    const bool by_metal = lifetimes == Lifetimes::kept_by_metal;
    buffer_ = [context.queue_.get()
        commandBufferWithDescriptor:(by_metal ? context.kept_by_metal_ : context.kept_by_caller_).get()];
    if (!buffer_) throw DeviceError("the device gave no command buffer", to_string(label), "refused");
    [buffer_ setLabel:label];
    encoding_.begin();
}

Context::Commands::~Commands() {
    end();
}

void Context::Commands::begun(id<MTLCommandEncoder> encoder) {
    if (!encoder) throw DeviceError("the device gave no encoder", to_string([buffer_ label]), "refused");
}

id<MTLComputeCommandEncoder> Context::Commands::compute(NSString* label, MTLComputePassDescriptor* pass) {
    end();
    id<MTLComputeCommandEncoder> encoder =
        pass ? [buffer_ computeCommandEncoderWithDescriptor:pass]
             : [buffer_ computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    begun(encoder);
    compute_ = encoder;
    [compute_ setLabel:label];
    if (fenced_ || context_.fence_updated_) [compute_ waitForFence:context_.fence_.get()];
    context_.residency_.use_in(compute_);
    return compute_;
}

id<MTLBlitCommandEncoder> Context::Commands::blit() {
    end();
    id<MTLBlitCommandEncoder> encoder = [buffer_ blitCommandEncoder];
    begun(encoder);
    blit_ = encoder;
    [blit_ setLabel:[buffer_ label]];
    if (fenced_ || context_.fence_updated_) [blit_ waitForFence:context_.fence_.get()];
    return blit_;
}

void Context::Commands::end() noexcept {
    if (compute_) {
        [compute_ updateFence:context_.fence_.get()];
        [compute_ endEncoding];
        fenced_ = true;
    }
    if (blit_) {
        [blit_ updateFence:context_.fence_.get()];
        [blit_ endEncoding];
        fenced_ = true;
    }
    compute_ = nil;
    blit_ = nil;
}

uint64_t Context::Commands::commit(Completion& completion) {
    end();
    context_.release_retired();
    context_.residency_.commit();
    const uint64_t number = completion.watch(buffer_);
    encoding_.commit();
    [buffer_ commit];
    context_.fence_updated_ |= fenced_;
    return number;
}

}  // namespace metallic::metal
