#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/error.h"

namespace metallic::test {

// Host memory behind the seam, with a limit; runs no programs.
class FakeBackend : public Backend {
  public:
    explicit FakeBackend(uint64_t limit = ~uint64_t{0}) : limit_(limit) {}

    const DeviceInfo& device() const noexcept override { return info_; }
    using Backend::create_heap;
    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view label,
                                      Contents contents) override {
        if (bytes > limit_ - used) throw OutOfMemory("no memory", bytes, limit_ - used, std::string(label));
        used += bytes;
        ++created;
        return std::make_shared<HostHeap>(*this, bytes, storage, always_zero ? Contents::zero : contents);
    }
    std::shared_ptr<Heap> wrap_host(std::span<const std::byte>, std::shared_ptr<const void>, std::string_view,
                                    HostMemory) override {
        throw Error("not here");
    }
    void copy(BufferView from, BufferView to) override {
        ++copies;
        std::memcpy(reinterpret_cast<void*>(to.address()), reinterpret_cast<const void*>(from.address()), from.bytes);
    }
    void upload(std::span<const std::byte> from, BufferView to) override {
        std::memcpy(to.host(), from.data(), from.size());
    }
    void download(BufferView from, std::span<std::byte> to) override { std::memcpy(to.data(), from.host(), to.size()); }
    void clear(BufferView range) override {
        cleared += range.bytes;
        std::memset(reinterpret_cast<void*>(range.address()), 0, range.bytes);
    }
    void check_idle(const BufferView&, std::string_view) const override {}
    void attach(std::shared_ptr<Allocator>) override {}
    void detach(const Allocator&) noexcept override {}
    std::unique_ptr<Plan> compile(const CompileInputs&) override { return nullptr; }
    Ticket submit(Plan&, const Batch&) override { return 0; }
    void wait(Ticket) override {}

    uint64_t used = 0;
    int created = 0;
    int copies = 0;
    uint64_t cleared = 0;      // bytes
    bool always_zero = false;  // heaps are zero whatever is asked for, as the CPU's are

  private:
    class HostHeap final : public Heap {
      public:
        HostHeap(FakeBackend& owner, uint64_t bytes, Storage storage, Contents contents)
            : owner_(owner),
              memory_(bytes, contents == Contents::zero ? std::byte{0} : std::byte{0xa5}),
              storage_(storage),
              zero_(contents == Contents::zero) {}
        ~HostHeap() override { owner_.used -= memory_.size(); }
        std::byte* host() const noexcept override { return const_cast<std::byte*>(memory_.data()); }
        uint64_t address() const noexcept override { return reinterpret_cast<uint64_t>(memory_.data()); }
        uint64_t bytes() const noexcept override { return memory_.size(); }
        Storage storage() const noexcept override { return storage_; }
        bool made_zero() const noexcept override { return zero_; }

      private:
        FakeBackend& owner_;
        std::vector<std::byte> memory_;
        Storage storage_;
        bool zero_;
    };

    DeviceInfo info_;
    uint64_t limit_;
};

}  // namespace metallic::test
