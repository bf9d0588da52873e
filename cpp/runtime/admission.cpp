#include "runtime/admission.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <set>
#include <vector>

#include "core/error.h"

namespace metallic {
namespace {

constexpr std::chrono::milliseconds kPoll{20};

// The most tokens whose pages take at most `bytes`.
uint64_t most_tokens(const KvCache& cache, uint64_t bytes, uint64_t below) {
    uint64_t fits = 0, too_many = below;
    while (fits + 1 < too_many) {
        const uint64_t middle = fits + (too_many - fits) / 2;
        (cache.bytes_for(middle) <= bytes ? fits : too_many) = middle;
    }
    return fits;
}

// The first of the smaller types in which `tokens` take at most `available`.
std::optional<DType> type_that_fits(const KvCache& cache, uint64_t tokens, uint64_t available) {
    for (const DType dtype : {DType::Q8_0, DType::Q4_0}) {
        uint64_t now = 0, then = 0;
        for (const KvGroup& group : cache.groups()) {
            now += group.layout.page_bytes;
            then += KvLayout::of(group.group, dtype).page_bytes;
        }
        const double ratio = static_cast<double>(then) / static_cast<double>(std::max<uint64_t>(now, 1));
        if (ratio < 0.95 && static_cast<double>(cache.bytes_for(tokens)) * ratio < static_cast<double>(available)) {
            return dtype;
        }
    }
    return std::nullopt;
}

// Of weights in memory of their own, which counts, as mapped files do not.
uint64_t copied_weights(const KvCache& cache) {
    std::set<const Pool*> pools;
    for (const KvGroup& group : cache.groups()) pools.insert(group.pool);
    uint64_t bytes = 0;
    for (const Pool* pool : pools) {
        const PoolStatistics use = pool->statistics();
        bytes += use.tags[static_cast<int>(Tag::weights)].current - use.mapped_bytes;
    }
    return bytes;
}

}  // namespace

Admission::Caller::Caller(Admission& admission) : admission_(admission) {
    const std::lock_guard lock(admission.cache_.mutex());
    std::vector<std::thread::id>& callers = admission.callers_;
    const auto self = std::this_thread::get_id();
    if (std::find(callers.begin(), callers.end(), self) != callers.end()) {
        throw RequestError("a signal handler cannot use the model whose forward pass it interrupts");
    }
    callers.push_back(self);
}

Admission::Caller::~Caller() {
    const std::lock_guard lock(admission_.cache_.mutex());
    std::erase(admission_.callers_, std::this_thread::get_id());
}

std::string Admission::what_would_fit(uint64_t tokens, uint64_t available) const {
    std::vector<std::string> ways;
    // Claims have a page of headroom, where the context has room for it.
    if (const uint64_t most = most_tokens(cache_, available, tokens); most > kPageTokens) {
        const std::string together = std::to_string(most - kPageTokens);
        ways.push_back("a prompt and answer of at most " + together + " tokens together");
    } else if (most > 0) {
        ways.push_back("a context of " + std::to_string(most) + " tokens");
    }
    if (const auto dtype = type_that_fits(cache_, tokens, available)) {
        ways.push_back("keys and values in " + std::string(dtype_info(*dtype).name));
    }
    if (cache_.bytes_for(tokens) - available <= copied_weights(cache_)) {
        ways.push_back("weights of fewer bits, or mapped");
    }
    if (ways.empty()) ways.push_back("a larger budget, or a smaller model");
    std::string text;
    for (const std::string& way : ways) text += (text.empty() ? "" : ", or ") + way;
    return text;
}

void Admission::refuse(uint64_t tokens, uint64_t needed, uint64_t available) const {
    log_.record(MemoryAction::refuse, needed, "kv", "can never fit");
    throw OutOfMemory("the keys and values of " + std::to_string(tokens) + " tokens take " + std::to_string(needed) +
                          " bytes, and " + std::to_string(available) +
                          " can be had; what would fit: " + what_would_fit(tokens, available),
                      needed, available, "kv");
}

void Admission::wait(std::unique_lock<std::mutex>& lock, const Interrupted& interrupted) {
    changed_.wait_for(lock, kPoll);
    if (!interrupted) return;
    struct Unlocked {  // it may take the GIL
        std::unique_lock<std::mutex>& lock;
        ~Unlocked() { lock.lock(); }
    };
    bool stop = false;
    {
        lock.unlock();
        const Unlocked until{lock};
        stop = interrupted();
    }
    if (stop) throw metallic::Interrupted{};
}

void Admission::enter(Sequence& sequence, uint64_t tokens, const Interrupted& interrupted) {
    const Caller caller(*this);
    std::unique_lock lock(cache_.mutex());
    const uint64_t needed = cache_.bytes_for(tokens);
    const auto check_possible = [&] {
        const uint64_t capacity = cache_.capacity();
        if (needed > capacity) refuse(tokens, needed, capacity);
        return capacity;
    };
    const uint64_t ticket = ++tickets_;
    queue_.push_back(ticket);
    bool waited = false;
    try {
        for (;;) {
            const uint64_t capacity = check_possible();
            const uint64_t claimed = cache_.claimed(&sequence);
            if (queue_.front() == ticket && (claimed == 0 || claimed <= capacity - needed)) break;
            if (!waited) log_.record(MemoryAction::wait, needed, "kv", "other generations have the memory");
            waited = true;
            wait(lock, interrupted);
        }
    } catch (...) {
        std::erase(queue_, ticket);
        changed_.notify_all();
        throw;
    }
    queue_.pop_front();
    if (waited) log_.record(MemoryAction::admit, needed, "kv", "after waiting");
    sequence.claim = std::max<uint64_t>(needed, 1);
    cache_.renew_age(sequence);
    sequence.last_used_ns = now_ns();
    changed_.notify_all();  // the next in the queue
}

void Admission::leave(Sequence& sequence) noexcept {
    const std::lock_guard lock(cache_.mutex());
    sequence.claim = 0;
    changed_.notify_all();
}

void Admission::wait_for_room(const Interrupted& interrupted) {
    std::unique_lock lock(cache_.mutex());
    wait(lock, interrupted);
}

}  // namespace metallic
