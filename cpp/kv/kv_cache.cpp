#include "kv/kv_cache.h"

#include <algorithm>
#include <unordered_map>

#include "core/error.h"
#include "trace/events.h"

namespace metallic {
namespace {

// Sides of more bits than `packed` in that.
KvLayout packed_layout(const KvGroup& group, DType packed) {
    const auto smaller = [&](DType dtype) { return dtype == DType::Q4_0 || dtype == packed ? dtype : packed; };
    const KvPair types = group.layout.types();
    return KvLayout::of(group.group, {smaller(types.keys), smaller(types.values)});
}

}  // namespace

KvCache::KvCache(std::vector<KvGroup> groups, uint32_t batch_tokens, Eviction eviction, MemoryLog& log, DType packed)
    : groups_(std::move(groups)), batch_tokens_(batch_tokens), eviction_(eviction), log_(log) {
    for (const KvGroup& group : groups_) {
        count_also(*group.pool);
        stores_.push_back(std::make_unique<PageStore>(*group.pool, *group.backend, group.layout, group.owner));
        if (eviction_ == Eviction::compress) packed_.push_back(packed_layout(group, packed));
    }
}

void KvCache::count_also(const Pool& pool) {
    if (std::find(pools_.begin(), pools_.end(), &pool) == pools_.end()) pools_.push_back(&pool);
}

std::unique_ptr<Sequence> KvCache::create() {
    std::vector<PageStore*> stores;
    std::vector<uint32_t> windows;
    for (size_t g = 0; g < groups_.size(); ++g) {
        stores.push_back(stores_[g].get());
        windows.push_back(groups_[g].group.window);
    }
    auto sequence = std::make_unique<Sequence>(std::move(stores), std::move(windows));
    sequences_.push_back(sequence.get());
    renew_age(*sequence);
    sequence->last_used_ns = now_ns();
    return sequence;
}

std::unique_ptr<Sequence> KvCache::fork(const Sequence& sequence) {
    auto copy = sequence.fork();
    sequences_.push_back(copy.get());
    renew_age(*copy);
    copy->last_used_ns = now_ns();
    return copy;
}

void KvCache::destroy(Sequence* sequence) noexcept {
    std::erase(sequences_, sequence);
    delete sequence;
}

// ---- who gives way --------------------------------------------------------------------------------------------------

bool KvCache::active(const Sequence& sequence, uint64_t now) const noexcept {
    return sequence.busy || (sequence.claim && now - std::min(now, sequence.last_used_ns) < kStalledNs);
}

// Nobody runs it, so it may lose its pages.
bool KvCache::idle(const Sequence& sequence, uint64_t now) const noexcept {
    return !sequence.in_flight && !active(sequence, now);
}

// Whether `needy` comes first: the other one is idle or younger, or of the same pass, which would wait for itself
// otherwise.
bool KvCache::gives_way(const Sequence& sequence, const Sequence& needy,
                        std::span<Sequence* const> pass) const noexcept {
    if (&sequence == &needy || sequence.in_flight) return false;
    return sequence.age >= needy.age || idle(sequence, now_ns()) ||
           std::find(pass.begin(), pass.end(), &sequence) != pass.end();
}

// The least recently used of those that nobody runs.
Sequence* KvCache::idle_victim(const Sequence* needy) const noexcept {
    const uint64_t now = now_ns();
    Sequence* found = nullptr;
    for (Sequence* one : sequences_) {
        if (one == needy || !idle(*one, now) || one->own_bytes() == 0) continue;
        if (!found || one->last_used_ns < found->last_used_ns) found = one;
    }
    return found;
}

// The youngest of those that give way.
Sequence* KvCache::younger_victim(const Sequence& needy, std::span<Sequence* const> pass) const noexcept {
    Sequence* found = nullptr;
    for (Sequence* one : sequences_) {
        if (!gives_way(*one, needy, pass) || one->own_bytes() == 0) continue;
        if (!found || one->age > found->age) found = one;
    }
    return found;
}

// The least recently used of the willing that have a page which none but the willing share: it comes back once all of
// these have given it up.
template <typename Willing>
Sequence* KvCache::sharing_victim(Willing willing) const {
    std::unordered_map<uint64_t, uint32_t> sharers;  // by page: how many of them are willing
    const auto any_page = [&](const Sequence& one, const auto& visit) {
        for (size_t g = 0; g < one.groups(); ++g) {
            const PageTableView table = one.table(g);
            for (uint32_t i = 0; i < table.count; ++i) {
                if (table.pages[i] && visit(*stores_[g], table.pages[i])) return true;
            }
        }
        return false;
    };
    for (const Sequence* one : sequences_) {
        if (!willing(*one)) continue;
        any_page(*one, [&](const PageStore&, uint64_t page) { return ++sharers[page] == 0; });
    }
    const auto comes_back = [&](const PageStore& store, uint64_t page) {
        return store.references(page) == sharers.at(page);
    };
    Sequence* found = nullptr;
    for (Sequence* one : sequences_) {
        if (!willing(*one) || !any_page(*one, comes_back)) continue;
        if (!found || one->last_used_ns < found->last_used_ns) found = one;
    }
    return found;
}

Sequence* KvCache::idle_sharing_victim(const Sequence* needy) const {
    const uint64_t now = now_ns();
    return sharing_victim([&](const Sequence& one) { return &one != needy && idle(one, now); });
}

// Those that do not give way, so that waiting for them makes sense.
bool KvCache::others_have_pages(const Sequence& needy, std::span<Sequence* const> pass) const noexcept {
    return std::any_of(sequences_.begin(), sequences_.end(), [&](const Sequence* one) {
        return one != &needy && !gives_way(*one, needy, pass) && one->pages() != 0;
    });
}

// Whether a sequence that lost pages would only take some of them back, and lose them again: those that do not give way
// leave too little for all.
bool KvCache::must_wait(const Sequence& sequence, uint32_t count, std::span<Sequence* const> pass) const {
    if (sequence.resident() && sequence.cached() == sequence.length()) return false;
    uint64_t others = 0;
    for (const Sequence* one : sequences_) {
        if (one != &sequence && !gives_way(*one, sequence, pass)) others += one->own_bytes();
    }
    if (others == 0) return false;
    // With room to grow for those that were here: or it would be gone again at their next page.
    const uint64_t most = capacity();
    return bytes_for(uint64_t{sequence.length()} + count) + others > most - most / 16;
}

// Does one thing that gives memory back, or that lets the next one do so; false when there is nothing to be done.
bool KvCache::relieve(Sequence& needy, std::span<Sequence* const> pass, bool preempts) {
    if (Sequence* const one = idle_victim(&needy)) {
        evict(*one, "room for another sequence");
        return true;
    }
    const bool in_flight =
        std::any_of(sequences_.begin(), sequences_.end(), [](const Sequence* one) { return one->in_flight; });
    if (!in_flight && compact("room for a sequence") != 0) return true;
    if (Sequence* const one = idle_sharing_victim(&needy)) {
        evict(*one, "room for another sequence", true);
        return true;
    }
    if (!preempts) return false;
    Sequence* victim = younger_victim(needy, pass);
    const bool shared = victim == nullptr;
    if (shared) victim = sharing_victim([&](const Sequence& one) { return gives_way(one, needy, pass); });
    if (!victim) return false;
    log_.record(MemoryAction::preempt, victim->own_bytes(), "kv", "room for an older sequence");
    evict(*victim, "preempted", shared);
    return true;
}

void KvCache::make_resident(Sequence& sequence) {
    if (!sequence.resident()) log_.record(MemoryAction::restore, sequence.restore(), "kv", "needed again");
}

KvCache::Room KvCache::prepare(Sequence& sequence, uint32_t count, std::span<Sequence* const> pass, bool preempts) {
    sequence.last_used_ns = now_ns();
    if (must_wait(sequence, count, pass)) {
        if (!preempts) return Room::skip;
        // Others may wait for what the rest of the pass has.
        for (Sequence* one : pass) {
            if (one != &sequence && one->own_bytes() != 0) evict(*one, "its pass waits for older sequences");
        }
        return Room::wait;
    }
    for (;;) {
        try {
            make_resident(sequence);
            sequence.reserve(sequence.cached() + count);
            return Room::made;
        } catch (const OutOfMemory&) {
            if (relieve(sequence, pass, preempts)) continue;
            if (!preempts) return Room::skip;
            if (!others_have_pages(sequence, pass)) throw;
            if (sequence.own_bytes() != 0) evict(sequence, "an older sequence comes first");
            return Room::wait;
        }
    }
}

void KvCache::reserve(Sequence& sequence, uint32_t length) {
    sequence.last_used_ns = now_ns();
    for (;;) {
        try {
            make_resident(sequence);
            sequence.reserve_ahead(length);
            return;
        } catch (const OutOfMemory&) {
            if (!relieve(sequence, {}, false)) throw;
        }
    }
}

uint64_t KvCache::evict(Sequence& sequence, std::string_view reason, bool shared) {
    if (eviction_ != Eviction::recompute) {
        const MemoryAction action = packed_.empty() ? MemoryAction::save : MemoryAction::compress;
        try {
            const uint64_t freed = sequence.save(shared, packed_);
            log_.record(action, freed, "kv", reason);
            return freed;
        } catch (const std::exception&) {
            // Host memory is short too, or the device refused the copy.
            return drop(sequence, reason);
        }
    }
    return drop(sequence, reason);
}

uint64_t KvCache::drop(Sequence& sequence, std::string_view reason) noexcept {
    const uint64_t freed = sequence.drop();
    log_.record(MemoryAction::drop, freed, "kv", reason);
    return freed;
}

uint64_t KvCache::evict_idle(uint64_t bytes, std::string_view reason) {
    uint64_t freed = 0;
    while (freed < bytes) {
        Sequence* const own = idle_victim(nullptr);
        Sequence* const victim = own ? own : idle_sharing_victim(nullptr);
        if (!victim) break;
        freed += evict(*victim, reason, !own);
    }
    return freed;
}

uint64_t KvCache::evict_for(const Sequence& needy, std::span<Sequence* const> pass, std::string_view reason) {
    uint64_t freed = 0;
    for (Sequence* one : sequences_) {
        if (gives_way(*one, needy, pass) && one->pages() != 0) freed += evict(*one, reason, true);
    }
    return freed;
}

uint64_t KvCache::evict_all(std::string_view reason) {
    uint64_t freed = 0;
    for (Sequence* one : sequences_) {
        if (one->pages() != 0) freed += evict(*one, reason, true);
    }
    return freed;
}

uint64_t KvCache::compact(std::string_view reason) {
    uint64_t bytes = 0;
    for (size_t g = 0; g < stores_.size(); ++g) {
        std::vector<PageMove> moves;
        const auto apply = [&] {
            if (moves.empty()) return;
            // A page may have moved on: from the last move backwards, `moved` has where each one ended.
            std::unordered_map<uint64_t, uint64_t> moved;
            for (size_t i = moves.size(); i-- > 0;) {
                const auto on = moved.find(moves[i].to);
                moved[moves[i].from] = on == moved.end() ? moves[i].to : on->second;
            }
            for (Sequence* sequence : sequences_) sequence->relocate(g, moved);
            bytes += moves.size() * stores_[g]->layout().page_bytes;
        };
        try {
            stores_[g]->compact(moves);
        } catch (...) {
            apply();
            throw;
        }
        apply();
    }
    if (bytes) log_.record(MemoryAction::compact, bytes, "kv", reason);
    return bytes;
}

// ---- how much there is ----------------------------------------------------------------------------------------------

uint64_t KvCache::bytes_for(uint64_t tokens) const noexcept {
    uint64_t bytes = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
        const uint64_t window = groups_[g].group.window;
        uint64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
        // What a batch's first token sees, the batch itself, and the partly filled pages at both ends.
        if (window) pages = std::min(pages, (window + batch_tokens_ + kPageTokens - 1) / kPageTokens + 1);
        bytes += pages * stores_[g]->page_stride();
    }
    return bytes;
}

