#include "backend/cpu/cpu_plan.h"

#include "backend/allocator.h"
#include "backend/batch_check.h"
#include "backend/cpu/ops/activation.h"
#include "backend/cpu/ops/attention.h"
#include "backend/cpu/ops/copy.h"
#include "backend/cpu/ops/embedding.h"
#include "backend/cpu/ops/kv_write.h"
#include "backend/cpu/ops/matmul.h"
#include "backend/cpu/ops/moe.h"
#include "backend/cpu/ops/norm.h"
#include "backend/cpu/ops/preparation.h"
#include "backend/cpu/ops/rope.h"
#include "backend/cpu/ops/sampling.h"

namespace metallic::cpu {

CpuPlan::CpuPlan(const CompileInputs& inputs, const Isa& isa, uint32_t threads)
    : program_(*inputs.program),
      max_tokens_(inputs.max_tokens),
      max_outputs_(inputs.max_outputs),
      events_(inputs.events),
      allocator_(inputs.allocator) {
    Preparation preparation(inputs, isa, threads);
    preparation.check_program();
    add_steps(preparation);
    place_values(preparation);
    place_scratch(preparation);
    vocabulary_ = preparation.vocabulary;
    precision_ = preparation.precision;
    converted_ = std::move(preparation.converted);
    run_of_row_.resize(max_tokens_);
    submission_.run_of_row = run_of_row_.data();
    submission_.values = values_.data();
    submission_.ropes = ropes_.data();
    submission_.groups = static_cast<uint32_t>(program_.groups.size());
}

void CpuPlan::add_steps(Preparation& preparation) {
    steps_.reserve(program_.steps.size());
    for (const Step& step : program_.steps) {
        preparation.enter(step);
        steps_.push_back({std::visit([&](const auto& op) { return prepare(op, preparation); }, step.op),
                          rows_of(step.op, program_), step.scope});
    }
}

void CpuPlan::place_values(Preparation& preparation) {
    preparation.check_values();
    const CompileInputs& inputs = preparation.inputs;
    values_.assign(program_.values.size(), nullptr);
    const auto place = [&](ValueId id) {
        if (id == program_.logits) return;  // written straight to the batch's logits
        values_[id] = reinterpret_cast<float*>(inputs.arena.address() + inputs.arena_layout.offsets[id]);
    };
    for (const Step& step : program_.steps) {
        for_each_read(step.op, place);
        for_each_write(step.op, place);
    }
}

void CpuPlan::place_scratch(const Preparation& preparation) {
    uint64_t bytes = 0;
    for (const RopeTable& table : program_.ropes) {
        bytes += 2 * aligned_size(size_t{max_tokens_} * (table.dims / 2) * sizeof(float));
    }
    const uint64_t shared_at = bytes;
    const uint64_t own_at = shared_at + preparation.shared_bytes;
    // A page apart, so that no two threads share a line or its prefetched neighbour.
    scratch_bytes_ = (preparation.scratch_bytes + 4095) / 4096 * 4096;
    bytes = own_at + scratch_bytes_ * preparation.threads;
    memory_ = allocator_->allocate(bytes, Storage::shared, Tag::activations, "plan/scratch", Contents::undefined);

    std::byte* at = memory_->host();
    submission_.shared = at + shared_at;
    scratch_ = at + own_at;
    for (const RopeTable& table : program_.ropes) {
        const size_t side = aligned_size(size_t{max_tokens_} * (table.dims / 2) * sizeof(float));
        ropes_.push_back({reinterpret_cast<float*>(at), reinterpret_cast<float*>(at + side), table.dims / 2});
        at += 2 * side;
    }
}

void CpuPlan::bind(const Batch& batch) {
    submission_.batch = &batch;
    submission_.rows[static_cast<size_t>(Rows::tokens)] = static_cast<uint32_t>(batch.tokens.size());
    submission_.rows[static_cast<size_t>(Rows::outputs)] = static_cast<uint32_t>(batch.output_rows.size());
    for (uint32_t r = 0; r < batch.runs.size(); ++r) {
        std::fill_n(run_of_row_.begin() + batch.runs[r].first_row, batch.runs[r].length, r);
    }
    if (program_.logits == kNone) return;
    values_[program_.logits] = batch.logits;
    if (batch.selections.empty()) return;
    if (!logits_) {
        const uint64_t bytes = uint64_t{max_outputs_} * logit_width(program_) * sizeof(float);
        logits_ = allocator_->allocate(bytes, Storage::shared, Tag::activations, "plan/logits", Contents::undefined);
    }
    values_[program_.logits] = reinterpret_cast<float*>(logits_->host());
}

void CpuPlan::choose(const Batch& batch) noexcept {
    const size_t width = logit_width(program_), stride = candidate_stride(batch.selections);
    for (size_t row = 0; row < batch.selections.size(); ++row) {
        select_candidates({values_[program_.logits] + row * width, width}, batch.selections[row],
                          {batch.candidates + row * stride, stride});
    }
}

void CpuPlan::run(ThreadPool& pool, const Batch& batch) {
    check_batch(batch, {max_tokens_, max_outputs_, vocabulary_, logit_width(program_), program_.groups});
    bind(batch);
    StopWatch watch(pool, batch.interrupted);
    struct Context {
        const CpuPlan* plan;
        ThreadPool* pool;
        StopWatch* watch;
    } context{this, &pool, &watch};
    pool.run(
        [](void* opaque, uint32_t thread) noexcept {
            const Context& c = *static_cast<const Context*>(opaque);
            Worker worker(*c.pool, c.plan->submission_, *c.watch, c.plan->scratch_ + thread * c.plan->scratch_bytes_,
                          thread);
            c.plan->walk(worker);
        },
        &context);
    watch.rethrow();
    choose(batch);
}

bool CpuPlan::fill_ropes(Worker& worker) const noexcept {
    if (ropes_.empty()) return true;
    for (size_t i = 0; i < ropes_.size(); ++i) fill_rope_rows(program_.ropes[i], ropes_[i], worker);
    return worker.sync();
}

void CpuPlan::walk(Worker& worker) const noexcept {
    if (!fill_ropes(worker)) return;
    const bool record = worker.thread == 0 && events_ && events_->enabled();
    for (const PlannedStep& step : steps_) {
        const uint32_t rows = submission_.count(step.rows);
        if (rows == 0) continue;
        const uint64_t start = record ? now_ns() : 0;
        step.operation->run(worker);
        worker.poll();
        if (!worker.sync()) return;
        if (record) events_->record({start, now_ns() - start, rows, step.scope, EventKind::step, 0, 0});
    }
}

StopWatch::StopWatch(ThreadPool& pool, const std::function<bool()>& interrupted)
    : pool_(pool), interrupted_(interrupted), last_(interrupted ? now_ns() : 0) {}

void StopWatch::poll() noexcept {
    if (!interrupted_ || stopped_) return;
    const uint64_t now = now_ns();
    if (now - last_ < kIntervalNs) return;
    last_ = now;
    try {
        stopped_ = interrupted_();
    } catch (...) {
        error_ = std::current_exception();
        stopped_ = true;
    }
    if (stopped_) pool_.request_stop();
}

void StopWatch::rethrow() const {
    if (error_) std::rethrow_exception(error_);
    if (stopped_) throw Interrupted{};
}

}  // namespace metallic::cpu
