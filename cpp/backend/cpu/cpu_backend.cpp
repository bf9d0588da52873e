#include "backend/cpu/cpu_backend.h"

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <string>

#include "backend/allocator.h"
#include "backend/cpu/cpu_heap.h"
#include "backend/cpu/cpu_plan.h"
#include "backend/cpu/host_facts.h"
#include "backend/cpu/isa/select.h"
#include "backend/cpu/thread_pool.h"
#include "core/error.h"

namespace metallic::cpu {
namespace {

constexpr uint32_t kMostThreads = 1024;

uint32_t thread_count(uint32_t wanted) {
    if (wanted > kMostThreads) {
        throw RequestError(std::to_string(wanted) + " threads; at most " + std::to_string(kMostThreads) +
                           " are supported");
    }
    return wanted ? wanted : std::min(usable_cores(), kMostThreads);
}

void check_view(const BufferView& view, const char* role) {
    if (!view.heap || view.offset > view.heap->bytes() || view.bytes > view.heap->bytes() - view.offset) {
        throw Error(std::string("copy: the ") + role + " lies outside of its heap");
    }
}

class CpuBackend final : public Backend {
  public:
    explicit CpuBackend(uint32_t threads)
        : isa_(select_isa()),
          device_(device_info(threads)),
          ledger_(std::make_shared<HeapLedger>(device_.memory_bytes)),
          pool_(device_.threads) {}

    const DeviceInfo& device() const noexcept override { return device_; }

    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label, Contents) override {
        if (storage == Storage::mapped) throw Error("a heap of mapped storage is a view: use wrap_host");
        return allocate_heap(ledger_, bytes, storage, label);
    }

    std::shared_ptr<Heap> wrap_host(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                                    std::string_view, HostMemory) override {
        return wrap_heap(bytes, std::move(owner));
    }

    void copy(BufferView from, BufferView to) override {
        check_view(from, "source");
        check_view(to, "target");
        if (from.bytes != to.bytes) throw Error("copy: source and target differ in size");
        if (to.heap->storage() == Storage::mapped) throw Error("copy: the target is read-only");
        if (from.bytes == 0) return;
        std::memmove(reinterpret_cast<void*>(to.address()), reinterpret_cast<const void*>(from.address()), from.bytes);
    }

    void upload(std::span<const std::byte> from, BufferView to) override {
        check_view(to, "target");
        if (from.size() != to.bytes) throw Error("copy: source and target differ in size");
        if (to.heap->storage() == Storage::mapped) throw Error("copy: the target is read-only");
        if (!from.empty()) std::memmove(reinterpret_cast<void*>(to.address()), from.data(), from.size());
    }

    void download(BufferView from, std::span<std::byte> to) override {
        check_view(from, "source");
        if (to.size() != from.bytes) throw Error("copy: source and target differ in size");
        if (!to.empty()) std::memmove(to.data(), reinterpret_cast<const void*>(from.address()), to.size());
    }

    void clear(BufferView range) override {
        check_view(range, "range");
        if (range.heap->storage() == Storage::mapped) throw Error("clear: the range is read-only");
        if (range.bytes) std::memset(reinterpret_cast<void*>(range.address()), 0, range.bytes);
    }

    // Nothing is in flight once submit has returned.
    void check_idle(const BufferView&, std::string_view) const override {}

    // Transfers are plain copies.
    void attach(std::shared_ptr<Allocator>) override {}
    void detach(const Allocator&) noexcept override {}

    std::unique_ptr<Plan> compile(const CompileInputs& inputs) override {
        if (!inputs.program) throw Error("compile: no program");
        CompileInputs complete = inputs;
        if (!complete.allocator) {
            complete.allocator = std::make_shared<HeapAllocator>(
                [ledger = ledger_](uint64_t bytes, Storage storage, std::string_view label, Contents) {
                    return allocate_heap(ledger, bytes, storage, label);
                });
        }
        return std::make_unique<CpuPlan>(complete, isa_, pool_.threads());
    }

    Ticket submit(Plan& plan, const Batch& batch) override {
        auto* const own = dynamic_cast<CpuPlan*>(&plan);
        if (!own) throw Error("submit: a plan of another backend");
        if (getpid() != process_) {
            throw DeviceError("the process was forked after the model was loaded; load it in the child", "cpu/submit",
                              "forked");
        }
        const std::lock_guard lock(mutex_);
        own->run(pool_, batch);
        return ++tickets_;
    }

    void wait(Ticket ticket) override {
        // Whatever was submitted has completed.
        if (ticket == 0 || ticket > tickets_) throw Error("wait: an unknown ticket");
    }

  private:
    const Isa& isa_;
    const DeviceInfo device_;
    const std::shared_ptr<HeapLedger> ledger_;
    const pid_t process_ = getpid();  // worker threads do not survive a fork
    std::mutex mutex_;                // one submission at a time
    ThreadPool pool_;
    std::atomic<Ticket> tickets_{0};
};

}  // namespace

DeviceInfo device_info(uint32_t threads) {
    DeviceInfo info;
    info.backend = "cpu";
    info.name = processor_name();
    info.detail = select_isa().name;
    info.is_host = true;
    info.unified_memory = true;
    info.deterministic = true;
    info.threads = thread_count(threads);
    info.memory_bytes = memory_bytes();
    info.max_buffer_bytes = info.memory_bytes;
    return info;
}

std::unique_ptr<Backend> create_backend(uint32_t threads) {
    return std::make_unique<CpuBackend>(threads);
}

}  // namespace metallic::cpu
