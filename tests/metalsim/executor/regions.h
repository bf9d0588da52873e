#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "executor/executor.h"
#include "executor/shadow.h"

namespace metalsim {

struct RegionRecord {
    Memory::Id id = 0;
    uintptr_t base = 0;
    uint64_t bytes = 0;
    bool read_only = false;
    uint64_t added = 0;                 // in the order of calls
    std::atomic<uint64_t> released{0};  // the same; 0: alive
    std::string label;                  // guarded by Regions
};

// Which region every address belongs to, as things stood when it was asked for.
struct RegionMap {
    struct Span {
        uintptr_t low = 0, high = 0;
        RegionRecord* record = nullptr;
    };
    std::vector<Span> spans;  // sorted, disjoint
    std::vector<std::shared_ptr<RegionRecord>> records;

    // The span that contains the address or, failing that, the first above it.
    const Span* find(uintptr_t address) const noexcept;
    bool contains(const Span* span, uintptr_t address) const noexcept {
        return span != spans.data() + spans.size() && address >= span->low;
    }
    // What a stray address is blamed on: the region whose start or end is nearest, if it is anywhere near.
    const RegionRecord* nearest(uintptr_t address) const noexcept;
    // Whether the region, or one around it, is among the sorted ids.
    bool resident(const RegionRecord& record, const std::vector<Memory::Id>& ids) const noexcept;
};

class Regions final : public Memory {
  public:
    explicit Regions(Shadow& shadow) : shadow_(shadow) {}

    Id add(const Region& region) override;
    void rename(Id id, std::string_view label) override;
    void release(Id id) override;
    void forget(Id id) override;
    void mark_written(const void* at, uint64_t bytes) override;

    std::shared_ptr<const RegionMap> map();
    std::string label(const RegionRecord& record);

  private:
    std::shared_ptr<const RegionMap> build() const;

    Shadow& shadow_;
    std::mutex mutex_;
    uint64_t clock_ = 0;
    std::unordered_map<Id, std::shared_ptr<RegionRecord>> records_;
    std::shared_ptr<const RegionMap> map_;  // null: to be built
};

}  // namespace metalsim
