#include "executor/regions.h"

#include <algorithm>
#include <set>
#include <utility>

namespace metalsim {
namespace {

struct Smaller {
    bool operator()(const RegionRecord* a, const RegionRecord* b) const {
        return a->bytes != b->bytes ? a->bytes < b->bytes : a->id > b->id;
    }
};
using Covering = std::set<RegionRecord*, Smaller>;

// The smallest region of those that cover a place; but one that was released gives way to whatever was put there after.
RegionRecord* owner(const Covering& covering) {
    for (RegionRecord* const record : covering) {
        const uint64_t released = record->released.load(std::memory_order_relaxed);
        if (released == 0) return record;
        const bool replaced = std::any_of(covering.begin(), covering.end(), [&](const RegionRecord* other) {
            return other->released.load(std::memory_order_relaxed) == 0 && other->added > released;
        });
        if (!replaced) return record;
    }
    return nullptr;
}

}  // namespace

const RegionMap::Span* RegionMap::find(uintptr_t address) const noexcept {
    const auto after = std::upper_bound(spans.begin(), spans.end(), address,
                                        [](uintptr_t value, const Span& span) { return value < span.high; });
    return spans.data() + (after - spans.begin());
}

const RegionRecord* RegionMap::nearest(uintptr_t address) const noexcept {
    constexpr uintptr_t kNear = uintptr_t{1} << 24;
    const Span* const after = find(address);
    const uintptr_t above = after != spans.data() + spans.size() ? after->low - address : kNear;
    const uintptr_t below = after != spans.data() ? address - (after - 1)->high : kNear;
    if (std::min(above, below) >= kNear) return nullptr;
    return below <= above ? (after - 1)->record : after->record;
}

bool RegionMap::resident(const RegionRecord& record, const std::vector<Memory::Id>& ids) const noexcept {
    const auto listed = [&](Memory::Id id) { return std::binary_search(ids.begin(), ids.end(), id); };
    if (listed(record.id)) return true;
    return std::any_of(records.begin(), records.end(), [&](const std::shared_ptr<RegionRecord>& other) {
        return other->base <= record.base && record.base + record.bytes <= other->base + other->bytes &&
               listed(other->id);
    });
}

Memory::Id Regions::add(const Region& region) {
    auto record = std::make_shared<RegionRecord>();
    record->base = reinterpret_cast<uintptr_t>(region.base);
    record->bytes = region.bytes;
    record->read_only = region.read_only;
    record->label = region.label;
    shadow_.mark(record->base, record->bytes, region.initialised);
    const std::lock_guard guard(mutex_);
    record->id = record->added = ++clock_;
    records_.emplace(record->id, record);
    map_ = nullptr;
    return record->id;
}

void Regions::rename(Id id, std::string_view label) {
    const std::lock_guard guard(mutex_);
    if (const auto found = records_.find(id); found != records_.end()) found->second->label = label;
}

void Regions::release(Id id) {
    const std::lock_guard guard(mutex_);
    const auto found = records_.find(id);
    if (found == records_.end() || found->second->released.load() != 0) return;
    found->second->released.store(++clock_);
    map_ = nullptr;
}

void Regions::forget(Id id) {
    std::shared_ptr<RegionRecord> record;
    bool inside = false;  // another region keeps the memory
    {
        const std::lock_guard guard(mutex_);
        const auto found = records_.find(id);
        if (found == records_.end()) return;
        record = found->second;
        records_.erase(found);
        map_ = nullptr;
        inside = std::any_of(records_.begin(), records_.end(), [&](const auto& other) {
            return other.second->base < record->base + record->bytes &&
                   record->base < other.second->base + other.second->bytes;
        });
    }
    if (inside) return;
    shadow_.mark(record->base, record->bytes, false);
    shadow_.drop(record->base, record->bytes);
}

void Regions::mark_written(const void* at, uint64_t bytes) {
    shadow_.mark(reinterpret_cast<uintptr_t>(at), bytes, true);
}

std::string Regions::label(const RegionRecord& record) {
    const std::lock_guard guard(mutex_);
    return record.label.empty() ? "a region without a label" : record.label;
}

std::shared_ptr<const RegionMap> Regions::map() {
    const std::lock_guard guard(mutex_);
    if (map_ == nullptr) map_ = build();
    return map_;
}

std::shared_ptr<const RegionMap> Regions::build() const {
    auto map = std::make_shared<RegionMap>();
    struct Edge {
        uintptr_t at;
        bool opens;
        RegionRecord* record;
    };
    std::vector<Edge> edges;
    for (const auto& [id, record] : records_) {
        if (record->bytes == 0) continue;
        map->records.push_back(record);
        edges.push_back({record->base, true, record.get()});
        edges.push_back({record->base + record->bytes, false, record.get()});
    }
    std::sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) { return a.at < b.at; });
    Covering covering;
    for (size_t i = 0; i < edges.size(); ++i) {
        if (edges[i].opens) {
            covering.insert(edges[i].record);
        } else {
            covering.erase(edges[i].record);
        }
        if (i + 1 == edges.size() || edges[i + 1].at == edges[i].at) continue;
        RegionRecord* const record = owner(covering);
        if (record == nullptr) continue;
        const bool extends =
            !map->spans.empty() && map->spans.back().record == record && map->spans.back().high == edges[i].at;
        if (extends) {
            map->spans.back().high = edges[i + 1].at;
        } else {
            map->spans.push_back({edges[i].at, edges[i + 1].at, record});
        }
    }
    return map;
}

}  // namespace metalsim
