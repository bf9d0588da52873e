#include "backend/metal/metal_backend.h"

#include <cstring>

#include "backend/metal/device_facts.h"
#include "backend/metal/metal_heap.h"
#include "backend/metal/metal_plan.h"
#include "core/error.h"

namespace metallic::metal {
namespace {

class MetalBackend final : public Backend {
  public:
    explicit MetalBackend(Ref<id<MTLDevice>> device)
        : context_(std::make_shared<Context>(std::move(device), ShaderSources{})), transfers_(context_) {}

    const DeviceInfo& device() const noexcept override { return context_->info; }

    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label,
                                      Contents contents) override {
        const AutoreleasePool pool;
        context_->check_usable("metal/heap");
        if (storage == Storage::mapped) throw Error("a heap of mapped storage is a view: use wrap_host");
        return allocate_heap(context_, bytes, storage, label, contents);
    }

    std::shared_ptr<Heap> wrap_host(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                    std::string_view label, HostMemory memory) override {
        const AutoreleasePool pool;
        context_->check_usable("metal/heap");
        if (memory == HostMemory::mapping && !bytes.empty()) {
            return wrap_mapping(context_, bytes, std::move(owner), label);
        }
        auto heap = allocate_heap(context_, bytes.size(), Storage::mapped, label, Contents::undefined);
        if (!bytes.empty()) std::memcpy(heap->host(), bytes.data(), bytes.size());
        return heap;
    }

    void copy(BufferView from, BufferView to) override {
        const AutoreleasePool pool;
        context_->check_usable("metal/copy");
        transfers_.copy(from, to);
    }

    void upload(std::span<const std::byte> from, BufferView to) override {
        const AutoreleasePool pool;
        context_->check_usable("metal/upload");
        transfers_.upload(from, to);
    }

    void download(BufferView from, std::span<std::byte> to) override {
        const AutoreleasePool pool;
        context_->check_usable("metal/download");
        transfers_.download(from, to);
    }

    void clear(BufferView range) override {
        const AutoreleasePool pool;
        context_->check_usable("metal/clear");
        transfers_.clear(range);
    }

    void check_idle(const BufferView& range, std::string_view owner) const override {
        if (!range.heap || !context_->ledger().kept()) return;
        context_->ledger().check(range.address(), range.address() + range.bytes, owner);
    }

    void attach(std::shared_ptr<Allocator> allocator) override { transfers_.attach(std::move(allocator)); }
    void detach(const Allocator& allocator) noexcept override { transfers_.detach(allocator); }

    std::unique_ptr<Plan> compile(const CompileInputs& inputs) override {
        if (!inputs.program) throw Error("compile: no program");
        context_->check_usable("metal/compile");
        CompileInputs complete = inputs;
        if (!complete.allocator) complete.allocator = heap_allocator(context_);
        return std::make_unique<MetalPlan>(complete, context_, transfers_, tickets_);
    }

    Ticket submit(Plan& plan, const Batch& batch) override {
        auto* const own = dynamic_cast<MetalPlan*>(&plan);
        if (!own || &own->context() != context_.get()) throw Error("submit: a plan of another backend");
        context_->check_usable("metal/submit");
        return own->submit(batch);
    }

    void wait(Ticket ticket) override {
        context_->check_process("metal/wait");
        const Tickets::Holder holder = tickets_->find(ticket);
        if (holder.plan) holder.plan->wait(holder.slot, ticket);
    }

  private:
    const std::shared_ptr<Context> context_;
    const std::shared_ptr<Tickets> tickets_ = std::make_shared<Tickets>();
    Transfers transfers_;
};

}  // namespace

std::optional<DeviceInfo> device_info() {
    const Ref<id<MTLDevice>> device = find_device();
    if (!device) return std::nullopt;
    return describe(device.get());
}

std::unique_ptr<Backend> create_backend() {
    Ref<id<MTLDevice>> device = find_device();
    if (!device) throw DeviceError("there is no GPU that supports Metal 3", "metal", "no device");
    return std::make_unique<MetalBackend>(std::move(device));
}

}  // namespace metallic::metal
