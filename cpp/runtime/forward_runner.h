#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <string_view>
#include <thread>
#include <vector>

#include "core/selection.h"
#include "kv/kv_cache.h"
#include "runtime/admission.h"
#include "runtime/fair_mutex.h"
#include "runtime/staged_plan.h"

namespace metallic {

// Part of one forward pass: the next tokens of a sequence, and which of them want logits, or the last one's candidates.
struct RunRequest {
    Sequence* sequence = nullptr;
    std::span<const int32_t> tokens;
    bool all_logits = false;  // of every token; otherwise of the last
    bool no_logits = false;   // of none
    bool rope_extended = false;
    const Selection* selection = nullptr;  // not null: candidates of the last token are wanted, and no logits
    Candidate* candidates = nullptr;       // [selection->k]
};

// Rows of logits that `runs` ask for.
uint64_t logit_rows(std::span<const RunRequest> runs) noexcept;

// Runs forward passes: divides them into batches that a plan takes, one submission at a time, makes room for their
// tokens, and tries again with less where the memory is short. Thread-safe: passes of several threads take turns.
class ForwardRunner {
  public:
    struct Limits {
        uint32_t context_length = 0;
        uint32_t batch_tokens = 0;  // of one submission
        uint32_t outputs = 0;       // rows of logits, or candidates, of one submission
        uint32_t vocabulary = 0;
    };

    // All of them outlive the runner.
    ForwardRunner(StagedPlan& plan, KvCache& cache, Admission& admission, MemoryLog& log, const Limits& limits)
        : plan_(plan), cache_(cache), admission_(admission), log_(log), limits_(limits) {}

    // See Model::forward.
    void forward(std::span<const RunRequest> requests, float* logits, const std::function<bool()>& interrupted);

    // Nothing runs while the lock is held. Throws RequestError when called from within `interrupted`, as by a signal
    // handler, whose pass would wait for itself.
    std::unique_lock<FairMutex> pause();
    // When the last batch ended; 0: none did.
    uint64_t last_run_ns() const noexcept { return last_run_ns_; }

  private:
    struct Progress {
        uint32_t done = 0;    // tokens of the request in the cache
        uint32_t queued = 0;  // tokens in the batch being built
        bool again = false;   // which are older ones, whose pages had been dropped
        uint64_t result_row = 0;
    };
    // A forward pass.
    struct Pass {
        std::span<const RunRequest> requests;
        std::vector<Progress> progress;
        std::vector<Sequence*> sequences;
        float* logits = nullptr;
        const std::function<bool()>& interrupted;
        size_t most_runs = 0;  // of a batch
        bool relieved = false;
    };
    enum class Turn : uint8_t { done, ran, wait };
    class Hold;
    class Flight;
    void check(std::span<const RunRequest> runs) const;
    Turn submit_next(Pass& pass);
    bool fill_batch(Pass& pass);
    void run_batch(Pass& pass);
    void commit_batch(Pass& pass, const float* gathered);
    void restore_weights();
    uint64_t give_up_weights(std::string_view reason);
    bool recover(Pass& pass);
    KvCache::Room add_run(Pass& pass, size_t index, uint32_t count);
    uint32_t next_tokens(const Pass& pass, size_t index) const noexcept;

    StagedPlan& plan_;
    KvCache& cache_;
    Admission& admission_;
    MemoryLog& log_;
    const Limits limits_;

    FairMutex submission_;
    std::atomic<std::thread::id> submitting_{};
    std::atomic<uint64_t> last_run_ns_{0};
    // The batch being run, guarded by `submission_`; reused, so that a step allocates nothing.
    std::vector<float> gathered_;
    std::vector<int32_t> tokens_;
    std::vector<Run> runs_;
    std::vector<PageTableView> tables_;
    std::vector<uint32_t> output_rows_;
    std::vector<Selection> selections_;  // one per output row, or none
    std::vector<Candidate> candidates_;
};

}  // namespace metallic
