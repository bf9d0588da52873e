#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/kv_types.h"
#include "core/error.h"
#include "gguf/model_file.h"
#include "kv/kv_cache.h"
#include "kv/sequence.h"
#include "memory/memory_log.h"
#include "memory/pool.h"
#include "program/program.h"
#include "runtime/admission.h"
#include "runtime/forward_runner.h"
#include "runtime/load_needs.h"
#include "runtime/placement.h"
#include "runtime/residency.h"
#include "runtime/staged_plan.h"
#include "trace/events.h"

namespace metallic {

struct ModelOptions {
    KvTypes kv_types;
    uint32_t context_length = 0;  // the model's own limit; a sequence never grows past it
    uint32_t batch_tokens = 512;  // most tokens of one submission
    uint64_t memory_budget = 0;   // bytes; 0: none
    PlacementRules placement;
    uint32_t placement_context = 0;  // tokens that `auto` leaves room for; 0: context_length
    // Makes the backend of the host's processor, for layers that are placed there; without it there can be none. Called
    // at most once, and not where the model's device is the host itself.
    std::function<std::shared_ptr<Backend>()> host;
    Precision precision = Precision::automatic;
    // What becomes of a sequence's pages when others need the memory; none: recompute where that gives the same bits,
    // else save.
    std::optional<Eviction> eviction;
    DType packed = DType::Q8_0;  // of pages that are compressed: Q8_0 or Q4_0
    // What the background thread does about pressure; null: WatermarkPolicy.
    std::shared_ptr<const ResidencyPolicy> policy;
};

// A loaded model: weights, plan, pages. Thread-safe: forward passes of several threads take turns, a submission at a
// time. Two locks: the runner's is held while the backend runs, the cache's only while page tables change, so that
// sequences and statistics can be had at any time, also from a signal handler that interrupts a submission.
class Model : public std::enable_shared_from_this<Model> {
  public:
    // `program` is traced, not planned. Throws UnsupportedModelError, OutOfMemory, RequestError. The model of a parent
    // process is never destroyed in a forked child, where its threads are not and its locks may be held for good.
    static std::shared_ptr<Model> load(const std::shared_ptr<const ModelFile>& file,
                                       const std::shared_ptr<Backend>& backend, const Program& program,
                                       const ModelOptions& options);
    ~Model();

    // The sequence keeps its model alive and gives its pages back under the model's lock.
    std::shared_ptr<Sequence> create_sequence();
    // These throw RequestError while a forward pass holds the sequence.
    std::shared_ptr<Sequence> fork(const Sequence& sequence);
    bool truncate(Sequence& sequence, uint32_t length);
    // Takes `count` tokens from `first` on out; see Sequence::forget.
    void forget(Sequence& sequence, uint32_t first, uint32_t count);
    // Takes the pages for `length` tokens now. Throws OutOfMemory.
    void reserve(Sequence& sequence, uint32_t length);
    // What the sequence has now; a forward pass may be changing it.
    struct SequenceUse {
        uint32_t length = 0, cached = 0;
        uint64_t pages = 0;
    };
    SequenceUse use(const Sequence& sequence) const;
    // Gives the pages of an idle sequence up, as under pressure; they are back when it is run. Returns the bytes.
    uint64_t evict(Sequence& sequence);

    // Waits until there is memory for a generation that makes the sequence up to `tokens` long, and claims it until
    // `leave`. See Admission.
    void enter(Sequence& sequence, uint64_t tokens, const std::function<bool()>& interrupted);
    void leave(Sequence& sequence) noexcept {
        if (!forked()) admission_->leave(sequence);
    }

    // Appends the runs' tokens to their sequences and writes the wanted logits, run by run, to `logits` [rows,
    // vocabulary]; candidates go where their runs say. Long runs are split into submissions of at most batch_tokens. On
    // an exception each sequence has the tokens of the submissions that completed. `interrupted` is polled; see Batch.
    // The caller keeps the sequences alive. Where the memory is short, idle and younger sequences lose their pages, or
    // this call waits for older ones. Throws OutOfMemory when that does not help, RequestError when another pass holds
    // one of them, or when called from within `interrupted`.
    void forward(std::span<const RunRequest> runs, float* logits, const std::function<bool()>& interrupted) {
        check_process();
        runner_->forward(runs, logits, interrupted);
    }

