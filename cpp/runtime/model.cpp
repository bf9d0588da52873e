#include "runtime/model.h"

#include <algorithm>

#include "backend/batch_check.h"
#include "core/error.h"

namespace metallic {
namespace {

// Logits of one submission stay within this many bytes of arena, but at least kMinOutputs rows.
constexpr uint64_t kLogitBytes = uint64_t{8} << 20;
constexpr uint64_t kMinOutputs = 16;

uint32_t max_outputs(const Program& program, uint32_t batch_tokens) {
    const uint64_t row = uint64_t{program.values[program.logits].width} * sizeof(float);
    return static_cast<uint32_t>(std::min<uint64_t>(std::max(kLogitBytes / row, kMinOutputs), batch_tokens));
}

constexpr std::chrono::milliseconds kBalancePeriod{100};

constexpr int kPlacementAttempts = 8;
constexpr uint64_t kPlacementStep = uint64_t{1} << 20;

ModelOptions checked(ModelOptions options) {
    if (options.batch_tokens == 0 || options.batch_tokens > 65536) {
        throw RequestError("batch_tokens must lie between 1 and 65536");
    }
    if (options.context_length == 0) throw RequestError("the context length must be at least 1");
    for (const KvPair& types : {options.kv_types.full, options.kv_types.window}) {
        for (const DType dtype : {types.keys, types.values}) {
            if (is_kv_dtype(dtype)) continue;
            throw RequestError("keys and values cannot be kept in " + std::string(dtype_info(dtype).name) +
                               "; F32, F16, BF16, Q8_0 and Q4_0 are supported");
        }
    }
    return options;
}

void check_idle(const Sequence& sequence) {
    if (sequence.busy) throw RequestError("the sequence is in use by a forward pass");
}

}  // namespace

// Marks the sequences of one forward pass as busy.
class Model::Hold {
  public:
    Hold(Model& model, std::span<const RunRequest> runs) : model_(model), runs_(runs) {
        const std::lock_guard lock(model.cache_->mutex());
        model.check(runs);
        for (const RunRequest& run : runs) check_idle(*run.sequence);
        for (const RunRequest& run : runs) run.sequence->busy = true;
    }
    ~Hold() {
        {
            const std::lock_guard lock(model_.cache_->mutex());
            for (const RunRequest& run : runs_) {
                run.sequence->busy = false;
                run.sequence->last_used_ns = now_ns();
            }
        }
        model_.admission_->notify();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

  private:
    Model& model_;
    std::span<const RunRequest> runs_;
};

// Until it ends, the backend may read the pages of the batch, and this thread submits.
class Model::Flight {
  public:
    Flight(Model& model, const Pass& pass) : model_(model), pass_(pass) {
        model_.submitting_ = std::this_thread::get_id();
    }
    ~Flight() {
        const std::lock_guard lock(model_.cache_->mutex());
        for (Sequence* sequence : pass_.sequences) sequence->in_flight = false;
        model_.submitting_ = std::thread::id();
    }
    Flight(const Flight&) = delete;
    Flight& operator=(const Flight&) = delete;

