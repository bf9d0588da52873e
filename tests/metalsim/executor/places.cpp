#include <link.h>

#include <algorithm>
#include <sstream>
#include <string>

#include "executor/checker.h"

// Where an address belongs: a region of device memory, threadgroup memory, or what a kernel may touch besides.
namespace metalsim {
namespace {

const char* verb(Access kind) {
    return kind == Access::load ? "a read" : kind == Access::store ? "a write" : "an atomic operation";
}

struct ModuleQuery {
    uintptr_t inside;
    std::vector<std::array<uintptr_t, 3>> segments;  // low, high, writable
};

int visit_module(dl_phdr_info* info, size_t, void* data) {
    auto& query = *static_cast<ModuleQuery*>(data);
    query.segments.clear();
    bool here = false;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        const auto& header = info->dlpi_phdr[i];
        if (header.p_type != PT_LOAD) continue;
        const uintptr_t low = info->dlpi_addr + header.p_vaddr;
        query.segments.push_back({low, low + header.p_memsz, (header.p_flags & PF_W) != 0 ? uintptr_t{1} : 0});
        here |= query.inside - low < header.p_memsz;
    }
    return here ? 1 : 0;
}

}  // namespace

void Checker::access_slowly(Access kind, uintptr_t address, uint64_t bytes, const void* site) {
    // A combine has the values of all lanes, each on the stack of its lane, through our tables of them.
    const auto* const pointer = reinterpret_cast<const void*>(address);
    if (group_.combining && (group_.stacks.contains(pointer) || group_.is_table(pointer))) return;
    const Fiber& fiber = *group_.fiber;
    if (address - reinterpret_cast<uintptr_t>(fiber.stack) < fiber.stack_bytes) return;
    if (!active_) activate();
    last_ = address;
    last_bytes_ = static_cast<uint32_t>(std::min<uint64_t>(bytes, UINT32_MAX));
    Translation at;
    translate(kind, address, bytes, site, at);
    if (at.shadow == nullptr) return;
    const uintptr_t end = address + bytes;
    while (address < end) {
        const auto part =
            static_cast<uint32_t>(std::min<uint64_t>(end - address, kPageBytes - (address & (kPageBytes - 1))));
        if (at.page != address >> kPageShift) {
            at.page = address >> kPageShift;
            at.shadow = at.space == kDevice
                            ? books_.shadow.page(address)
                            : &arena_pages_[(address - reinterpret_cast<uintptr_t>(group_.arena.base())) >> kPageShift];
        }
        check_page(kind, at, address, part);
        address += part;
    }
}

void Checker::translate(Access kind, uintptr_t address, uint64_t bytes, const void* site, Translation& at) {
    at.page = address >> kPageShift;
    const bool found =
        address - reinterpret_cast<uintptr_t>(group_.arena.base()) < Arena::kBytes
            ? translate_threadgroup(address, bytes, site, at)
            : translate_region(kind, address, bytes, site, at) || translate_other(kind, address, bytes, at);
    if (!found) stray(kind, address, bytes, site);
    translations_[at.page & (kTranslations - 1)] = at;
}

bool Checker::translate_threadgroup(uintptr_t address, uint64_t bytes, const void* site, Translation& at) {
    const auto base = reinterpret_cast<uintptr_t>(group_.arena.base());
    const Arena::Variable* const variable = group_.arena.near(static_cast<uint32_t>(address - base));
    if (variable == nullptr) return false;
    at.low = base + variable->offset;
    at.high = at.low + variable->bytes;
    if (address < at.low || address + bytes > at.high) {
        tell(Problem::out_of_bounds, kThreadgroup, address, bytes,
             "beyond the " + std::to_string(variable->bytes) + " bytes of a threadgroup variable", site);
        group_.abandon(Stopped::reported);
    }
    at.space = kThreadgroup;
    at.writable = true;
    at.shadow = &arena_pages_[(address - base) >> kPageShift];
    return true;
}

