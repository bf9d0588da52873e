#include <algorithm>
#include <utility>

#include "executor/host_executor.h"

// Accesses of blits: of whole ranges at once, by nobody's thread.
namespace metalsim {
namespace {

// A copy of a large buffer touches whole pages, whose accesses are one word each as long as no kernel touches them.
class Toucher {
  public:
    Toucher(Books& books, std::string_view scope, bool write) : books_(books), write_(write) {
        Party party;
        party.scope = scope;
        party.order = order_ = books.history.now();
        launch_ = books.history.enter(std::move(party)).launch;
        segment_ = launch_ != 0 ? books.history.take(1) : 0;
        if (segment_ != 0) books.history.segment(segment_) = {launch_, 0, 0};
        floor_ = books.history.floor(order_);
    }
    ~Toucher() { books_.history.leave(); }
    Toucher(const Toucher&) = delete;
    Toucher& operator=(const Toucher&) = delete;

    bool tracks() const noexcept { return segment_ != 0; }

    // The first conflict, if there was one.
    struct Conflict {
        uintptr_t address = 0;
        uint32_t bytes = 0;
        Actor other = 0;
        bool other_writes = false;
    };
    const Conflict& conflict() const noexcept { return conflict_; }

    void touch(uintptr_t address, uint32_t bytes) {
        Page& page = *books_.shadow.page(address);
        const auto offset = static_cast<uint32_t>(address & (kPageBytes - 1));
        uintptr_t words = page.words.load(std::memory_order_acquire);
        if (words == 0 && bytes == kPageBytes) {
            page.uniform.store(after(page.uniform.load(), address, bytes));
            return;
        }
        if (words == 0 || ((offset | bytes) & ((1u << shift_of(words)) - 1)) != 0) {
            words = books_.shadow.words(page, offset, bytes);
        }
        const uint32_t shift = shift_of(words);
        for (uint32_t i = offset >> shift; i < (offset + bytes) >> shift; ++i) {
            std::atomic<uint64_t>& word = words_of(words)[i];
            const uintptr_t at = address - offset + (uintptr_t{i} << shift);
            word.store(after(word.load(), at, 1u << shift));
        }
    }

  private:
    bool ordered(Actor actor) const {
        const uint32_t number = segment_of(actor);
        return number < floor_ || books_.history.order_of(books_.history.segment(number).launch) != order_;
    }
    uint64_t after(uint64_t word, uintptr_t address, uint32_t bytes) {
        const Actor write = write_of(word);
        const Actor read = read_of(word);
        const Actor self = actor_of(segment_, 0);
        if (write != 0 && !ordered(write)) keep({address, bytes, write, true});
        const bool alone = read == 0 || ordered(read);
        if (!write_) return access_word(write, alone ? self : several(segment_of(read), kAnywhere));
        if (read != 0 && !ordered(read)) keep({address, bytes, read, false});
        return access_word(self, 0);
    }
    void keep(const Conflict& conflict) {
        if (conflict_.other == 0) conflict_ = conflict;
    }

    Books& books_;
    const bool write_;
    uint64_t order_ = 0;
    uint32_t launch_ = 0, segment_ = 0, floor_ = 0;
    Conflict conflict_;
};

}  // namespace

void HostExecutor::touch(const void* at, uint64_t bytes, bool write, std::string_view scope) {
    Toucher toucher(books_, scope, write);
    auto address = reinterpret_cast<uintptr_t>(at);
    const uintptr_t start = address;
    const uintptr_t end = address + bytes;
    while (toucher.tracks() && address < end) {
        const auto part =
            static_cast<uint32_t>(std::min<uint64_t>(end - address, kPageBytes - (address & (kPageBytes - 1))));
        toucher.touch(address, part);
        address += part;
    }
    if (write) books_.shadow.mark(start, bytes, true);
    const auto& conflict = toucher.conflict();
    if (conflict.other == 0) return;

    Report report;
    report.problem = Problem::dispatch_hazard;
    report.scope = scope;
    report.bytes = conflict.bytes;
    const std::shared_ptr<const RegionMap> map = books_.regions.map();
    if (const auto* const span = map->find(conflict.address); map->contains(span, conflict.address)) {
        report.buffer = books_.regions.label(*span->record);
        report.offset = conflict.address - span->record->base;
    }
    const Segment& segment = books_.history.segment(segment_of(conflict.other));
    const Party party = books_.history.party(segment.launch);
    report.detail = std::string("a blit that ") + (write ? "writes" : "reads") + ", and a " +
                    (conflict.other_writes ? "write" : "read") + " by " +
                    (party.kernel.empty() ? "another blit" : "kernel " + party.kernel) +
                    (party.scope.empty() ? "" : " in " + party.scope) + ", with no barrier between the two";
    this->report(std::move(report));
}

}  // namespace metalsim
