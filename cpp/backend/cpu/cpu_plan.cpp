#include "backend/cpu/cpu_plan.h"

#include <string>

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
#include "core/error.h"

namespace metallic::cpu {
namespace {

// Steps that read other elements than the ones they write, and so cannot work in place.
bool needs_apart(const StepOp& op) {
    return std::holds_alternative<LinearStep>(op) || std::holds_alternative<ExpertLinearStep>(op) ||
           std::holds_alternative<AttentionStep>(op) || std::holds_alternative<CombineStep>(op) ||
           std::holds_alternative<RouteStep>(op) || std::holds_alternative<SelectStep>(op);
}

Rows rows_of(const StepOp& op, const Program& program) {
    Rows rows = Rows::tokens;
    for_each_write(op, [&](ValueId id) { rows = program.values[id].rows; });
    return rows;
}

}  // namespace

CpuPlan::CpuPlan(const CompileInputs& inputs, const Isa& isa, uint32_t threads,
                 const std::shared_ptr<HeapLedger>& ledger)
    : program_(*inputs.program),
      max_tokens_(inputs.max_tokens),
      max_outputs_(inputs.max_outputs),
      events_(inputs.events) {
    Preparation preparation(inputs, isa, threads);
    preparation.check(max_tokens_ > 0 && max_outputs_ <= max_tokens_, "a plan for no tokens, or for too many outputs");
    preparation.check(program_.logits < program_.values.size(), "a program without logits");
    preparation.check(program_.values[program_.logits].rows == Rows::outputs, "logits of all tokens");
    preparation.check(inputs.arena_layout.offsets.size() == program_.values.size(),
                      "an arena laid out for other values");
    add_steps(preparation);
    place_values(preparation);
    place_scratch(preparation, ledger);
    vocabulary_ = preparation.vocabulary;
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
        for_each_read(step.op, [&](ValueId id) { preparation.value(id); });
        for_each_write(step.op, [&](ValueId id) { preparation.value(id); });
        steps_.push_back({std::visit([&](const auto& op) { return prepare(op, preparation); }, step.op),
                          rows_of(step.op, program_), step.scope});
    }
}

void CpuPlan::place_values(const Preparation& preparation) {
    const CompileInputs& inputs = preparation.inputs;
    const BufferView& arena = inputs.arena;
    const bool held =
        arena.heap && arena.offset <= arena.heap->bytes() && arena.bytes <= arena.heap->bytes() - arena.offset;
    const std::vector<uint64_t>& offsets = inputs.arena_layout.offsets;
    const auto bytes_of = [&](ValueId id) {
        return uint64_t{program_.values[id].width} * preparation.max_rows(program_.values[id].rows) * sizeof(float);
    };
    values_.assign(program_.values.size(), nullptr);
    const auto place = [&](ValueId id) {
        if (id == program_.logits) return;  // written straight to the batch's logits
        preparation.check(held && offsets[id] <= arena.bytes && bytes_of(id) <= arena.bytes - offsets[id] &&
                              (arena.address() + offsets[id]) % sizeof(float) == 0,
                          "a value outside of the arena");
        values_[id] = reinterpret_cast<float*>(arena.address() + offsets[id]);
    };
    for (const Step& step : program_.steps) {
        for_each_read(step.op, place);
        for_each_write(step.op, place);
        if (!needs_apart(step.op)) continue;
        for_each_read(step.op, [&](ValueId in) {
            for_each_write(step.op, [&](ValueId out) {
                if (in == program_.logits || out == program_.logits) return;
                const bool apart =
                    offsets[in] + bytes_of(in) <= offsets[out] || offsets[out] + bytes_of(out) <= offsets[in];
                if (!apart) {
                    throw Error(program_.scopes.path(step.scope) + ": " + step_name(step.op) +
                                ": the output lies upon an input");
                }
            });
        });
    }
}

