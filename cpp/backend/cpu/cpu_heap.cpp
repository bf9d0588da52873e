#include "backend/cpu/cpu_heap.h"

#include <sys/mman.h>

#include <limits>
#include <string>

#include "core/error.h"

namespace metallic::cpu {
namespace {

constexpr uint64_t kPage = 16384;  // a multiple of every supported system's page
constexpr uint64_t kHugePage = uint64_t{2} << 20;

uint64_t round_up(uint64_t bytes, uint64_t to) {
    return (bytes + to - 1) / to * to;
}

std::byte* map_zeroed(uint64_t bytes) noexcept {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
}

// `bytes` is a multiple of kPage.
std::byte* map_aligned(uint64_t bytes) noexcept {
    if (bytes < 2 * kHugePage) return map_zeroed(bytes);
    std::byte* const wide = map_zeroed(bytes + kHugePage);
    if (!wide) return nullptr;
    const uint64_t start = reinterpret_cast<uint64_t>(wide);
    const uint64_t before = round_up(start, kHugePage) - start;
    if (before) munmap(wide, before);
    munmap(wide + before + bytes, kHugePage - before);
#if defined(MADV_HUGEPAGE)
    madvise(wide + before, bytes, MADV_HUGEPAGE);
#endif
    return wide + before;
}

class AnonymousHeap final : public Heap {
  public:
    AnonymousHeap(std::shared_ptr<HeapLedger> ledger, std::byte* memory, uint64_t bytes, uint64_t mapped,
                  Storage storage) noexcept
        : ledger_(std::move(ledger)), memory_(memory), bytes_(bytes), mapped_(mapped), storage_(storage) {}
    AnonymousHeap(const AnonymousHeap&) = delete;
    AnonymousHeap& operator=(const AnonymousHeap&) = delete;
    ~AnonymousHeap() override {
        munmap(memory_, mapped_);
        ledger_->used.fetch_sub(mapped_);
    }

    std::byte* host() const noexcept override { return storage_ == Storage::exclusive ? nullptr : memory_; }
    uint64_t address() const noexcept override { return reinterpret_cast<uint64_t>(memory_); }
    uint64_t bytes() const noexcept override { return bytes_; }
    Storage storage() const noexcept override { return storage_; }
    bool made_zero() const noexcept override { return true; }  // the system's fresh pages are

  private:
    const std::shared_ptr<HeapLedger> ledger_;
    std::byte* const memory_;
    const uint64_t bytes_, mapped_;
    const Storage storage_;
};

class WrappedHeap final : public Heap {
  public:
    WrappedHeap(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) noexcept
        : owner_(std::move(owner)), memory_(bytes) {}

    std::byte* host() const noexcept override { return const_cast<std::byte*>(memory_.data()); }
    uint64_t address() const noexcept override { return reinterpret_cast<uint64_t>(memory_.data()); }
    uint64_t bytes() const noexcept override { return memory_.size(); }
    Storage storage() const noexcept override { return Storage::mapped; }
    bool made_zero() const noexcept override { return false; }

  private:
    const std::shared_ptr<const void> owner_;
    const std::span<const std::byte> memory_;
};

}  // namespace

std::shared_ptr<Heap> allocate_heap(const std::shared_ptr<HeapLedger>& ledger, uint64_t bytes, Storage storage,
                                    std::string_view label) {
    const auto refuse = [&](uint64_t available) {
        throw OutOfMemory("cannot allocate " + std::to_string(bytes) + " bytes for " + std::string(label) + "; " +
                              std::to_string(available) + " are available",
                          bytes, available, std::string(label));
    };
    const bool countable = bytes <= std::numeric_limits<uint64_t>::max() - 2 * kHugePage;
    const uint64_t mapped = countable ? round_up(bytes ? bytes : 1, kPage) : bytes;
    uint64_t used = ledger->used.load();
    do {
        const uint64_t available = ledger->limit > used ? ledger->limit - used : 0;
        if (!countable || mapped > available) refuse(available);
    } while (!ledger->used.compare_exchange_weak(used, used + mapped));
    std::byte* const memory = map_aligned(mapped);
    if (!memory) {
        ledger->used.fetch_sub(mapped);
        refuse(ledger->limit - used);
    }
    try {
        return std::make_shared<AnonymousHeap>(ledger, memory, bytes, mapped, storage);
    } catch (...) {
        munmap(memory, mapped);
        ledger->used.fetch_sub(mapped);
        throw;
    }
}

std::shared_ptr<Heap> wrap_heap(std::span<const std::byte> bytes, std::shared_ptr<const void> owner) {
    return std::make_shared<WrappedHeap>(bytes, std::move(owner));
}

}  // namespace metallic::cpu
