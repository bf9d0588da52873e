#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/isa/select.h"
#include "backend/cpu/ops/operation.h"

namespace metallic::cpu {

class Preparation;

// A program whose steps are operations over fixed addresses, with all the memory that a submission needs.
class CpuPlan final : public Plan {
  public:
    // Scratch comes from the allocator of `inputs`. Throws Error for a program that its inputs do not fit, OutOfMemory,
    // UnsupportedModelError.
    CpuPlan(const CompileInputs& inputs, const Isa& isa, uint32_t threads);

    // Runs a batch on the pool, which has the threads that the plan was made for; returns when done. Throws
    // RequestError for a batch that the plan cannot serve, before anything runs; Interrupted, or what `interrupted`
    // threw.
    void run(ThreadPool& pool, const Batch& batch);
    Precision precision() const noexcept override { return precision_; }

  private:
    struct PlannedStep {
        std::unique_ptr<Operation> operation;
        Rows rows;  // whose count says how much there is to do
        ScopeId scope;
    };

    void add_steps(Preparation& preparation);
    void place_values(Preparation& preparation);
    void place_scratch(const Preparation& preparation);
    void bind(const Batch& batch);
    void choose(const Batch& batch) noexcept;
    void walk(Worker& worker) const noexcept;
    bool fill_ropes(Worker& worker) const noexcept;

    const Program& program_;
    const uint32_t max_tokens_, max_outputs_;
    uint32_t vocabulary_ = 0;
    Precision precision_ = Precision::float32;
    EventRing* const events_;
    std::vector<PlannedStep> steps_;
    std::vector<std::shared_ptr<const BufferView>> converted_;  // weights
    std::vector<float*> values_;
    std::vector<RopeRows> ropes_;
    std::vector<uint32_t> run_of_row_;
    const std::shared_ptr<Allocator> allocator_;
    std::shared_ptr<const BufferView> memory_;  // rope rows, shared scratch, then each thread's own
    std::shared_ptr<const BufferView> logits_;  // of batches that want candidates; null before the first
    std::byte* scratch_ = nullptr;
    size_t scratch_bytes_ = 0;  // of one thread
    Submission submission_;
};

}  // namespace metallic::cpu
