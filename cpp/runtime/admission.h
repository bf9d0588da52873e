#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kv/kv_cache.h"
#include "memory/memory_log.h"

namespace metallic {

// Lets generations begin, in the order in which they ask, when the memory that they will take is there. Thread-safe.
//
// A generation claims the pages of its prompt and of all tokens that it may draw; idle sequences claim nothing, since
// they can be evicted. A generation that was not run for KvCache::kStalledNs loses its claim until it goes on.
class Admission {
  public:
    using Interrupted = std::function<bool()>;

    Admission(KvCache& cache, MemoryLog& log) : cache_(cache), log_(log) {}

    // This thread waits for memory, or runs: what interrupts it, such as a signal handler, must not wait for it in
    // turn. Throws RequestError where it is so already.
    class Caller {
      public:
        explicit Caller(Admission& admission);
        ~Caller();
        Caller(const Caller&) = delete;
        Caller& operator=(const Caller&) = delete;

      private:
        Admission& admission_;
    };

    // Waits until the sequence may grow to `tokens`. Throws OutOfMemory at once where it never could, with what would;
    // Interrupted when `interrupted`, polled meanwhile, says so; RequestError when called from within `interrupted`.
    void enter(Sequence& sequence, uint64_t tokens, const Interrupted& interrupted);
    void leave(Sequence& sequence) noexcept;

    // Waits a moment for memory to be given back. Throws Interrupted.
    void wait_for_room(const Interrupted& interrupted);
    // Memory was given back.
    void notify() noexcept { changed_.notify_all(); }

  private:
    [[noreturn]] void refuse(uint64_t tokens, uint64_t needed, uint64_t available) const;
    void wait(std::unique_lock<std::mutex>& lock, const Interrupted& interrupted);
    std::string what_would_fit(uint64_t tokens, uint64_t available) const;

    KvCache& cache_;
    MemoryLog& log_;
    std::condition_variable changed_;  // with the cache's mutex, which guards what follows
    std::deque<uint64_t> queue_;
    uint64_t tickets_ = 0;
    std::vector<std::thread::id> callers_;
};

}  // namespace metallic