  private:
    Model& model_;
    const Pass& pass_;
};

Model::Model(std::shared_ptr<const ModelFile> file, std::shared_ptr<Backend> backend, const Program& program,
             const ModelOptions& options)
    : file_(std::move(file)),
      options_(checked(options)),
      placed_(plan(program, backend->device(), options_)),
      backend_(placed_.placement.on(kDevice) ? std::move(backend) : placed_.host),
      program_(placed_.program),
      pool_(backend_, options.memory_budget),
      max_outputs_(max_outputs(program_, options_.batch_tokens)) {
    std::vector<StagedPlan::Device> devices(2);
    const uint32_t first = placed_.placement.on(kDevice) ? kDevice : kHost;
    devices[first] = {backend_, &pool_};
    if (first == kDevice && placed_.host) {
        host_pool_ = std::make_unique<Pool>(placed_.host, pool_.budget());
        devices[kHost] = {placed_.host, host_pool_.get()};
    }
    plan_ = std::make_unique<StagedPlan>(
        program_, placed_.placement, file_, devices,
        StagedPlan::Options{options_.batch_tokens, max_outputs_, options_.kv_types, options_.precision, &events_});
    std::vector<KvGroup> groups;
    for (const StagedPlan::Group& group : plan_->groups()) {
        const StagedPlan::Device& at = devices[group.device];
        groups.push_back(
            {at.pool, at.backend.get(), group.group, group.layout, "kv/group." + std::to_string(groups.size())});
    }
    const Eviction eviction = options_.eviction.value_or(device().deterministic ? Eviction::recompute : Eviction::save);
    cache_ = std::make_unique<KvCache>(std::move(groups), options_.batch_tokens, eviction, log_);
    admission_ = std::make_unique<Admission>(*cache_, log_);
    if (!options_.policy) options_.policy = std::make_shared<WatermarkPolicy>();
    residency_ = std::make_unique<ResidencyManager>([this] { balance(); }, kBalancePeriod);
}

Model::~Model() = default;

std::shared_ptr<Model> Model::load(const std::shared_ptr<const ModelFile>& file,
                                   const std::shared_ptr<Backend>& backend, const Program& program,
                                   ModelOptions options) {
    uint64_t step = kPlacementStep;
    for (int attempts = options.placement.automatic() ? kPlacementAttempts : 1;; --attempts, step *= 2) {
        try {
            return std::make_shared<Model>(file, backend, program, options);
        } catch (const OutOfMemory& error) {
            if (attempts == 1) throw;
            options.placement_reserve += error.needed - std::min(error.needed, error.available) + step;
        }
    }
}

Placement Model::place(Program& traced, const DeviceInfo& device, const ModelOptions& options) {
    std::vector<KvLayout> kv;
    kv.reserve(traced.groups.size());
    for (const CacheGroup& group : traced.groups) kv.push_back(KvLayout::of(group, options.kv_types.of(group)));
    PlacementLimits limits;
    limits.device_is_host = device.is_host || !options.host;
    limits.unified_memory = device.unified_memory;
    limits.device_memory = device.memory_bytes;
    limits.memory_budget = options.memory_budget;
    limits.context = options.placement_context ? options.placement_context : options.context_length;
    limits.batch_tokens = options.batch_tokens;
    limits.activations = activation_bytes(plan_program(traced), options.batch_tokens) + options.placement_reserve;
    limits.kv = kv;
    return place_weights(traced, options.placement, limits);
}

Model::Placed Model::plan(const Program& traced, const DeviceInfo& device, const ModelOptions& options) {
    Placed placed;
    Program program = traced;
    placed.placement = place(program, device, options);
    placed.program = plan_program(program);
    if (placed.placement.on(kHost)) placed.host = options.host();
    return placed;
}

uint64_t Model::activation_bytes(const Program& planned, uint32_t batch_tokens) {
    return layout_arena(planned, batch_tokens, max_outputs(planned, batch_tokens)).bytes;
}

// ---- sequences ------------------------------------------------------------------------------------------------------

std::shared_ptr<Sequence> Model::own(std::unique_ptr<Sequence> sequence) {
    return {sequence.release(), [model = shared_from_this()](Sequence* last) {
                {
                    const std::lock_guard lock(model->cache_->mutex());
                    model->cache_->destroy(last);
                }
                model->admission_->notify();
            }};
}

std::shared_ptr<Sequence> Model::create_sequence() {
    std::unique_ptr<Sequence> sequence;
    {
        const std::lock_guard lock(cache_->mutex());
        sequence = cache_->create();
    }
    return own(std::move(sequence));
}

std::shared_ptr<Sequence> Model::fork(const Sequence& sequence) {
    std::unique_ptr<Sequence> copy;
    {
        const std::lock_guard lock(cache_->mutex());
        check_idle(sequence);
        copy = cache_->fork(sequence);
    }
    return own(std::move(copy));
}

bool Model::truncate(Sequence& sequence, uint32_t length) {
    const std::lock_guard lock(cache_->mutex());
    check_idle(sequence);
    return sequence.truncate(length);
}

void Model::forget(Sequence& sequence, uint32_t first, uint32_t count) {
    {
        const std::lock_guard lock(cache_->mutex());
        check_idle(sequence);
        if (first > sequence.length() || count > sequence.length() - first) {
            throw RequestError("the sequence of " + std::to_string(sequence.length()) + " tokens has none from " +
                               std::to_string(first) + " to " + std::to_string(uint64_t{first} + count));
        }
        sequence.forget(first, count);
    }
    admission_->notify();
}

void Model::reserve(Sequence& sequence, uint32_t length) {
    if (length > options_.context_length) throw RequestError("a reservation beyond the context length");
    const std::lock_guard lock(cache_->mutex());
    check_idle(sequence);
    if (sequence.resident()) sequence.reserve_ahead(length);
}

Model::SequenceUse Model::use(const Sequence& sequence) const {
    const std::lock_guard lock(cache_->mutex());
    return {sequence.length(), sequence.cached(), sequence.pages()};
}

uint64_t Model::evict(Sequence& sequence) {
    const std::lock_guard lock(cache_->mutex());
    check_idle(sequence);
    return cache_->evict(sequence, "asked for");
}

void Model::enter(Sequence& sequence, uint64_t tokens, const std::function<bool()>& interrupted) {
    admission_->enter(sequence, std::min<uint64_t>(tokens, options_.context_length), interrupted);
}

uint64_t Model::logit_rows(std::span<const RunRequest> runs) noexcept {
    uint64_t rows = 0;
    for (const RunRequest& run : runs) {
        rows += run.no_logits || run.selection ? 0 : run.all_logits ? run.tokens.size() : 1;
    }
    return rows;
}

void Model::check(std::span<const RunRequest> runs) const {
    for (size_t i = 0; i < runs.size(); ++i) {
        const RunRequest& run = runs[i];
        if (!run.sequence || run.tokens.empty()) throw RequestError("a run needs a sequence and at least one token");
        for (size_t j = 0; j < i; ++j) {
            if (runs[j].sequence == run.sequence) throw RequestError("a sequence may appear once in a batch");
        }
        if (run.selection) {
            if (run.all_logits || run.no_logits || !run.candidates) {
                throw RequestError("candidates are chosen for the last token of a run, and come instead of its logits");
            }
            check_selections({run.selection, 1}, vocabulary());
        }
        if (run.tokens.size() > options_.context_length ||
            run.sequence->length() > options_.context_length - run.tokens.size()) {
            throw RequestError(std::to_string(run.sequence->length()) + " + " + std::to_string(run.tokens.size()) +
                               " tokens do not fit the context length of " + std::to_string(options_.context_length));
        }
        const auto bad = std::find_if(run.tokens.begin(), run.tokens.end(), [&](int32_t token) {
            return token < 0 || static_cast<uint32_t>(token) >= vocabulary();
        });
        if (bad != run.tokens.end()) {
            throw RequestError("token id " + std::to_string(*bad) + " is outside the vocabulary of " +
                               std::to_string(vocabulary()));
        }
    }
}

// ---- forward passes -------------------------------------------------------------------------------------------------

// How many tokens of a request the batch still takes.
uint32_t Model::next_tokens(const Pass& pass, size_t index) const noexcept {
    const RunRequest& request = pass.requests[index];
    const uint32_t left = static_cast<uint32_t>(request.tokens.size()) - pass.progress[index].done;
    if (left == 0) return 0;  // also where its pages have gone to others since
    const uint32_t room = options_.batch_tokens - static_cast<uint32_t>(tokens_.size());
    if (const uint32_t dropped = request.sequence->length() - request.sequence->cached()) {
        return std::min(dropped, room);
    }
    const uint32_t outputs_left = max_outputs_ - static_cast<uint32_t>(output_rows_.size());
    if (!request.no_logits && outputs_left == 0) return 0;
    const uint32_t count = std::min({left, room, request.all_logits ? outputs_left : left});
    const bool outputs = request.all_logits || (!request.no_logits && count == left);
    // The outputs of a batch are logits or candidates, not both.
    const bool other_kind = !output_rows_.empty() && selections_.empty() == (request.selection != nullptr);
    return outputs && other_kind ? 0 : count;
}

KvCache::Room Model::add_run(Pass& pass, size_t index, uint32_t count) {
    const RunRequest& request = pass.requests[index];
    Sequence& sequence = *request.sequence;
    Progress& at = pass.progress[index];
    const bool preempts = runs_.empty();
    if (const auto room = cache_->prepare(sequence, count, pass.sequences, preempts); room != KvCache::Room::made) {
        return room;
    }
    at.again = sequence.cached() < sequence.length();
    at.queued = count;
    sequence.in_flight = true;
    if (sequence.length() == 0) sequence.rope_extended = request.rope_extended;
    const uint32_t first_row = static_cast<uint32_t>(tokens_.size());
    runs_.push_back({first_row, count, sequence.cached(), at.again ? sequence.rope_extended : request.rope_extended});
    for (size_t g = 0; g < sequence.groups(); ++g) tables_.push_back(sequence.table(g));
    const std::span<const int32_t> tokens =
        at.again ? sequence.tokens().subspan(sequence.cached(), count) : request.tokens.subspan(at.done, count);
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
    if (at.again || request.no_logits) return KvCache::Room::made;
    const bool ends = at.done + count == request.tokens.size();
    for (uint32_t i = 0; i < count; ++i) {
        if (!request.all_logits && !(ends && i + 1 == count)) continue;
        output_rows_.push_back(first_row + i);
        if (request.selection) selections_.push_back(*request.selection);
    }
    return KvCache::Room::made;
}

// Fills the batch with the next tokens of the requests, in order. Its outputs are logits or candidates, not both. False
// when it is empty for want of memory.
bool Model::fill_batch(Pass& pass) {
    tokens_.clear();
    runs_.clear();
    tables_.clear();
    output_rows_.clear();
    selections_.clear();
    for (Progress& at : pass.progress) at.queued = 0;
    for (size_t i = 0; i < pass.requests.size() && runs_.size() < pass.most_runs; ++i) {
        const uint32_t count = next_tokens(pass, i);
        if (count != 0 && add_run(pass, i, count) == KvCache::Room::wait) return false;
    }
    return true;
}

// The batch's tokens are in the pages: says so, and moves candidates, and gathered logits (null: they are in place) to
// where they are wanted.
void Model::commit_batch(Pass& pass, const float* gathered) {
    const size_t width = vocabulary(), stride = candidate_stride(selections_);
    size_t row = 0, run = 0;
    for (size_t i = 0; i < pass.requests.size(); ++i) {
        Progress& at = pass.progress[i];
        if (at.queued == 0) continue;
        Sequence& sequence = *pass.requests[i].sequence;
        if (at.again) {
            sequence.commit(at.queued, {});
            log_.record(MemoryAction::recompute, at.queued * kv_bytes_per_token(), "kv", "needed again");
        } else {
            sequence.commit(at.queued, pass.requests[i].tokens.subspan(at.done, at.queued));
            at.done += at.queued;
        }
        const uint32_t end_row = runs_[run].first_row + runs_[run].length;
        ++run;
        const size_t first = row;
        while (row < output_rows_.size() && output_rows_[row] < end_row) ++row;
        if (pass.requests[i].selection) {
            if (row > first) {
                std::copy_n(candidates_.begin() + static_cast<std::ptrdiff_t>(first * stride), selections_[first].k,
                            pass.requests[i].candidates);
            }
            continue;
        }
        if (gathered) std::copy_n(gathered + first * width, (row - first) * width, pass.logits + at.result_row * width);
        at.result_row += row - first;
    }
}

void Model::run_batch(Pass& pass) {
    // Straight to the caller when this batch's rows follow each other there; else through a buffer.
    const bool direct = pass.requests.size() == 1 ||
                        (pass.requests.size() == runs_.size() && output_rows_.size() == logit_rows(pass.requests));
    Batch batch{tokens_, runs_, tables_, output_rows_, nullptr, selections_, nullptr, pass.interrupted};
    if (!selections_.empty()) {
        candidates_.resize(selections_.size() * candidate_stride(selections_));
        batch.candidates = candidates_.data();
    } else if (direct) {
        batch.logits = pass.logits + pass.progress[0].result_row * vocabulary();
    } else {
        gathered_.resize(output_rows_.size() * vocabulary());
        batch.logits = gathered_.data();
    }
    plan_->run(batch);
    const std::lock_guard lock(cache_->mutex());
    commit_batch(pass, direct ? nullptr : gathered_.data());
}

// After a batch for which the device had no memory: whether it is worth another try, with fewer sequences at a time, or
// with what idle ones had.
bool Model::recover(Pass& pass) {
    if (runs_.size() > 1) {
        pass.most_runs = (runs_.size() + 1) / 2;
        return true;
    }
    if (pass.relieved) return false;
    pass.relieved = true;
    const std::lock_guard lock(cache_->mutex());
    return cache_->evict_idle(~uint64_t{0}, "the device is out of memory") != 0;
}

// Runs the next batch of the pass.
Model::Turn Model::submit_next(Pass& pass) {
    if (submitting_ == std::this_thread::get_id()) {
        throw RequestError("a signal handler cannot run the model whose forward pass it interrupts");
    }
    const std::lock_guard submission(submission_);
    const Flight flight(*this, pass);
    {
        const std::lock_guard lock(cache_->mutex());
        if (!fill_batch(pass)) return Turn::wait;
    }
    if (tokens_.empty()) return Turn::done;
    try {
        run_batch(pass);
    } catch (const OutOfMemory&) {
        if (!recover(pass)) throw;
    }
    last_run_ns_ = now_ns();
    return Turn::ran;
}

void Model::forward(std::span<const RunRequest> requests, float* logits, const std::function<bool()>& interrupted) {
    const Hold hold(*this, requests);
    Pass pass{requests, std::vector<Progress>(requests.size()), {}, logits, interrupted, requests.size()};
    for (const RunRequest& request : requests) pass.sequences.push_back(request.sequence);
    for (size_t i = 1; i < requests.size(); ++i) {
        pass.progress[i].result_row = pass.progress[i - 1].result_row + logit_rows(requests.subspan(i - 1, 1));
    }
    for (;;) {
        const Turn turn = submit_next(pass);
        if (turn == Turn::done) return;
        if (turn == Turn::wait) admission_->wait_for_room(interrupted);
    }
}

// ---- memory ---------------------------------------------------------------------------------------------------------

PoolStatistics Model::memory() const {
    PoolStatistics use = pool_.statistics();
    if (host_pool_) use += host_pool_->statistics();
    return use;
}

std::vector<const Pool*> Model::pools() const {
    std::vector<const Pool*> result{&pool_};
    if (host_pool_) result.push_back(host_pool_.get());
    return result;
}

void Model::set_memory_budget(uint64_t bytes) noexcept {
    pool_.budget()->set_limit(bytes);
    admission_->notify();
}

uint64_t Model::evict_weights() {
    if (submitting_ == std::this_thread::get_id()) {
        throw RequestError("a signal handler cannot move the weights of the forward pass that it interrupts");
    }
    const std::lock_guard submission(submission_);
    return plan_->evict_weights();
}

Model::KvUse Model::kv_use() const {
    const std::lock_guard lock(cache_->mutex());
    KvUse use;
    const std::span<const KvGroup> groups = cache_->groups();
    use.groups.reserve(groups.size());
    for (size_t g = 0; g < groups.size(); ++g) {
        const PageStore& store = cache_->store(g);
        use.groups.push_back({groups[g].group.window, groups[g].group.layers, groups[g].layout.page_bytes,
                              store.pages_in_use(), store.pages_held()});
    }
    use.saved_bytes = cache_->saved_bytes();
    use.pages_copied = cache_->pages_copied();
    use.capacity = cache_->capacity();
    return use;
}

uint64_t Model::kv_bytes_per_token() const noexcept {
    uint64_t bytes = 0;
    for (const StagedPlan::Group& group : plan_->groups()) bytes += group.layout.page_bytes / kPageTokens;
    return bytes;
}

uint64_t Model::compact() {
    const std::lock_guard submission(submission_);
    const std::lock_guard lock(cache_->mutex());
    return cache_->compact("asked for");
}

// Called by the residency manager's thread.
void Model::balance() {
    uint64_t trimmed = pool_.trim();
    if (host_pool_) trimmed += host_pool_->trim();
    if (trimmed) log_.record(MemoryAction::trim, trimmed, "pool", "empty for a while");
    const PoolStatistics use = memory();
    MemoryState state;
    state.limit = use.budget ? use.budget : device().memory_bytes;
    state.heap_bytes = use.heap_bytes;
    {
        const std::lock_guard lock(cache_->mutex());
        const std::span<const KvGroup> groups = cache_->groups();
        for (size_t g = 0; g < groups.size(); ++g) {
            state.kv_in_use += cache_->store(g).pages_in_use() * groups[g].layout.page_bytes;
            state.kv_held += cache_->store(g).pages_held() * groups[g].layout.page_bytes;
        }
    }
    const uint64_t now = now_ns();
    state.idle_ns = now - std::min(now, last_run_ns_.load());
    state.weight_bytes = plan_->copied_bytes();
    carry_out(options_.policy->decide(state));
}

void Model::carry_out(const MemoryDecision& decision) {
    if (decision.evict_bytes) {
        const std::lock_guard lock(cache_->mutex());
        cache_->evict_idle(decision.evict_bytes, "above the high watermark");
    }
    if (decision.compact) {
        const std::lock_guard submission(submission_);
        const std::lock_guard lock(cache_->mutex());
        cache_->compact("many held pages were free");
    }
    if (decision.evict_weights) {
        const std::lock_guard submission(submission_);
        log_.record(MemoryAction::evict_weights, plan_->evict_weights(), "weights", "the model was idle");
        pool_.drop_empty_heaps();
    }
    if (decision.evict_bytes || decision.compact || decision.evict_weights) admission_->notify();
}

}  // namespace metallic
