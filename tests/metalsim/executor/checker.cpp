#include "executor/checker.h"

#include <algorithm>

// The order of accesses. Where an address belongs is in places.cpp.
namespace metalsim {

void Checker::begin(LaunchRun& run) {
    run_ = &run;
}

// Without translations the next access is a slow one, which activates.
void Checker::end() {
    if (!active_) return;
    translations_.fill({});
    map_ = nullptr;
    active_ = false;
}

// At the first checked access of a launch on this worker: from here on its barriers are followed.
void Checker::activate() {
    const History::Entry entry = run_->enter(books_.history);
    launch_ = entry.launch;
    order_ = run_->order;
    map_ = books_.regions.map();
    residences_.fill({});
    told_count_ = 0;
    tracking_ = launch_ != 0;
    if (arena_pages_ == nullptr) arena_pages_.reset(new Page[(Arena::kBytes + kPageBytes - 1) / kPageBytes + 1]);
    if (era_ != entry.era) {
        // Segments are counted from the start again: what the shadow of threadgroup memory says is of another age.
        for (uint32_t i = 0; i * kPageBytes < Arena::kBytes; ++i) books_.shadow.clear(arena_pages_[i]);
        era_ = entry.era;
    }
    chunk_next_ = chunk_end_ = 0;
    floor_[kDevice] = books_.history.floor(order_);
    active_ = true;
    start_group();
}

void Checker::start_group() {
    new_segments(0, (group_.threads + kLanes - 1) / kLanes);
    group_floor_ = {segments_[0], segments_[0]};
    floor_[kThreadgroup] = segments_[0];
    simd_floor_[kDevice].fill(0);
    simd_floor_[kThreadgroup].fill(0);
    for (uint32_t at = 0; at < Arena::kBytes; at += kPageBytes) {
        books_.shadow.set_unwritten(arena_pages_[at / kPageBytes], 0, kPageBytes);
    }
}

void Checker::new_segments(uint32_t first, uint32_t count) {
    if (!tracking_) return;
    if (chunk_end_ - chunk_next_ < count) {
        chunk_next_ = books_.history.take(kChunk);
        chunk_end_ = chunk_next_ + kChunk;
        if (chunk_next_ == 0) {
            tracking_ = false;
            return;
        }
    }
    for (uint32_t i = first; i < first + count; ++i) {
        const uint32_t number = chunk_next_++;
        segments_[i] = number;
        books_.history.segment(number) = {launch_, i, group_.index};
    }
}

void Checker::pass_group_barrier(uint32_t fence) {
    const uint32_t count = (group_.threads + kLanes - 1) / kLanes;
    new_segments(0, count);
    if (fence & kMemDevice) group_floor_[kDevice] = segments_[0];
    if (fence & kMemThreadgroup) group_floor_[kThreadgroup] = floor_[kThreadgroup] = segments_[0];
}

void Checker::pass_simd_barrier(uint32_t simdgroup, uint32_t fence) {
    new_segments(simdgroup, 1);
    if (fence & kMemDevice) simd_floor_[kDevice][simdgroup] = segments_[simdgroup];
    if (fence & kMemThreadgroup) simd_floor_[kThreadgroup][simdgroup] = segments_[simdgroup];
}

// Whether what `actor` did comes before what the running thread does now.
bool Checker::ordered(Actor actor, Space space) const {
    const uint32_t number = segment_of(actor);
    if (number < floor_[space]) return true;
    const Segment& segment = books_.history.segment(number);
    const bool spread = (actor & kSeveral) != 0;
    if ((spread && (actor & 31) == kAnywhere) || !in_group(segment)) {
        return books_.history.order_of(segment.launch) != order_;
    }
    if (number < group_floor_[space]) return true;
    if (spread && (actor & 31) != kLanesOfSegment) return false;
    const uint32_t here = group_.simdgroup->index;
    return segment.simdgroup == here && number < simd_floor_[space][here];
}

bool Checker::mine(Actor actor) const {
    if (actor & kSeveral) return false;
    if ((actor & ~kAtomic) == me()) return true;
    const Segment& segment = books_.history.segment(segment_of(actor));
    return in_group(segment) && segment.simdgroup == group_.simdgroup->index && (actor & 31) == group_.lane;
}

// Who has accessed the granule once the running thread has, too.
Actor Checker::joined(Actor before, Space space) const {
    if (before == 0 || ordered(before, space) || mine(before)) return me();
    const uint32_t number = segment_of(before);
    const Segment& segment = books_.history.segment(number);
    const Actor spread = before & kSeveral ? before & 31 : 0;
    if (spread == kAnywhere || !in_group(segment)) return several(number, kAnywhere);
    const uint32_t here = segments_[group_.simdgroup->index];
    const bool together = segment.simdgroup == group_.simdgroup->index && spread != kThreadsOfGroup;
    if (together) return several(here, kLanesOfSegment);
    return several(std::max(number, here), kThreadsOfGroup);
}

void Checker::note(Access kind, std::atomic<uint64_t>& word, const Translation& at, uintptr_t address, uint32_t bytes) {
    const uint64_t before = word.load(std::memory_order_acquire);
    const Actor write = write_of(before);
    const Actor read = read_of(before);
    const bool both_atomic = kind == Access::atomic && (write & kAtomic) != 0;
    if (write != 0 && !both_atomic && !ordered(write, at.space) && !mine(write)) {
        conflict(kind, write, true, at, address, bytes);
    }
    if (kind == Access::load) {
        word.store(access_word(write, joined(read, at.space)), std::memory_order_release);
        return;
    }
    if (read != 0 && !ordered(read, at.space) && !mine(read)) conflict(kind, read, false, at, address, bytes);
    Actor self = me();
    if (kind == Access::atomic) self = (both_atomic ? joined(write, at.space) : self) | kAtomic;
    word.store(access_word(self, 0), std::memory_order_release);
}

void Checker::check_written(Access kind, const Translation& at, uintptr_t address, uint32_t bytes) {
    const uintptr_t written = at.shadow->written.load(std::memory_order_acquire);
    const auto offset = static_cast<uint32_t>(address & (kPageBytes - 1));
    if (is_written(written, offset, bytes)) return;
    if (kind == Access::load) {
        bool all = bits_of(written) != nullptr;
        for (uint32_t i = offset; all && i < offset + bytes; ++i) {
            all = bits_of(written)[i / 64].load(std::memory_order_relaxed) >> i % 64 & 1;
        }
        if (all) return;
        const void* const memory = identity(at);
        if (news(Problem::uninitialised_read, at.low, memory)) {
            tell(Problem::uninitialised_read, at.space, address, bytes, "a read of bytes that nobody wrote", memory);
        }
    }
    books_.shadow.set_written(*at.shadow, offset, bytes);
}

void Checker::check_page(Access kind, const Translation& at, uintptr_t address, uint32_t bytes) {
    check_written(kind, at, address, bytes);
    if (!tracking_) return;
    const auto offset = static_cast<uint32_t>(address & (kPageBytes - 1));
    uintptr_t words = at.shadow->words.load(std::memory_order_acquire);
    if (words == 0 || ((offset | bytes) & ((1u << shift_of(words)) - 1)) != 0) {
        words = books_.shadow.words(*at.shadow, offset, bytes);
    }
    std::atomic<uint64_t>* word = words_of(words) + (offset >> shift_of(words));
    for (uint32_t left = bytes >> shift_of(words); left != 0; --left, ++word) {
        if (!settled(kind, word->load(std::memory_order_relaxed), at.space)) note(kind, *word, at, address, bytes);
    }
}

void Checker::range(uintptr_t address, uint64_t bytes, bool write, const void* site) {
    if (bytes != 0) access_slowly(write ? Access::store : Access::load, address, bytes, site);
}

}  // namespace metalsim
