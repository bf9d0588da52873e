#include "memory/pool_state.h"

#include <time.h>

#include <algorithm>
#include <chrono>

#include "core/error.h"

namespace metallic {
namespace {

// Averages need no fine clock, and a coarse one costs a quarter of the time.
uint64_t system_clock_ns() noexcept {
#if defined(CLOCK_MONOTONIC_COARSE)
    timespec time{};
    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &time) == 0) {
        return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
    }
#endif
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
}

}  // namespace

PoolState::PoolState(std::shared_ptr<Backend> backend_, std::shared_ptr<Budget> budget_, PoolOptions options_)
    : backend(std::move(backend_)),
      budget(std::move(budget_)),
      options(std::move(options_)),
      heaps_(*backend, *budget, options.grace_ns),
      born_(now()) {
    for (UseOverTime& use : uses_) use.start(born_);
    budget->join(this, [this] { return drop_empty_heaps(); });
}

PoolState::~PoolState() {
    budget->leave(this);
}

uint64_t PoolState::now() const noexcept {
    return options.clock ? options.clock() : system_clock_ns();
}

bool PoolState::try_allocate(const HeapSet::Request& request, Allocation& allocation) {
    const uint64_t time = now();  // before the lock, which waits for everything
    const std::lock_guard lock(mutex_);
    heaps_.expire(time);
    const uint32_t owner = owners_.find_or_add(request.owner);
    if (!heaps_.take(request, allocation.place_)) return false;
    owners_.count(owner, request.bytes);
    use(request.tag).add(request.bytes, time);
    ++live_;
    allocation.pool_ = this;
    allocation.reserved_ = request.bytes;
    allocation.owner_ = owner;
    allocation.tag_ = request.tag;
    return true;
}

Allocation PoolState::allocate(uint64_t bytes, Tag tag, std::string_view owner, Storage storage, Contents contents) {
    if (storage == Storage::mapped) throw Error("the pool allocates no mapped storage: use Backend::wrap_host");
    const uint64_t reserved = Pool::reserved_bytes(bytes);
    if (reserved < bytes) throw OutOfMemory("an allocation of impossible size", bytes, 0, std::string(owner));
    const HeapSet::Request request{reserved, tag, storage, contents, owner};
    Allocation allocation;
    // Pools that share the budget may hold heaps that they do not use.
    if (!try_allocate(request, allocation) && !(budget->reclaim() > 0 && try_allocate(request, allocation))) {
        throw OutOfMemory("the memory budget of " + std::to_string(budget->limit()) + " bytes is used up", reserved,
                          budget->available(), std::string(owner));
    }
    allocation.place_.view.bytes = bytes;
    allocation.elements_ = bytes;
    if (contents == Contents::zero && !allocation.place_.zero) {
        backend->clear(allocation.place_.view);  // not under the lock: it may wait for the device
        allocation.place_.zero = true;
    }
    return allocation;
}

void PoolState::release(Allocation& allocation) noexcept {
    std::shared_ptr<PoolState> last;  // outlives the lock
    const uint64_t time = now();
    const std::lock_guard lock(mutex_);
    heaps_.give(allocation.place_.heap, allocation.place_.node, allocation.reserved_, allocation.tag_, time);
    heaps_.expire(time);
    owners_.uncount(allocation.owner_, allocation.reserved_);
    use(allocation.tag_).remove(allocation.reserved_, time);
    if (--live_ == 0) last = std::move(self_);
}

std::vector<OwnerUse> PoolState::close() {
    const std::lock_guard lock(mutex_);
    heaps_.drop_empty();
    if (live_ == 0) return {};
    self_ = shared_from_this();
    return owners_.live();
}

void PoolState::count_mapped(uint64_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    use(Tag::weights).add(bytes, now());
    mapped_bytes_ += bytes;
}

void PoolState::uncount_mapped(uint64_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    use(Tag::weights).remove(bytes, now());
    mapped_bytes_ -= bytes;
}

uint64_t PoolState::trim(uint64_t time) noexcept {
    const std::lock_guard lock(mutex_);
    return heaps_.drop_expired(time);
}

uint64_t PoolState::drop_empty_heaps() noexcept {
    const std::lock_guard lock(mutex_);
    return heaps_.drop_empty();
}

bool PoolState::set_draining(uint64_t heap_id, bool draining) noexcept {
    const std::lock_guard lock(mutex_);
    return heaps_.set_draining(heap_id, draining, now());
}

PoolStatistics PoolState::statistics() const {
    const std::lock_guard lock(mutex_);
    const uint64_t time = now();
    PoolStatistics result;
    for (size_t i = 0; i < uses_.size(); ++i) result.tags[i] = uses_[i].at(time);
    heaps_.report(result);
    result.mapped_bytes = mapped_bytes_;
    result.budget = budget->limit();
    result.budget_used = budget->used();
    result.elapsed_ns = time > born_ ? time - born_ : 0;
    return result;
}

uint64_t PoolState::withheld(Tag tag, Storage storage, uint64_t bytes) const noexcept {
    const std::lock_guard lock(mutex_);
    return heaps_.withheld(tag, storage, bytes);
}

std::vector<HeapUse> PoolState::heaps() const {
    const std::lock_guard lock(mutex_);
    return heaps_.uses();
}

std::vector<OwnerUse> PoolState::owners() const {
    const std::lock_guard lock(mutex_);
    return owners_.live();
}

}  // namespace metallic
