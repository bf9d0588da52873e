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

bool is_kv_dtype(DType dtype) {
    return dtype == DType::F32 || dtype == DType::F16 || dtype == DType::BF16 || dtype == DType::Q8_0;
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
      backend_(std::move(backend)),
      options_(options),
      program_(plan_program(program)),
      pool_(backend_, options.memory_budget) {
    if (options_.batch_tokens == 0 || options_.batch_tokens > 65536) {
        throw RequestError("batch_tokens must lie between 1 and 65536");
    }
    if (options_.context_length == 0) throw RequestError("the context length must be at least 1");
    if (!is_kv_dtype(options_.kv_dtype)) {
        throw RequestError("keys and values cannot be kept in " + std::string(dtype_info(options_.kv_dtype).name) +
                           "; F32, F16, BF16 and Q8_0 are supported");
    }
    weights_ = std::make_unique<Weights>(file_, backend_, pool_, program_, options_.weights);
    for (size_t g = 0; g < program_.groups.size(); ++g) {
        layouts_.push_back(KvLayout::of(program_.groups[g], options_.kv_dtype));
        stores_.push_back(std::make_unique<PageStore>(pool_, layouts_.back(), "kv/group." + std::to_string(g)));
    }
    compile();
}

Model::~Model() = default;

void Model::compile() {
    max_outputs_ = max_outputs(program_, options_.batch_tokens);
    CompileInputs inputs;
    inputs.program = &program_;
    inputs.weights = weights_->views();
    inputs.kv = layouts_;
    inputs.arena_layout = layout_arena(program_, options_.batch_tokens, max_outputs_);
    arena_ = pool_.allocate_bytes(inputs.arena_layout.bytes, Tag::activations, "activations");
    inputs.arena = arena_.view();
    inputs.max_tokens = options_.batch_tokens;
    inputs.max_outputs = max_outputs_;
    inputs.precision = options_.precision;
    inputs.events = &events_;
    plan_ = backend_->compile(inputs);
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
        windows.push_back(program_.groups[g].window);
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
        if (!request.all_logits && !(ends && i + 1 == count)) continue;
        output_rows_.push_back(first_row + i);
        if (request.selection) selections_.push_back(*request.selection);
    }
}

// Fills the batch with the next tokens of the requests, in order. Its outputs are logits or candidates, not both.
void Model::fill_batch(std::span<const RunRequest> requests, std::span<Progress> progress) {
    tokens_.clear();
    runs_.clear();
    tables_.clear();
    output_rows_.clear();
    selections_.clear();
    for (size_t i = 0; i < requests.size(); ++i) {
        progress[i].queued = 0;
        const uint32_t left = static_cast<uint32_t>(requests[i].tokens.size()) - progress[i].done;
        const uint32_t outputs_left = max_outputs_ - static_cast<uint32_t>(output_rows_.size());
        uint32_t count = std::min(left, options_.batch_tokens - static_cast<uint32_t>(tokens_.size()));
        if (!requests[i].no_logits && outputs_left == 0) count = 0;
        if (requests[i].all_logits) count = std::min(count, outputs_left);
        const bool outputs = requests[i].all_logits || (!requests[i].no_logits && count == left);
        const bool other_kind = !output_rows_.empty() && selections_.empty() == (requests[i].selection != nullptr);
        if (count == 0 || (outputs && other_kind)) continue;
        add_run(requests[i], progress[i].done, count);
        progress[i].queued = count;
    }
}

// The batch's tokens are in the pages: says so, and moves candidates, and gathered logits (null: they are in place) to
// where they are wanted.
void Model::commit_batch(std::span<const RunRequest> requests, std::span<Progress> progress, const float* gathered,
                         float* logits) {
    const size_t width = vocabulary(), stride = candidate_stride(selections_);
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
        if (requests[i].selection) {
            if (row > first)
                std::copy_n(candidates_.begin() + first * stride, selections_[first].k, requests[i].candidates);
            continue;
        }
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
    Batch batch{tokens_, runs_, tables_, output_rows_, nullptr, selections_, nullptr, interrupted};
    if (!selections_.empty()) {
        candidates_.resize(selections_.size() * candidate_stride(selections_));
        batch.candidates = candidates_.data();
    } else if (direct) {
        batch.logits = logits + progress[0].result_row * vocabulary();
    } else {
        gathered_.resize(output_rows_.size() * vocabulary());
        batch.logits = gathered_.data();
    }
    submitting_ = std::this_thread::get_id();
    try {
        weights_->upload(interrupted);
        backend_->wait(backend_->submit(*plan_, batch));
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

std::vector<Model::GroupUse> Model::kv_use() const {
    const std::lock_guard lock(pages_);
    std::vector<GroupUse> result;
    result.reserve(stores_.size());
    for (size_t g = 0; g < stores_.size(); ++g) {
        result.push_back({program_.groups[g].window, program_.groups[g].layers, layouts_[g].page_bytes,
                          stores_[g]->pages_in_use(), stores_[g]->pages_held()});
    }
    return result;
}

uint64_t Model::kv_bytes_per_token() const noexcept {
    uint64_t bytes = 0;
    for (const KvLayout& layout : layouts_) bytes += layout.page_bytes / kPageTokens;
    return bytes;
}

}  // namespace metallic
