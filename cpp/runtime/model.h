#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/backend.h"
#include "gguf/model_file.h"
#include "kv/page_store.h"
#include "kv/sequence.h"
#include "memory/pool.h"
#include "program/program.h"
#include "runtime/fair_mutex.h"
#include "runtime/weights.h"
#include "trace/events.h"

namespace metallic {

struct ModelOptions {
    DType kv_dtype = DType::F16;  // F32, F16, BF16, Q8_0
    uint32_t context_length = 0;  // the model's own limit; a sequence never grows past it
    uint32_t batch_tokens = 512;  // most tokens of one submission
    uint64_t memory_budget = 0;   // bytes; 0: none
    WeightPlacement weights = WeightPlacement::mapped;
    Precision precision = Precision::automatic;
};

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

// A loaded model: weights, plan, pages. Thread-safe: forward passes of several threads take turns, a submission at a
// time. Two locks: `submission_` is held while the backend runs, `pages_` only while page tables change, so that
// sequences and statistics can be had at any time, also from a signal handler that interrupts a submission.
class Model : public std::enable_shared_from_this<Model> {
  public:
    // `program` is traced, not planned. Throws UnsupportedModelError, OutOfMemory, RequestError.
    Model(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, const Program& program,
          const ModelOptions& options);
    ~Model();

    // The sequence keeps its model alive and gives its pages back under the model's lock.
    std::shared_ptr<Sequence> create_sequence();
    // These throw RequestError while a forward pass holds the sequence.
    std::shared_ptr<Sequence> fork(const Sequence& sequence);
    bool truncate(Sequence& sequence, uint32_t length);

    // Appends the runs' tokens to their sequences and writes the wanted logits, run by run, to `logits` [rows,
    // vocabulary]; candidates go where their runs say. Long runs are split into submissions of at most batch_tokens. On
    // an exception each sequence has the tokens of the submissions that completed. `interrupted` is polled; see Batch.
    // The caller keeps the sequences alive. Throws RequestError when another pass holds one of them, or when called
    // from within `interrupted`.
    void forward(std::span<const RunRequest> runs, float* logits, const std::function<bool()>& interrupted);
    // Rows of logits that `runs` ask for.
    static uint64_t logit_rows(std::span<const RunRequest> runs) noexcept;

    // What it computes in, where the options leave the choice to the device.
    Precision precision() const noexcept { return plan_->precision(); }
    uint32_t vocabulary() const noexcept { return program_.values[program_.logits].width; }
    const ModelOptions& options() const noexcept { return options_; }
    const Program& program() const noexcept { return program_; }
    const DeviceInfo& device() const noexcept { return backend_->device(); }
    EventRing& events() noexcept { return events_; }
    PoolStatistics memory() const { return pool_.statistics(); }

    struct GroupUse {
        uint32_t window, layers;
        uint64_t page_bytes, pages_in_use, pages_held;
    };
    std::vector<GroupUse> kv_use() const;
    // Bytes that keys and values of one token take in all groups, without regard to windows.
    uint64_t kv_bytes_per_token() const noexcept;
    uint64_t arena_bytes() const noexcept { return arena_.view().bytes; }
    // The activations that a model of this planned program takes with submissions of at most `batch_tokens`.
    static uint64_t activation_bytes(const Program& planned, uint32_t batch_tokens);

  private:
    void compile();
    struct Progress {
        uint32_t done = 0;    // tokens in the cache
        uint32_t queued = 0;  // tokens in the batch being built
        uint64_t result_row = 0;
    };
    class Hold;
    std::shared_ptr<Sequence> own(std::unique_ptr<Sequence> sequence);
    void check(std::span<const RunRequest> runs) const;
    bool submit_next(std::span<const RunRequest> requests, std::span<Progress> progress, float* logits,
                     const std::function<bool()>& interrupted);
    void fill_batch(std::span<const RunRequest> requests, std::span<Progress> progress);
    void commit_batch(std::span<const RunRequest> requests, std::span<Progress> progress, const float* gathered,
                      float* logits);
    void add_run(const RunRequest& request, uint32_t done, uint32_t count);

    std::shared_ptr<const ModelFile> file_;
    std::shared_ptr<Backend> backend_;
    ModelOptions options_;
    Program program_;
    EventRing events_{1 << 14};
    Pool pool_;
    std::unique_ptr<Weights> weights_;
    std::vector<KvLayout> layouts_;
    std::vector<std::unique_ptr<PageStore>> stores_;
    uint32_t max_outputs_ = 0;
    Allocation arena_;
    std::unique_ptr<Plan> plan_;

    FairMutex submission_;
    std::atomic<std::thread::id> submitting_{};
    mutable std::mutex pages_;
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
