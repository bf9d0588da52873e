#include "runtime/load_needs.h"

#include <numeric>
#include <utility>

#include "core/error.h"

namespace metallic {
namespace {

// Memory that is only counted.
class CountedHeap final : public Heap {
  public:
    CountedHeap(uint64_t bytes, Storage storage) : bytes_(bytes), storage_(storage) {}
    std::byte* host() const noexcept override { return nullptr; }
    uint64_t address() const noexcept override { return 0; }
    uint64_t bytes() const noexcept override { return bytes_; }
    Storage storage() const noexcept override { return storage_; }
    bool made_zero() const noexcept override { return true; }

  private:
    const uint64_t bytes_;
    const Storage storage_;
};

// A device of unlimited memory for pools to divide; it computes nothing.
class CountedBackend final : public Backend {
  public:
    const DeviceInfo& device() const noexcept override { return info_; }
    std::shared_ptr<Heap> create_heap(uint64_t bytes, Storage storage, std::string_view, Contents) override {
        return std::make_shared<CountedHeap>(bytes, storage);
    }
    std::shared_ptr<Heap> wrap_host(std::span<const std::byte> bytes, std::shared_ptr<const void>, std::string_view,
                                    HostMemory) override {
        return std::make_shared<CountedHeap>(bytes.size(), Storage::mapped);
    }
    void copy(BufferView, BufferView) override { refuse(); }
    void upload(std::span<const std::byte>, BufferView) override { refuse(); }
    void download(BufferView, std::span<std::byte>) override { refuse(); }
    void clear(BufferView) override {}
    void check_idle(const BufferView&, std::string_view) const override {}
    void attach(std::shared_ptr<Allocator>) override {}
    void detach(const Allocator&) noexcept override {}
    std::unique_ptr<Plan> compile(const CompileInputs&) override { refuse(); }
    Ticket submit(Plan&, const Batch&) override { refuse(); }
    void wait(Ticket) override { refuse(); }

  private:
    [[noreturn]] static void refuse() { throw Error("a device that only counts memory cannot be used"); }
    const DeviceInfo info_;
};

}  // namespace

uint64_t LoadNeeds::plans(uint32_t device) const noexcept {
    return std::accumulate(
        pieces.begin(), pieces.end(), uint64_t{0}, [&](uint64_t sum, const StagedPlan::Piece& piece) {
            return sum + (piece.device == device && !piece.copy ? Pool::reserved_bytes(piece.bytes) : 0);
        });
}

uint64_t LoadNeeds::bytes(Tag tag) const noexcept {
    const uint64_t start = tag == Tag::weights ? mapped : 0;
    return std::accumulate(pieces.begin(), pieces.end(), start, [&](uint64_t sum, const StagedPlan::Piece& piece) {
        return sum + (piece.tag == tag ? Pool::reserved_bytes(piece.bytes) : 0);
    });
}

// Takes what a load takes.
void LoadNeeds::take(uint64_t budget) const {
    if (budget == 0) return;
    const auto backend = std::make_shared<CountedBackend>();
    const auto shared = std::make_shared<Budget>(budget);
    std::array<Pool, 2> pools{Pool(backend, shared), Pool(backend, shared)};
    std::vector<Allocation> held;
    held.reserve(pieces.size());
    for (const StagedPlan::Piece& piece : pieces) {
        held.push_back(pools.at(piece.device).allocate_bytes(piece.bytes, piece.tag, piece.owner, piece.storage));
    }
}

bool LoadNeeds::fits(uint64_t budget) const {
    try {
        take(budget);
        return true;
    } catch (const OutOfMemory&) {
        return false;
    }
}

uint64_t LoadNeeds::least_budget() const {
    uint64_t least = 0, most = uint64_t{1} << 20;
    while (!fits(most)) least = std::exchange(most, most * 2);
    while (most - least > 4096) {
        const uint64_t middle = least + (most - least) / 2;
        (fits(middle) ? most : least) = middle;
    }
    return most;
}

void LoadNeeds::check(uint64_t budget) const {
    try {
        take(budget);
    } catch (const OutOfMemory& error) {
        throw OutOfMemory(std::string(error.what()) + "; loading takes a budget of " + std::to_string(least_budget()) +
                              " bytes, and more for keys and values",
                          error.needed, error.available, error.owner);
    }
}

LoadNeeds find_needs(const Program& planned, const Placement& placement, const std::shared_ptr<const ModelFile>& file,
                     const std::array<std::shared_ptr<Backend>, 2>& backends, StagedPlan::Options options) {
    LoadNeeds needs;
    const auto budget = std::make_shared<Budget>(0);
    std::array<std::unique_ptr<Pool>, 2> pools;
    std::vector<StagedPlan::Device> devices;
    for (size_t device = 0; device < backends.size(); ++device) {
        const bool used = placement.on(static_cast<uint32_t>(device));
        if (used) pools[device] = std::make_unique<Pool>(backends[device], budget);
        devices.push_back({used ? backends[device] : nullptr, pools[device].get()});
    }
    options.pieces = &needs.pieces;
    const StagedPlan plan(planned, placement, file, std::move(devices), options);
    needs.groups.assign(plan.groups().begin(), plan.groups().end());
    for (const auto& pool : pools) needs.mapped += pool ? pool->statistics().mapped_bytes : 0;
    return needs;
}

}  // namespace metallic
