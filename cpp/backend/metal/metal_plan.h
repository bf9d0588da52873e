#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/metal/completion.h"
#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/sampling.h"
#include "backend/metal/plan_memory.h"
#include "backend/metal/step_clock.h"
#include "backend/metal/tickets.h"

namespace metallic::metal {

class Preparation;

// A program whose steps are operations over fixed buffers, and the ring of memory that its submissions take in turn.
class MetalPlan final : public Plan {
  public:
    // Throws Error for a program that its inputs do not fit, OutOfMemory, UnsupportedModelError, DeviceError.
    MetalPlan(const CompileInputs& inputs, std::shared_ptr<Context> context, Transfers& transfers,
              std::shared_ptr<Tickets> tickets);
    // Waits for its submissions.
    ~MetalPlan() override;

    Precision precision() const noexcept override { return precision_; }
    const Context& context() const noexcept { return memory_.context(); }

    // Encodes and commits. With as many in flight as there are slots it waits for the oldest first. Throws RequestError
    // for a batch that the plan cannot serve, before anything runs.
    Ticket submit(const Batch& batch);
    // Waits for a submission of this slot and takes its results. Throws what it failed with; Interrupted, or what the
    // callback threw.
    void wait(uint32_t slot, Ticket ticket);

  private:
    static constexpr uint32_t kSlots = 3;

    struct PlannedStep {
        std::unique_ptr<Operation> operation;
        Rows rows;  // whose count says whether there is anything to do
        ScopeId scope;
        Ref<NSString*> label;
    };
    struct Slot {
        explicit Slot(const std::shared_ptr<Progress>& progress) : completion(progress) {}
        Completion completion;
        uint64_t number = 0;  // the completion's
        Ticket ticket = 0;    // 0: free
        std::shared_ptr<const BufferView> memory, logits;
        std::unique_ptr<StepClock> clock;
        uint32_t timed_parts = 0;
        // What the caller wants done in the end.
        const void* results = nullptr;  // logits or candidates
        void* results_to = nullptr;
        uint64_t result_bytes = 0;
        uint32_t rows = 0, outputs = 0;
        std::function<bool()> interrupted;
    };

    void add_steps(Preparation& preparation);
    uint64_t logit_row_bytes() const noexcept;  // 0: a stage without logits
    uint32_t acquire(const Batch& batch);
    void empty_free_slots() noexcept;
    void finish(Slot& slot);
    Submission fill(Slot& slot, const Batch& batch, BatchMemory& memory);
    void fill_tables(const Batch& batch, BatchMemory& memory, Submission& submission);
    void make_room(Slot& slot, const Batch& batch);
    void grow(Slot& slot, uint64_t needed);
    bool start_clock(Slot& slot);
    void encode(Slot& slot, const Submission& submission);
    void encode_selection(Encoder& encoder, id<MTLComputeCommandEncoder> into, const Submission& submission,
                          bool labelled) const;
    void encode_step(const PlannedStep& step, Encoder& encoder, id<MTLComputeCommandEncoder> into,
                     const Submission& submission, bool labelled) const;
    void lend(const Batch& batch, Ticket ticket);
    // Frees a slot whose work has ended; returns what it failed with.
    std::exception_ptr collect(Slot& slot);
    void record(Slot& slot, const Outcome& outcome);

    PlanMemory memory_;
    const std::shared_ptr<Tickets> tickets_;
    const Program& program_;
    const uint32_t max_tokens_, max_outputs_;
    uint32_t vocabulary_ = 0;
    Precision precision_ = Precision::float32;
    EventRing* const events_;
    std::vector<PlannedStep> steps_;
    std::optional<TopK> top_;
    uint32_t steps_per_part_ = 1;  // of an encoder when steps are timed
    bool timed_ = false;           // the device can time them
    std::string scope_;            // of the whole
    Ref<NSString*> label_, top_label_;
    std::vector<uint64_t> page_bytes_;      // by cache group
    std::vector<std::string> page_scopes_;  // by cache group: who uses its pages first
    uint64_t used_bytes_ = 0;               // by a submission, about

    std::mutex mutex_;
    std::array<std::unique_ptr<Slot>, kSlots> slots_;
};

}  // namespace metallic::metal
