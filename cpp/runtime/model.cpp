#include "runtime/model.h"

#include <algorithm>

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

bool is_kv_dtype(DType dtype) {
    return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16 || dtype == DType::Q8_0;
}

const ModelOptions& checked(const ModelOptions& options) {
    if (options.batch_tokens == 0 || options.batch_tokens > 65536) {
        throw RequestError("batch_tokens must lie between 1 and 65536");
    }
    if (options.context_length == 0) throw RequestError("the context length must be at least 1");
    if (!is_kv_dtype(options.kv_dtype)) {
        throw RequestError("keys and values cannot be kept in " + std::string(dtype_info(options.kv_dtype).name) +
                           "; F32, F16, BF16 and Q8_0 are supported");
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
        const std::lock_guard lock(model.pages_);
        model.check(runs);
        for (const RunRequest& run : runs) check_idle(*run.sequence);
        for (const RunRequest& run : runs) run.sequence->busy = true;
    }
    ~Hold() {
        const std::lock_guard lock(model_.pages_);
        for (const RunRequest& run : runs_) run.sequence->busy = false;
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

  private:
    Model& model_;
    std::span<const RunRequest> runs_;
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
        host_pool_ = std::make_unique<Pool>(placed_.host, options.memory_budget);
        devices[kHost] = {placed_.host, host_pool_.get()};
    }
    plan_ = std::make_unique<StagedPlan>(
        program_, placed_.placement, file_, devices,
        StagedPlan::Options{options_.batch_tokens, max_outputs_, options_.kv_dtype, options_.precision, &events_});
    for (const StagedPlan::Group& group : plan_->groups()) {
        const std::string owner = "kv/group." + std::to_string(stores_.size());
        stores_.push_back(std::make_unique<PageStore>(*devices[group.device].pool, group.layout, owner));
    }
}

Model::~Model() = default;