    // What it computes in, where the options leave the choice to the device.
    Precision precision() const noexcept { return plan_->precision(); }
    uint32_t vocabulary() const noexcept { return program_.values[program_.logits].width; }
    const ModelOptions& options() const noexcept { return options_; }
    const Program& program() const noexcept { return program_; }
    const DeviceInfo& device() const noexcept { return backend_->device(); }
    EventRing& events() noexcept { return events_; }
    // Of all devices together.
    PoolStatistics memory() const;
    // Where the weights are, and which device computes what.
    const Placement& placement() const noexcept { return placed_.placement; }
    const DeviceInfo& device_of(const Placement::Stage& stage) const noexcept {
        return (stage.device == kHost ? placed_.host : backend_)->device();
    }
    // What a model would be like.
    struct Prediction {
        Placement placement;
        LoadNeeds needs;
        std::optional<OutOfMemory> refused;  // what a load ends with
        std::shared_ptr<Backend> device, host;
    };
    // The placement that a model with these arguments gets, found as its constructor does, and what it then takes. The
    // plans are compiled, but no weight is copied. Throws as the constructor does, but OutOfMemory only where a device
    // has none for the plans alone.
    static Prediction predict(const std::shared_ptr<const ModelFile>& file, const std::shared_ptr<Backend>& backend,
                              const Program& traced, const ModelOptions& options);
    // Frees the copies of weights that are not mapped, once nothing runs, and returns their bytes: all, or so many that
    // at least `bytes` of heaps come back, those first that a pass needs last; a copy whose heap would stay for
    // something else stays too. The next forward pass makes room for what is missing, compiles the program and uploads
    // it; for all of them that takes about as long as the first one did.
    uint64_t evict_weights(std::optional<uint64_t> bytes = std::nullopt);
    const MemoryLog& memory_log() const noexcept { return log_; }
    // One for each device.
    std::vector<const Pool*> pools() const;
    // A budget below what is used takes nothing away at once: it refuses what comes, so that sequences give way, and
    // the background thread answers it as any pressure. 0: none.
    void set_memory_budget(uint64_t bytes) noexcept;

    struct GroupUse {
        uint32_t window, layers;
        uint64_t page_bytes, pages_in_use, pages_held;
    };
    struct KvUse {
        std::vector<GroupUse> groups;
        uint64_t saved_bytes = 0;   // of host memory that evicted pages wait in
        uint64_t pages_copied = 0;  // ever, on the device: forks that were written to, compaction
        uint64_t capacity = 0;      // the most bytes that pages may take
    };
    KvUse kv_use() const;
    // Moves pages together, so that heaps that become empty go back to the system. Returns the bytes moved.
    uint64_t compact();
    // Bytes that keys and values of one token take in all groups, without regard to windows.
    uint64_t kv_bytes_per_token() const noexcept { return cache_->bytes_per_token(); }
    uint64_t arena_bytes() const noexcept { return plan_->arena_bytes(); }

  private:
    struct Placed {
        Placement placement;
        Program program;                // planned
        std::shared_ptr<Backend> host;  // null: no step runs there
    };
    // Where weights are placed by the budget, the plans of the placements that come into question are compiled, until
    // one fits: what they take is known before weights have their places.
    static Placed plan(const std::shared_ptr<const ModelFile>& file, const std::shared_ptr<Backend>& backend,
                       const Program& traced, const ModelOptions& options);
    static std::optional<OutOfMemory> refusal(const std::shared_ptr<const ModelFile>& file,
                                              const std::shared_ptr<Backend>& backend, const Program& traced,
                                              const ModelOptions& options);
    Model(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, const Program& program,
          const ModelOptions& options);
    bool forked() const noexcept { return getpid() != process_; }
    // Throws DeviceError in a forked child, where other threads' locks may be held for good.
    void check_process() const;
    std::unique_lock<std::mutex> locked() const;
    std::shared_ptr<Sequence> own(std::unique_ptr<Sequence> sequence);
    uint64_t free_weights(std::optional<uint64_t> bytes, std::string_view reason);
    uint64_t drop_empty_heaps() noexcept;
    void balance();
    void carry_out(const MemoryDecision& decision, uint64_t heap_bytes, uint64_t last_run_ns);
    void free_idle_weights(uint64_t bytes, uint64_t heap_bytes, uint64_t last_run_ns);

    const pid_t process_ = getpid();
    std::shared_ptr<const ModelFile> file_;
    ModelOptions options_;
    Placed placed_;
    std::shared_ptr<Backend> backend_;  // the device, or the host where everything is there
    const Program& program_;
    EventRing events_{1 << 14};
    MemoryLog log_;
    Pool pool_;
    std::unique_ptr<Pool> host_pool_;  // null unless both compute
    std::unique_ptr<StagedPlan> plan_;
    std::unique_ptr<KvCache> cache_;
    std::unique_ptr<Admission> admission_;
    std::unique_ptr<ForwardRunner> runner_;
    std::unique_ptr<ResidencyManager> residency_;  // the last member: its thread uses the others
};

}  // namespace metallic