uint64_t KvCache::bytes_per_token() const noexcept {
    uint64_t bytes = 0;
    for (const KvGroup& group : groups_) bytes += group.layout.page_bytes / kPageTokens;
    return bytes;
}

uint64_t KvCache::largest_page(const Pool* pool) const noexcept {
    uint64_t stride = 1;
    for (size_t g = 0; g < groups_.size(); ++g) {
        if (!pool || groups_[g].pool == pool) stride = std::max(stride, stores_[g]->page_stride());
    }
    return stride;
}

uint64_t KvCache::other_bytes() const {
    uint64_t bytes = 0;
    for (const Pool* pool : pools_) {
        const auto group =
            std::find_if(groups_.begin(), groups_.end(), [&](const KvGroup& one) { return one.pool == pool; });
        // Without pages there, nothing of its heaps is for them.
        const Storage storage =
            group == groups_.end() ? Storage::mapped : stores_[static_cast<size_t>(group - groups_.begin())]->storage();
        bytes += pool->withheld_bytes(Tag::kv, storage, largest_page(pool));
    }
    return bytes;
}

uint64_t KvCache::capacity() const {
    uint64_t limit = 0;
    for (const KvGroup& group : groups_) {
        const uint64_t budget = group.pool->budget()->limit();
        limit = std::max(limit, budget ? budget : group.backend->device().memory_bytes);
    }
    const uint64_t others = std::max(other_bytes(), expected_others_), page = largest_page(nullptr);
    return limit > others ? (limit - others) / page * page : 0;
}

uint64_t KvCache::claimed(const Sequence* except) const noexcept {
    const uint64_t now = now_ns();
    uint64_t bytes = 0;
    for (const Sequence* one : sequences_) {
        if (one != except && active(*one, now)) bytes += std::max(one->claim, one->own_bytes());
    }
    return bytes;
}

uint64_t KvCache::saved_bytes() const noexcept {
    uint64_t bytes = 0;
    for (const Sequence* one : sequences_) bytes += one->saved_bytes();
    return bytes;
}

uint64_t KvCache::pages_copied() const noexcept {
    uint64_t pages = 0;
    for (const auto& store : stores_) pages += store->pages_copied();
    return pages;
}

}  // namespace metallic