bool Checker::translate_region(Access kind, uintptr_t address, uint64_t bytes, const void* site, Translation& at) {
    const RegionMap::Span* const span = map_->find(address);
    if (!map_->contains(span, address)) return false;
    const RegionRecord& record = *span->record;
    if (address + bytes > record.base + record.bytes) {
        tell(Problem::out_of_bounds, kDevice, address, bytes,
             std::string(verb(kind)) + " past the end of its " + std::to_string(record.bytes) + " bytes", site);
        group_.abandon(Stopped::reported);
    }
    at.low = span->low;
    at.high = span->high;
    const bool released = record.released.load(std::memory_order_relaxed) != 0;
    if (released && news(Problem::use_after_release, record.base, nullptr)) {
        tell(Problem::use_after_release, kDevice, address, bytes, std::string(verb(kind)) + " after it was released",
             site);
    }
    const Residence& known = residence(record);
    if (!known.resident && news(Problem::not_resident, record.base, nullptr)) {
        tell(Problem::not_resident, kDevice, address, bytes,
             std::string(verb(kind)) + "; it is neither bound nor made resident", site);
    }
    if (kind != Access::load && known.resident && !known.writable && news(Problem::read_only, record.base, nullptr)) {
        tell(Problem::read_only, kDevice, address, bytes,
             std::string(verb(kind)) + " of memory that was declared as read, by useHeap: or useResource:usage:", site);
    }
    if (kind != Access::load && record.read_only) {
        tell(Problem::read_only, kDevice, address, bytes, std::string(verb(kind)) + " of memory that is only read",
             site);
        group_.abandon(Stopped::reported);
    }
    at.writable = !record.read_only && known.writable;
    // What nobody writes needs no history; whether it was written still matters.
    at.shadow = books_.shadow.page(address);
    return true;
}

// Looking through all regions for one around this is too much for every page.
const Checker::Residence& Checker::residence(const RegionRecord& record) {
    const Launch& launch = run_->launch();
    const auto among = [&](const std::vector<Memory::Id>* ids) { return !ids || map_->resident(record, *ids); };
    Residence& known = residences_[record.id % residences_.size()];
    if (known.record != &record) known = {&record, among(launch.resident), among(launch.writable)};
    return known;
}

// What the executor itself hands to kernels, and constants of their library.
bool Checker::translate_other(Access kind, uintptr_t address, uint64_t bytes, Translation& at) {
    const Launch& launch = run_->launch();
    const auto within = [&](const void* low, size_t size) {
        const auto base = reinterpret_cast<uintptr_t>(low);
        if (low == nullptr || address < base || address + bytes > base + size) return false;
        at.low = base;
        at.high = base + size;
        return true;
    };
    if (kind == Access::load) {
        constexpr size_t kConstantsBytes = 1 << 16;  // of function constants: the block's size is its library's affair
        if (within(launch.arguments, sizeof(MetalsimArguments)) ||
            within(group_.arena.arguments(), sizeof(void*) * kMetalsimThreadgroupArguments) ||
            within(&services(), sizeof(MetalsimServices)) ||
            within(launch.arguments->function_constants, kConstantsBytes)) {
            return true;
        }
    }
    return in_module(kind, address, bytes, at);
}

bool Checker::in_module(Access kind, uintptr_t address, uint64_t bytes, Translation& at) {
    const MetalsimKernel entry = run_->launch().function->entry;
    if (module_of_ != entry) {
        ModuleQuery query{reinterpret_cast<uintptr_t>(entry), {}};
        module_.clear();
        if (dl_iterate_phdr(&visit_module, &query) != 0) {
            for (const auto& [low, high, writable] : query.segments) module_.push_back({low, high, writable != 0});
        }
        module_of_ = entry;
    }
    for (const LoadedSegment& segment : module_) {
        if (address < segment.low || address + bytes > segment.high) continue;
        if (kind != Access::load && !segment.writable) return false;
        at.low = segment.low;
        at.high = segment.high;
        at.writable = segment.writable;
        return true;
    }
    return false;
}

void Checker::stray(Access kind, uintptr_t address, uint64_t bytes, const void* site) {
    {
        std::ostringstream detail;
        const auto* const pointer = reinterpret_cast<const void*>(address);
        detail << verb(kind) << " at " << pointer << ", ";
        if (address < kPageBytes) {
            detail << "next to the null pointer: an argument that was not bound?";
        } else if (group_.stacks.contains(pointer)) {
            detail << "the stack of another thread";
        } else {
            const RegionRecord* const near = map_->nearest(address);
            if (near == nullptr) {
                detail << "which is no device memory";
            } else if (address < near->base) {
                detail << near->base - address << " bytes before the start";
            } else {
                detail << address - near->base - near->bytes << " bytes past the end of its " << near->bytes
                       << " bytes";
            }
        }
        tell(Problem::out_of_bounds, kDevice, address, bytes, detail.str(), site);
    }
    group_.abandon(Stopped::reported);
}

