#include "executor/history.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>
#include <utility>

namespace metalsim {
namespace {

template <class T>
T* map(size_t count) {
    void* const at =
        mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return static_cast<T*>(at);
}

}  // namespace

MetalsimUint3 Party::thread(uint64_t group, uint32_t index) const noexcept {
    if (groups.count() == 0) return {};
    const Size3& size = threads_per_threadgroup;
    const auto gx = static_cast<uint32_t>(group % groups.x);
    const auto gy = static_cast<uint32_t>(group / groups.x % groups.y);
    const auto gz = static_cast<uint32_t>(group / groups.x / groups.y);
    const uint32_t width = std::max(1u, std::min(size.x, grid.x - gx * size.x));
    const uint32_t height = std::max(1u, std::min(size.y, grid.y - gy * size.y));
    return {gx * size.x + index % width, gy * size.y + index / width % height, gz * size.z + index / width / height};
}

History::History(Shadow& shadow)
    : shadow_(shadow), segments_(map<Segment>(kSegments)), orders_(map<uint64_t>(kLaunches)) {}

History::~History() {
    munmap(segments_, kSegments * sizeof(Segment));
    munmap(orders_, kLaunches * sizeof(uint64_t));
}

History::Entry History::enter(Party party) {
    const std::lock_guard guard(mutex_);
    const bool full = next_.load(std::memory_order_relaxed) > kEnough || parties_.size() + 1 >= kLaunches;
    if (full && running_ == 0) {
        shadow_.forget_accesses();
        parties_.clear();
        next_.store(kFirst, std::memory_order_relaxed);
        floor_ = kFirst;
        ++era_;
    }
    ++running_;
    if (parties_.size() + 1 >= kLaunches) return {0, era_};
    parties_.push_back(std::move(party));
    const auto launch = static_cast<uint32_t>(parties_.size());
    orders_[launch] = parties_.back().order;
    return {launch, era_};
}

void History::leave() {
    const std::lock_guard guard(mutex_);
    --running_;
}

uint32_t History::take(uint32_t count) noexcept {
    uint32_t first = next_.load(std::memory_order_relaxed);
    do {
        if (first > kSegments - count) return 0;
    } while (!next_.compare_exchange_weak(first, first + count, std::memory_order_relaxed));
    return first;
}

Party History::party(uint32_t launch) {
    const std::lock_guard guard(mutex_);
    return launch == 0 || launch > parties_.size() ? Party{} : parties_[launch - 1];
}

uint64_t History::order() noexcept {
    const std::lock_guard guard(mutex_);
    floor_ = next_.load(std::memory_order_relaxed);
    floor_order_ = order_.load(std::memory_order_relaxed) + 1;
    order_.store(floor_order_, std::memory_order_release);
    return floor_order_;
}

uint32_t History::floor(uint64_t order) {
    const std::lock_guard guard(mutex_);
    return order == floor_order_ ? floor_ : kFirst;
}

}  // namespace metalsim
