#include "backend/metal/metal_plan.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/batch_check.h"
#include "backend/metal/errors.h"
#include "backend/metal/ops/activation.h"
#include "backend/metal/ops/attention.h"
#include "backend/metal/ops/copy.h"
#include "backend/metal/ops/embedding.h"
#include "backend/metal/ops/expert_matmul.h"
#include "backend/metal/ops/kv_write.h"
#include "backend/metal/ops/matmul.h"
#include "backend/metal/ops/moe.h"
#include "backend/metal/ops/norm.h"
#include "backend/metal/ops/preparation.h"
#include "backend/metal/ops/rope.h"
#include "backend/metal/signposts.h"
#include "core/error.h"

namespace metallic::metal {
namespace {

constexpr std::chrono::milliseconds kPoll{20};  // between looks at Batch::interrupted

constexpr uint64_t kBatchReserve = 4096;  // for runs, page tables and rows of a batch of few sequences

uint64_t aligned(uint64_t bytes) {
    return (bytes + 15) / 16 * 16;
}

uint64_t candidate_bytes(const Batch& batch) {
    return batch.selections.size() * candidate_stride(batch.selections) * sizeof(Candidate);
}

// What the scopes of all steps begin with, as models open them.
std::string common_scope(const Program& program) {
    std::string first = program.steps.empty() ? std::string() : program.scopes.path(program.steps[0].scope);
    first.resize(std::min(first.find('/'), first.size()));
    return first.empty() ? "submission" : first;
}

}  // namespace

MetalPlan::MetalPlan(const CompileInputs& inputs, std::shared_ptr<Context> context, Transfers& transfers,
                     std::shared_ptr<Tickets> tickets)
    : memory_(std::move(context), transfers, inputs.allocator),
      tickets_(std::move(tickets)),
      program_(*inputs.program),
      max_tokens_(inputs.max_tokens),
      max_outputs_(inputs.max_outputs),
      events_(inputs.events),
      scope_(common_scope(program_)),
      label_(to_ns_string(scope_)),
      top_label_(to_ns_string(scope_ + "/candidates")) {
    const AutoreleasePool pool;
    Preparation preparation(inputs, memory_);
    preparation.check_program();
    memory_.allocate_logits(max_outputs_ * logit_row_bytes());
    MetalHeap* const arena = metal_heap(inputs.arena, memory_.context());
    preparation.check(arena, "an arena of another device");
    arena->settle();
    memory_.borrow(arena->bind(inputs.arena.offset, inputs.arena.bytes), scope_ + " (activations)");
    add_steps(preparation);
    preparation.check_values();
    if (const uint32_t width = logit_width(program_)) top_.emplace(width, max_outputs_, preparation);
    precision_ = preparation.precision;
    memory_.allocate_scratch();
    memory_.context().shaders().save();
    vocabulary_ = preparation.vocabulary;
    for (const KvLayout& layout : inputs.kv) page_bytes_.push_back(layout.page_bytes);
    for (const BufferView& weight : inputs.weights) used_bytes_ += weight.bytes;
    used_bytes_ += inputs.arena.bytes;
    timed_ = events_ && StepClock::supported(memory_.context().device());
    steps_per_part_ = static_cast<uint32_t>((steps_.size() + StepClock::kMostParts - 1) / StepClock::kMostParts);
    for (auto& slot : slots_) slot = std::make_unique<Slot>(memory_.context().progress());
    slots_[0]->logits = memory_.logits_view();
    // Also what every batch takes, so that pages are let in only on what is left beside it.
    grow(*slots_[0], memory_.batch_bytes() + aligned(max_tokens_ * sizeof(int32_t)) +
                         aligned(max_tokens_ * sizeof(RowParams)) + kBatchReserve);
}

uint64_t MetalPlan::logit_row_bytes() const noexcept {
    return uint64_t{logit_width(program_)} * sizeof(float);
}

MetalPlan::~MetalPlan() {
    if (context().forked()) return;
    for (const auto& slot : slots_) {
        if (slot && slot->ticket) finish(*slot);
    }
}

void MetalPlan::add_steps(Preparation& preparation) {
    page_scopes_.resize(program_.groups.size(), "the cache");
    const auto uses_pages = [&](uint32_t group, const std::string& scope) {
        if (page_scopes_[group] == "the cache") page_scopes_[group] = scope;
    };
    steps_.reserve(program_.steps.size());
    for (const Step& step : program_.steps) {
        preparation.enter(step);
        steps_.push_back({std::visit([&](const auto& op) { return prepare(op, preparation); }, step.op),
                          rows_of(step.op, program_), step.scope, to_ns_string(preparation.scope())});
        if (const auto* write = std::get_if<KvWriteStep>(&step.op)) uses_pages(write->group, preparation.scope());
        if (const auto* read = std::get_if<AttentionStep>(&step.op)) uses_pages(read->group, preparation.scope());
    }
}

// ---- submitting ---------------------------------------------------------------------------------------------------

void MetalPlan::finish(Slot& slot) {
    slot.completion.wait(slot.number);
    memory_.context().release_retired();
    const Ticket ticket = slot.ticket;
    tickets_->close(ticket, collect(slot));
}

// The first free slot: submissions that are waited for one by one use the memory of one. When none is free, or there is
// no memory for another one, the oldest submission is waited for.
uint32_t MetalPlan::acquire(const Batch& batch) {
    uint32_t free = kSlots, oldest = kSlots;
    for (uint32_t i = 0; i < kSlots; ++i) {
        if (!slots_[i]->ticket) {
            free = std::min(free, i);
        } else if (oldest == kSlots || slots_[i]->ticket < slots_[oldest]->ticket) {
            oldest = i;
        }
    }
    if (free != kSlots) {
        try {
            make_room(*slots_[free], batch);
            return free;
        } catch (const OutOfMemory&) {
            empty_free_slots();
        }
        if (oldest == kSlots) {
            make_room(*slots_[free], batch);
            return free;
        }
    }
    finish(*slots_[oldest]);
    make_room(*slots_[oldest], batch);
    return oldest;
}

// What they keep for the next submissions, but for the logits that were there first.
void MetalPlan::empty_free_slots() noexcept {
    for (const auto& slot : slots_) {
        if (slot->ticket) continue;
        slot->memory.reset();
        if (slot->logits != memory_.logits_view()) slot->logits.reset();
    }
}

// Batch memory and logits grow to what batches need.
void MetalPlan::make_room(Slot& slot, const Batch& batch) {
    const uint64_t groups = program_.groups.size();
    uint64_t pages = 0;
    for (const PageTableView& table : batch.tables) pages += table.count;
    const uint64_t needed =
        aligned(batch.tokens.size() * sizeof(int32_t)) + aligned(batch.tokens.size() * sizeof(RowParams)) +
        aligned(batch.runs.size() * sizeof(RunParams)) + aligned(batch.runs.size() * groups * sizeof(TableParams)) +
        aligned(pages * sizeof(uint64_t)) + aligned(batch.output_rows.size() * sizeof(uint32_t)) +
        aligned(candidate_bytes(batch)) + TopK::batch_bytes(batch.selections) + 7 * 16 + memory_.batch_bytes();
    grow(slot, needed);
    if (!slot.logits) slot.logits = memory_.take(memory_.logits().bytes, Tag::activations, "plan/logits");
}

// Where memory is short there is no reserve, and the memory that is too small makes room for the larger.
void MetalPlan::grow(Slot& slot, uint64_t needed) {
    if (slot.memory && slot.memory->bytes >= needed) return;
    try {
        slot.memory = memory_.take(std::bit_ceil(needed), Tag::staging, "plan/batch");
    } catch (const OutOfMemory&) {
        slot.memory.reset();
        slot.memory = memory_.take(needed, Tag::staging, "plan/batch");
    }
}

Submission MetalPlan::fill(Slot& slot, const Batch& batch, BatchMemory& memory) {
    memory = BatchMemory(memory_.bind(*slot.memory), slot.memory->host());
    Submission submission;
    submission.batch = &batch;
    submission.memory = &memory;
    submission.groups = static_cast<uint32_t>(program_.groups.size());
    submission.rows[static_cast<size_t>(Rows::tokens)] = static_cast<uint32_t>(batch.tokens.size());
    submission.rows[static_cast<size_t>(Rows::outputs)] = static_cast<uint32_t>(batch.output_rows.size());

    void* host = nullptr;
    submission.tokens = memory.take(batch.tokens.size_bytes(), &host);
    std::memcpy(host, batch.tokens.data(), batch.tokens.size_bytes());
    submission.row_params = memory.take(batch.tokens.size() * sizeof(RowParams), &host);
    auto* row = static_cast<RowParams*>(host);
    submission.run_params = memory.take(batch.runs.size() * sizeof(RunParams), &host);
    auto* out = static_cast<RunParams*>(host);
    for (uint32_t r = 0; r < batch.runs.size(); ++r) {
        const Run& run = batch.runs[r];
        *out++ = {run.first_row, run.length, run.position, run.rope_extended ? 1u : 0u};
        for (uint32_t i = 0; i < run.length; ++i) *row++ = {r, run.position + i};
    }
    fill_tables(batch, memory, submission);
    submission.output_rows = memory.take(batch.output_rows.size_bytes(), &host);
    if (!batch.output_rows.empty()) std::memcpy(host, batch.output_rows.data(), batch.output_rows.size_bytes());

    if (batch.selections.empty()) {
        slot.results = slot.logits->host();
        slot.results_to = batch.logits;
        slot.result_bytes = batch.output_rows.size() * logit_row_bytes();
    } else {
        submission.candidates = memory.take(candidate_bytes(batch), &host);
        slot.results = host;
        slot.results_to = batch.candidates;
        slot.result_bytes = candidate_bytes(batch);
    }
    slot.rows = submission.count(Rows::tokens);
    slot.outputs = submission.count(Rows::outputs);
    slot.interrupted = batch.interrupted;
    return submission;
}

void MetalPlan::fill_tables(const Batch& batch, BatchMemory& memory, Submission& submission) {
    uint32_t pages = 0;
    for (const PageTableView& table : batch.tables) pages += table.count;
    void* host = nullptr;
    submission.table_params = memory.take(batch.tables.size() * sizeof(TableParams), &host);
    auto* entry = static_cast<TableParams*>(host);
    submission.pages = memory.take(uint64_t{pages} * sizeof(uint64_t), &host);
    auto* const addresses = static_cast<uint64_t*>(host);
    uint32_t first = 0;
    for (const PageTableView& table : batch.tables) {
        *entry++ = {first, table.first_page, table.count, 0};
        std::copy_n(table.pages, table.count, addresses + first);
        first += table.count;
    }
}

bool MetalPlan::start_clock(Slot& slot) {
    slot.timed_parts = 0;
    if (!timed_ || !events_->enabled()) return false;
    if (!slot.clock) slot.clock = std::make_unique<StepClock>(memory_.context().device(), StepClock::kMostParts);
    if (!*slot.clock) return false;
    slot.clock->start();
    return true;
}

// Labels say where an error arose; they cost time, and are left out unless somebody asked to see.
void MetalPlan::encode_step(const PlannedStep& step, Encoder& encoder, id<MTLComputeCommandEncoder> into,
                            const Submission& submission, bool labelled) const {
    if (submission.count(step.rows) == 0) return;
    if (labelled) [into pushDebugGroup:step.label.get()];
    step.operation->encode(encoder, submission);
    if (labelled) [into popDebugGroup];
}

void MetalPlan::encode_selection(Encoder& encoder, id<MTLComputeCommandEncoder> into, const Submission& submission,
                                 bool labelled) const {
    if (submission.batch->selections.empty()) return;
    if (labelled) [into pushDebugGroup:top_label_.get()];
    top_->encode(encoder, *submission.memory, memory_.logits(), submission.batch->selections, submission.candidates);
    if (labelled) [into popDebugGroup];
}

void MetalPlan::encode(Slot& slot, const Submission& submission) {
    Context::Commands commands(memory_.context(), label_.get(), Context::Commands::Lifetimes::kept_by_caller);
    const Substitution substitution{memory_.logits(), memory_.bind(*slot.logits)};
    const bool timed = start_clock(slot);
    const bool labelled = memory_.context().ledger().kept() || (events_ && events_->enabled());
    Encoder encoder;
    id<MTLComputeCommandEncoder> into = nil;
    for (size_t i = 0; i < steps_.size(); ++i) {
        if (!into || (timed && i % steps_per_part_ == 0)) {
            MTLComputePassDescriptor* pass = timed ? slot.clock->pass(slot.timed_parts++) : nil;
            into = commands.compute(label_.get(), pass);
            encoder.begin(into, substitution);
        }
        encode_step(steps_[i], encoder, into, submission, labelled);
    }
    encode_selection(encoder, into, submission, labelled);
    slot.number = commands.commit(slot.completion);
}

void MetalPlan::lend(const Batch& batch, Ticket ticket) {
    Ledger& ledger = memory_.context().ledger();
    if (!ledger.kept()) return;
    std::vector<Loan> loans = memory_.loans();
    for (size_t i = 0; i < batch.tables.size(); ++i) {
        const PageTableView& table = batch.tables[i];
        const size_t group = i % program_.groups.size();
        for (uint32_t p = 0; p < table.count; ++p) {
            if (table.pages[p] == 0) continue;
            loans.push_back({table.pages[p], table.pages[p] + page_bytes_[group], page_scopes_[group]});
        }
    }
    ledger.lend(ticket, std::move(loans));
}

Ticket MetalPlan::submit(const Batch& batch) {
    check_batch(batch, {max_tokens_, max_outputs_, vocabulary_, logit_width(program_), program_.groups});
    const std::lock_guard lock(mutex_);
    const uint32_t index = acquire(batch);
    Slot& slot = *slots_[index];
    BatchMemory memory;
    const Submission submission = fill(slot, batch, memory);
    const Ticket ticket = tickets_->issue({this, index});
    try {
        lend(batch, ticket);
        signpost_begin(ticket, slot.rows, slot.outputs);
        encode(slot, submission);
    } catch (...) {
        signpost_end(ticket);
        memory_.context().ledger().settle(ticket);
        tickets_->close(ticket, nullptr);
        throw;
    }
    slot.ticket = ticket;
    return ticket;
}

// ---- waiting ------------------------------------------------------------------------------------------------------

void MetalPlan::wait(uint32_t index, Ticket ticket) {
    Slot& slot = *slots_[index];
    uint64_t number = 0;
    std::function<bool()> interrupted;
    {
        const std::lock_guard lock(mutex_);
        if (slot.ticket == ticket) {
            number = slot.number;
            interrupted = std::move(slot.interrupted);
        }
    }
    // The GPU cannot be stopped: a submission is bounded by the batch, and is waited for.
    bool stop = false;
    std::exception_ptr failed;
    while (interrupted && !stop && !slot.completion.wait_for(number, kPoll)) {
        try {
            stop = interrupted();
        } catch (...) {
            failed = std::current_exception();
            stop = true;
        }
    }
    slot.completion.wait(number);
    memory_.context().release_retired();
    {
        const std::lock_guard lock(mutex_);
        if (slot.ticket == ticket) {
            const std::exception_ptr error = collect(slot);
            tickets_->close(ticket, nullptr);
            if (!failed) failed = stop ? std::make_exception_ptr(Interrupted{}) : error;
        }
    }
    if (failed) std::rethrow_exception(failed);
    tickets_->find(ticket);  // throws what it failed with, where another thread took the results
}

std::exception_ptr MetalPlan::collect(Slot& slot) {
    const Ticket ticket = std::exchange(slot.ticket, 0);
    const Outcome outcome = slot.completion.outcome();
    const AutoreleasePool pool;
    signpost_end(ticket);
    slot.interrupted = nullptr;
    std::exception_ptr failed = memory_.context().judge(outcome, scope_, used_bytes_);
    const std::string fault = memory_.context().ledger().settle(ticket);
    if (!fault.empty()) failed = std::make_exception_ptr(DeviceError(fault, scope_, "freed in flight"));
    if (!failed && slot.result_bytes) std::memcpy(slot.results_to, slot.results, slot.result_bytes);
    if (!failed && events_ && events_->enabled()) record(slot, outcome);
    return failed;
}

void MetalPlan::record(Slot& slot, const Outcome& outcome) {
    const uint64_t duration = static_cast<uint64_t>(std::max(outcome.gpu_seconds, 0.0) * 1e9);
    events_->record(
        {outcome.end_ns - std::min(duration, outcome.end_ns), duration, slot.rows, 0, EventKind::submit, 0, 0});
    if (slot.timed_parts == 0) return;
    const std::span<const StepClock::Span> spans = slot.clock->read(slot.timed_parts);
    for (size_t i = 0; i < spans.size(); ++i) {
        const PlannedStep& step = steps_[i * steps_per_part_];
        const uint32_t rows = step.rows == Rows::tokens ? slot.rows : slot.outputs;
        if (rows == 0 || spans[i].start_ns == 0) continue;
        events_->record({spans[i].start_ns, spans[i].duration_ns, rows, step.scope, EventKind::step, 0, 0});
    }
}

}  // namespace metallic::metal