void Checker::tell_misaligned() {
    const char* const detail = "a vector access at an address that is no multiple of the vector's alignment";
    if (!active_ || last_bytes_ == 0 || last_ % last_bytes_ == 0) return report(group_, Problem::misaligned, detail);
    const bool local = last_ - reinterpret_cast<uintptr_t>(group_.arena.base()) < Arena::kBytes;
    tell(Problem::misaligned, local ? kThreadgroup : kDevice, last_, last_bytes_, detail, nullptr);
}

// The same for all workers, each of which has threadgroup memory of its own.
const void* Checker::identity(const Translation& at) const {
    const auto base = reinterpret_cast<uintptr_t>(group_.arena.base());
    return reinterpret_cast<const void*>(at.space == kThreadgroup ? at.low - base : at.low);
}

bool Checker::news(Problem problem, uintptr_t place, const void* site) {
    for (uint32_t i = 0; i < told_count_; ++i) {
        if (told_[i].problem == problem && told_[i].place == place && told_[i].site == site) return false;
    }
    if (told_count_ < told_.size()) told_[told_count_++] = {problem, place, site};
    return true;
}

void Checker::tell(Problem problem, Space space, uintptr_t address, uint64_t bytes, std::string detail,
                   const void* site) {
    Report report;
    report.problem = problem;
    report.thread = group_.position(group_.thread_index());
    report.bytes = static_cast<uint32_t>(std::min<uint64_t>(bytes, UINT32_MAX));
    report.detail = std::move(detail);
    if (space == kThreadgroup) {
        report.buffer = "threadgroup";
        const auto base = reinterpret_cast<uintptr_t>(group_.arena.base());
        const Arena::Variable* const variable = group_.arena.near(static_cast<uint32_t>(address - base));
        if (variable != nullptr) report.offset = address - base - variable->offset;
    } else {
        const RegionMap::Span* const span = map_->find(address);
        const RegionRecord* const record = map_->contains(span, address) ? span->record : map_->nearest(address);
        if (record != nullptr) {
            report.buffer = books_.regions.label(*record);
            report.offset = address < record->base ? 0 : address - record->base;
        }
    }
    run_->report(std::move(report), site);
}

void Checker::conflict(Access kind, Actor other, bool other_writes, const Translation& at, uintptr_t address,
                       uint32_t bytes) {
    const Segment& segment = books_.history.segment(segment_of(other));
    const bool other_launch = segment.launch != launch_;
    const Problem problem = other_launch ? Problem::dispatch_hazard : Problem::thread_race;
    // One fault of order makes itself felt in many places: it is told once for the memory that it is in.
    const void* const memory = identity(at);
    if (!news(problem, at.low, memory)) return;
    const Party party = books_.history.party(segment.launch);
    std::string detail = std::string(verb(kind)) + ", and " +
                         (other_writes ? other & kAtomic ? "an atomic operation" : "a write" : "a read") + " by ";
    const uint32_t index = segment.simdgroup * kLanes;
    const uint32_t lane = other & kSeveral ? 0 : other & 31;
    if (party.kernel.empty()) {
        detail += "a blit";
    } else if (other & kSeveral) {
        detail += "several threads, among them of the simdgroup of thread " + text(party.thread(segment.group, index));
    } else {
        detail += "thread " + text(party.thread(segment.group, index + lane));
    }
    if (other_launch) {
        if (!party.kernel.empty()) detail += " of kernel " + party.kernel;
        if (!party.scope.empty()) detail += " in " + party.scope;
        detail += ", with no barrier between the two";
    } else if (segment.group != group_.index) {
        detail += " of another threadgroup of this dispatch";
    } else {
        detail += " of the same threadgroup, with no barrier between";
    }
    tell(problem, at.space, address, bytes, std::move(detail), memory);
}

}  // namespace metalsim