void CpuPlan::place_scratch(const Preparation& preparation, const std::shared_ptr<HeapLedger>& ledger) {
    uint64_t bytes = 0;
    for (const RopeTable& table : program_.ropes) {
        bytes += 2 * aligned_size(size_t{max_tokens_} * (table.dims / 2) * sizeof(float));
    }
    const uint64_t shared_at = bytes;
    const uint64_t own_at = shared_at + preparation.shared_bytes;
    // A page apart, so that no two threads share a line or its prefetched neighbour.
    scratch_bytes_ = (preparation.scratch_bytes + 4095) / 4096 * 4096;
    bytes = own_at + scratch_bytes_ * preparation.threads;
    memory_ = allocate_heap(ledger, bytes, Storage::shared, "cpu/scratch");

    std::byte* at = memory_->host();
    submission_.shared = at + shared_at;
    scratch_ = at + own_at;
    for (const RopeTable& table : program_.ropes) {
        const size_t side = aligned_size(size_t{max_tokens_} * (table.dims / 2) * sizeof(float));
        ropes_.push_back({reinterpret_cast<float*>(at), reinterpret_cast<float*>(at + side), table.dims / 2});
        at += 2 * side;
    }
}

void CpuPlan::check_batch(const Batch& batch) const {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw RequestError(std::string("batch: ") + what);
    };
    require(!batch.tokens.empty(), "no tokens");
    require(batch.tokens.size() <= max_tokens_, "more tokens than the plan was made for");
    require(batch.output_rows.size() <= max_outputs_, "more outputs than the plan was made for");
    require(batch.output_rows.empty() || batch.logits, "outputs without memory for logits");
    uint64_t next = 0;
    for (const uint32_t row : batch.output_rows) {
        require(row >= next && row < batch.tokens.size(), "output rows that do not ascend within the batch");
        next = uint64_t{row} + 1;
    }
    for (const int32_t token : batch.tokens) {
        if (vocabulary_ && (token < 0 || static_cast<uint32_t>(token) >= vocabulary_)) {
            throw RequestError("token id " + std::to_string(token) + " is outside the vocabulary of " +
                               std::to_string(vocabulary_));
        }
    }
    require(batch.tables.size() == batch.runs.size() * program_.groups.size(), "a wrong number of page tables");
    check_runs(batch);
}

void CpuPlan::check_runs(const Batch& batch) const {
    const size_t groups = program_.groups.size();
    uint64_t row = 0;
    for (size_t r = 0; r < batch.runs.size(); ++r) {
        const Run& run = batch.runs[r];
        if (run.first_row != row || run.length == 0 || run.length > batch.tokens.size() - row) {
            throw RequestError("batch: runs that do not cover the tokens in turn");
        }
        row += run.length;
        if (uint64_t{run.position} + run.length > uint64_t{1} << 31)
            throw RequestError("batch: a position beyond 2^31");
        for (size_t g = 0; g < groups; ++g) check_table(run, batch.tables[r * groups + g], program_.groups[g].window);
    }
    if (row != batch.tokens.size()) throw RequestError("batch: tokens of no run");
}

void CpuPlan::check_table(const Run& run, const PageTableView& table, uint32_t window) const {
    const uint64_t oldest = window && run.position >= window ? run.position - window + 1 : 0;
    const uint64_t end = uint64_t{run.position} + run.length;
    if (uint64_t{table.first_page} * kPageTokens > oldest ||
        (uint64_t{table.first_page} + table.count) * kPageTokens < end || !table.pages) {
        throw RequestError("batch: a page table that does not cover positions " + std::to_string(oldest) + " to " +
                           std::to_string(end));
    }
    for (uint64_t page = oldest / kPageTokens; page <= (end - 1) / kPageTokens; ++page) {
        if (table.pages[page - table.first_page] == 0) throw RequestError("batch: a page table with a missing page");
    }
}

void CpuPlan::bind(const Batch& batch) noexcept {
    submission_.batch = &batch;
    submission_.rows[static_cast<size_t>(Rows::tokens)] = static_cast<uint32_t>(batch.tokens.size());
    submission_.rows[static_cast<size_t>(Rows::outputs)] = static_cast<uint32_t>(batch.output_rows.size());
    for (uint32_t r = 0; r < batch.runs.size(); ++r) {
        std::fill_n(run_of_row_.begin() + batch.runs[r].first_row, batch.runs[r].length, r);
    }
    values_[program_.logits] = batch.logits;
}

void CpuPlan::run(ThreadPool& pool, const Batch& batch) {
    check_batch(batch);
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
