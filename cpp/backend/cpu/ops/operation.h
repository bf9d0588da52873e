#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>

#include "backend/backend.h"
#include "backend/cpu/thread_pool.h"

namespace metallic::cpu {

inline constexpr size_t kAlignment = 64;
constexpr size_t aligned_size(size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

// cos and sin of a rotary table for the rows of a batch: [rows, half] each.
struct RopeRows {
    float* cos = nullptr;
    float* sin = nullptr;
    uint32_t half = 0;
};

// What all threads of one submission share; read-only while operations run.
struct Submission {
    const Batch* batch = nullptr;
    uint32_t rows[2] = {0, 0};             // by program.h's Rows
    const uint32_t* run_of_row = nullptr;  // [tokens]
    float* const* values = nullptr;        // by ValueId
    const RopeRows* ropes = nullptr;       // by RopeId
    std::byte* shared = nullptr;           // scratch of the operation that runs
    uint32_t groups = 0;

    uint32_t count(Rows which) const noexcept { return rows[static_cast<size_t>(which)]; }
    uint32_t position(uint32_t row) const noexcept {
        const Run& run = batch->runs[run_of_row[row]];
        return run.position + (row - run.first_row);
    }
    const PageTableView& table(uint32_t run, uint32_t group) const noexcept {
        return batch->tables[size_t{run} * groups + group];
    }
};

// Thread 0's look at Batch::interrupted, at most once per kInterval.
class StopWatch {
  public:
    StopWatch(ThreadPool& pool, const std::function<bool()>& interrupted);
    void poll() noexcept;
    // Throws what the callback threw, or Interrupted when it asked for a stop.
    void rethrow() const;

  private:
    static constexpr uint64_t kIntervalNs = 20'000'000;
    ThreadPool& pool_;
    const std::function<bool()>& interrupted_;
    uint64_t last_;
    bool stopped_ = false;
    std::exception_ptr error_;
};

// One thread of a submission.
class Worker {
  public:
    Worker(ThreadPool& pool, const Submission& submission_, StopWatch& watch, std::byte* scratch_, uint32_t thread_)
        : submission(submission_),
          scratch(scratch_),
          thread(thread_),
          threads(pool.threads()),
          pool_(pool),
          watch_(watch) {}

    const Submission& submission;
    std::byte* const scratch;  // this thread's own, kAlignment-aligned
    const uint32_t thread;
    const uint32_t threads;

    float* value(ValueId id) const noexcept { return submission.values[id]; }
    int32_t* ids(ValueId id) const noexcept { return reinterpret_cast<int32_t*>(submission.values[id]); }

    void poll() noexcept {
        if (thread == 0) watch_.poll();
    }
    // All threads meet. On false the operation returns at once.
    bool sync() noexcept { return pool_.sync(); }

    struct Range {
        uint64_t first, last;
    };
    // This thread's part of n equal items.
    Range share(uint64_t n) const noexcept { return {n * thread / threads, n * (thread + 1) / threads}; }

    // This thread's items of n unequal ones, ascending, taken as threads become free; once between two syncs.
    template <typename Body>
    void for_each_item(uint32_t n, Body&& body) {
        for (uint32_t item = thread; item < n; item = threads + pool_.take_item()) {
            if (pool_.stop_requested()) return;
            body(item);
            poll();
        }
    }

    // This thread's part of a [rows, width] matrix, cut into blocks at the same columns whatever the rows and threads.
    template <typename Body>
    void for_each_block(uint32_t rows, uint32_t width, Body&& body) const {
        constexpr uint32_t kBlockWidth = 512;
        const uint64_t per_row = (uint64_t{width} + kBlockWidth - 1) / kBlockWidth;
        const Range range = share(rows * per_row);
        for (uint64_t i = range.first; i < range.last; ++i) {
            const uint64_t row = i / per_row;
            const uint64_t first = i % per_row * kBlockWidth;
            body(row, first, std::min<uint64_t>(kBlockWidth, width - first));
        }
    }

  private:
    ThreadPool& pool_;
    StopWatch& watch_;
};

// A step, compiled. All threads run it together; whoever runs it syncs afterwards.
class Operation {
  public:
    Operation() = default;
    Operation(const Operation&) = delete;
    Operation& operator=(const Operation&) = delete;
    virtual ~Operation() = default;
    virtual void run(Worker& worker) const noexcept = 0;
};

}  // namespace metallic::cpu