Placement Model::place(Program& traced, const DeviceInfo& device, const ModelOptions& options) {
    std::vector<KvLayout> kv;
    for (const CacheGroup& group : traced.groups) kv.push_back(KvLayout::of(group, options.kv_dtype));
    PlacementLimits limits;
    limits.device_is_host = device.is_host || !options.host;
    limits.unified_memory = device.unified_memory;
    limits.device_memory = device.memory_bytes;
    limits.memory_budget = options.memory_budget;
    limits.context = options.placement_context ? options.placement_context : options.context_length;
    limits.batch_tokens = options.batch_tokens;
    limits.activations = activation_bytes(plan_program(traced), options.batch_tokens);
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

std::shared_ptr<Sequence> Model::own(std::unique_ptr<Sequence> sequence) {
    return {sequence.release(), [model = shared_from_this()](Sequence* last) {
                const std::lock_guard lock(model->pages_);
                delete last;
            }};
}

std::shared_ptr<Sequence> Model::create_sequence() {
    std::vector<PageStore*> stores;
    std::vector<uint32_t> windows;
    for (size_t g = 0; g < stores_.size(); ++g) {
        stores.push_back(stores_[g].get());
        windows.push_back(plan_->groups()[g].group.window);
    }
    return own(std::make_unique<Sequence>(*backend_, std::move(stores), std::move(windows)));
}

std::shared_ptr<Sequence> Model::fork(const Sequence& sequence) {
    std::unique_ptr<Sequence> copy;
    {
        const std::lock_guard lock(pages_);
        check_idle(sequence);
        copy = sequence.fork();
    }
    return own(std::move(copy));
}

bool Model::truncate(Sequence& sequence, uint32_t length) {
    const std::lock_guard lock(pages_);
    check_idle(sequence);
    return sequence.truncate(length);
}

uint64_t Model::logit_rows(std::span<const RunRequest> runs) noexcept {
    uint64_t rows = 0;
    for (const RunRequest& run : runs) rows += run.no_logits ? 0 : run.all_logits ? run.tokens.size() : 1;
    return rows;
}

void Model::check(std::span<const RunRequest> runs) const {
    for (size_t i = 0; i < runs.size(); ++i) {
        const RunRequest& run = runs[i];
        if (!run.sequence || run.tokens.empty()) throw RequestError("a run needs a sequence and at least one token");
        for (size_t j = 0; j < i; ++j) {
            if (runs[j].sequence == run.sequence) throw RequestError("a sequence may appear once in a batch");
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

void Model::add_run(const RunRequest& request, uint32_t done, uint32_t count) {
    const uint32_t first_row = static_cast<uint32_t>(tokens_.size());
    const uint32_t position = request.sequence->length();
    request.sequence->reserve(position + count);
    runs_.push_back({first_row, count, position, request.rope_extended});
    for (size_t g = 0; g < stores_.size(); ++g) tables_.push_back(request.sequence->table(g));
    tokens_.insert(tokens_.end(), request.tokens.begin() + done, request.tokens.begin() + done + count);
    if (request.no_logits) return;
    const bool ends = done + count == request.tokens.size();
    for (uint32_t i = 0; i < count; ++i) {
        if (request.all_logits || (ends && i + 1 == count)) output_rows_.push_back(first_row + i);
    }
}

// Fills the batch with the next tokens of the requests, in order.
void Model::fill_batch(std::span<const RunRequest> requests, std::span<Progress> progress) {
    tokens_.clear();
    runs_.clear();
    tables_.clear();
    output_rows_.clear();
    for (size_t i = 0; i < requests.size(); ++i) {
        progress[i].queued = 0;
        const uint32_t left = static_cast<uint32_t>(requests[i].tokens.size()) - progress[i].done;
        const uint32_t outputs_left = max_outputs_ - static_cast<uint32_t>(output_rows_.size());
        uint32_t count = std::min(left, options_.batch_tokens - static_cast<uint32_t>(tokens_.size()));
        if (!requests[i].no_logits && outputs_left == 0) count = 0;
        if (requests[i].all_logits) count = std::min(count, outputs_left);
        if (count == 0) continue;
        add_run(requests[i], progress[i].done, count);
        progress[i].queued = count;
    }
}

// The batch's tokens are in the pages: says so, and moves gathered logits (null: they are in place) to their rows.
void Model::commit_batch(std::span<const RunRequest> requests, std::span<Progress> progress, const float* gathered,
                         float* logits) {
    const size_t width = vocabulary();
    size_t row = 0, run = 0;
    for (size_t i = 0; i < requests.size(); ++i) {
        Progress& at = progress[i];
        if (at.queued == 0) continue;
        requests[i].sequence->commit(requests[i].sequence->length() + at.queued);
        at.done += at.queued;
        const uint32_t end_row = runs_[run].first_row + runs_[run].length;
        ++run;
        const size_t first = row;
        while (row < output_rows_.size() && output_rows_[row] < end_row) ++row;
        if (gathered) std::copy_n(gathered + first * width, (row - first) * width, logits + at.result_row * width);
        at.result_row += row - first;
    }
}

// Runs the next batch of the requests; false when they are done.
bool Model::submit_next(std::span<const RunRequest> requests, std::span<Progress> progress, float* logits,
                        const std::function<bool()>& interrupted) {
    if (submitting_ == std::this_thread::get_id()) {
        throw RequestError("a signal handler cannot run the model whose forward pass it interrupts");
    }
    const std::lock_guard submission(submission_);
    {
        const std::lock_guard lock(pages_);
        fill_batch(requests, progress);
    }
    if (tokens_.empty()) return false;
    // Straight to the caller when this batch's rows follow each other there; else through a buffer.
    const bool direct =
        requests.size() == 1 || (requests.size() == runs_.size() && output_rows_.size() == logit_rows(requests));
    Batch batch{tokens_, runs_, tables_, output_rows_, nullptr, interrupted};
    if (direct) {
        batch.logits = logits + progress[0].result_row * vocabulary();
    } else {
        gathered_.resize(output_rows_.size() * vocabulary());
        batch.logits = gathered_.data();
    }
    submitting_ = std::this_thread::get_id();
    try {
        plan_->run(batch);
    } catch (...) {
        submitting_ = std::thread::id();
        throw;
    }
    submitting_ = std::thread::id();
    const std::lock_guard lock(pages_);
    commit_batch(requests, progress, direct ? nullptr : gathered_.data(), logits);
    return true;
}

void Model::forward(std::span<const RunRequest> requests, float* logits, const std::function<bool()>& interrupted) {
    const Hold hold(*this, requests);
    std::vector<Progress> progress(requests.size());
    for (size_t i = 1; i < requests.size(); ++i) {
        progress[i].result_row = progress[i - 1].result_row + logit_rows(requests.subspan(i - 1, 1));
    }
    while (submit_next(requests, progress, logits, interrupted)) {
    }
}

PoolStatistics Model::memory() const {
    PoolStatistics use = pool_.statistics();
    if (host_pool_) use += host_pool_->statistics();
    return use;
}

uint64_t Model::evict_weights() {
    if (submitting_ == std::this_thread::get_id()) {
        throw RequestError("a signal handler cannot move the weights of the forward pass that it interrupts");
    }
    const std::lock_guard submission(submission_);
    return plan_->evict_weights();
}

std::vector<Model::GroupUse> Model::kv_use() const {
    const std::lock_guard lock(pages_);
    std::vector<GroupUse> result;
    result.reserve(stores_.size());
    for (size_t g = 0; g < stores_.size(); ++g) {
        const StagedPlan::Group& group = plan_->groups()[g];
        result.push_back({group.group.window, group.group.layers, group.layout.page_bytes, stores_[g]->pages_in_use(),
                          stores_[g]->pages_held()});
    }
    return result;
}

uint64_t Model::kv_bytes_per_token() const noexcept {
    uint64_t bytes = 0;
    for (const StagedPlan::Group& group : plan_->groups()) bytes += group.layout.page_bytes / kPageTokens;
    return bytes;
}

}  // namespace metallic
