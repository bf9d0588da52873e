#include "runtime/forward_runner.h"

#include <algorithm>

#include "backend/batch_check.h"
#include "core/error.h"
#include "trace/events.h"

namespace metallic {

// Marks the sequences of one forward pass as busy.
class ForwardRunner::Hold {
  public:
    Hold(ForwardRunner& runner, std::span<const RunRequest> runs) : runner_(runner), runs_(runs) {
        const std::lock_guard lock(runner.cache_.mutex());
        runner.check(runs);
        for (const RunRequest& run : runs) run.sequence->check_idle();
        for (const RunRequest& run : runs) run.sequence->busy = true;
    }
    ~Hold() {
        {
            const std::lock_guard lock(runner_.cache_.mutex());
            for (const RunRequest& run : runs_) {
                run.sequence->busy = false;
                run.sequence->last_used_ns = now_ns();
            }
        }
        runner_.admission_.notify();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

  private:
    ForwardRunner& runner_;
    std::span<const RunRequest> runs_;
};

// Until it ends, the backend may read the pages of the batch, and this thread submits.
class ForwardRunner::Flight {
  public:
    Flight(ForwardRunner& runner, const Pass& pass) : runner_(runner), pass_(pass) {
        runner_.submitting_ = std::this_thread::get_id();
    }
    ~Flight() {
        const std::lock_guard lock(runner_.cache_.mutex());
        for (Sequence* sequence : pass_.sequences) sequence->in_flight = false;
        runner_.submitting_ = std::thread::id();
    }
    Flight(const Flight&) = delete;
    Flight& operator=(const Flight&) = delete;

  private:
    ForwardRunner& runner_;
    const Pass& pass_;
};

uint64_t logit_rows(std::span<const RunRequest> runs) noexcept {
    uint64_t rows = 0;
    for (const RunRequest& run : runs) {
        rows += run.no_logits || run.selection ? 0 : run.all_logits ? run.tokens.size() : 1;
    }
    return rows;
}

void ForwardRunner::check(std::span<const RunRequest> runs) const {
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
            check_selections({run.selection, 1}, limits_.vocabulary);
        }
        if (run.tokens.size() > limits_.context_length ||
            run.sequence->length() > limits_.context_length - run.tokens.size()) {
            throw RequestError(std::to_string(run.sequence->length()) + " + " + std::to_string(run.tokens.size()) +
                               " tokens do not fit the context length of " + std::to_string(limits_.context_length));
        }
        const auto bad = std::find_if(run.tokens.begin(), run.tokens.end(), [&](int32_t token) {
            return token < 0 || static_cast<uint32_t>(token) >= limits_.vocabulary;
        });
        if (bad != run.tokens.end()) {
            throw RequestError("token id " + std::to_string(*bad) + " is outside the vocabulary of " +
                               std::to_string(limits_.vocabulary));
        }
    }
}

// How many tokens of a request the batch still takes.
uint32_t ForwardRunner::next_tokens(const Pass& pass, size_t index) const noexcept {
    const RunRequest& request = pass.requests[index];
    const uint32_t left = static_cast<uint32_t>(request.tokens.size()) - pass.progress[index].done;
    if (left == 0) return 0;  // also where its pages have gone to others since
    const uint32_t room = limits_.batch_tokens - static_cast<uint32_t>(tokens_.size());
    if (const uint32_t dropped = request.sequence->length() - request.sequence->cached()) {
        return std::min(dropped, room);
    }
    const uint32_t outputs_left = limits_.outputs - static_cast<uint32_t>(output_rows_.size());
    if (!request.no_logits && outputs_left == 0) return 0;
    const uint32_t count = std::min({left, room, request.all_logits ? outputs_left : left});
    const bool outputs = request.all_logits || (!request.no_logits && count == left);
    // The outputs of a batch are logits or candidates, not both.
    const bool other_kind = !output_rows_.empty() && selections_.empty() == (request.selection != nullptr);
    return outputs && other_kind ? 0 : count;
}

KvCache::Room ForwardRunner::add_run(Pass& pass, size_t index, uint32_t count) {
    const RunRequest& request = pass.requests[index];
    Sequence& sequence = *request.sequence;
    Progress& at = pass.progress[index];
    const bool preempts = runs_.empty();
    if (const auto room = cache_.prepare(sequence, count, pass.sequences, preempts); room != KvCache::Room::made) {
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
bool ForwardRunner::fill_batch(Pass& pass) {
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
void ForwardRunner::commit_batch(Pass& pass, const float* gathered) {
    const size_t width = limits_.vocabulary, stride = candidate_stride(selections_);
    size_t row = 0, run = 0;
    for (size_t i = 0; i < pass.requests.size(); ++i) {
        Progress& at = pass.progress[i];
        if (at.queued == 0) continue;
        Sequence& sequence = *pass.requests[i].sequence;
        if (at.again) {
            sequence.commit(at.queued, {});
            log_.record(MemoryAction::recompute, at.queued * cache_.bytes_per_token(), "kv", "needed again");
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

void ForwardRunner::run_batch(Pass& pass) {
    // Straight to the caller when this batch's rows follow each other there; else through a buffer.
    const bool direct = pass.requests.size() == 1 ||
                        (pass.requests.size() == runs_.size() && output_rows_.size() == logit_rows(pass.requests));
    Batch batch{tokens_, runs_, tables_, output_rows_, nullptr, selections_, nullptr, pass.interrupted};
    if (!selections_.empty()) {
        candidates_.resize(selections_.size() * candidate_stride(selections_));
        batch.candidates = candidates_.data();
    } else if (direct) {
        batch.logits = pass.logits + pass.progress[0].result_row * limits_.vocabulary;
    } else {
        gathered_.resize(output_rows_.size() * limits_.vocabulary);
        batch.logits = gathered_.data();
    }
    plan_.run(batch);
    const std::lock_guard lock(cache_.mutex());
    commit_batch(pass, direct ? nullptr : gathered_.data());
}

// After a batch for which the device had no memory: whether it is worth another try, with fewer sequences at a time, or
// with what idle and younger ones had.
bool ForwardRunner::recover(Pass& pass) {
    if (runs_.size() > 1) {
        pass.most_runs = (runs_.size() + 1) / 2;
        return true;
    }
    if (pass.relieved) return false;
    pass.relieved = true;
    const auto queued =
        std::find_if(pass.progress.begin(), pass.progress.end(), [](const Progress& at) { return at.queued; });
    const Sequence& needy = *pass.requests[static_cast<size_t>(queued - pass.progress.begin())].sequence;
    const std::lock_guard lock(cache_.mutex());
    return cache_.evict_for(needy, pass.sequences, "the device is out of memory") != 0;
}

std::unique_lock<FairMutex> ForwardRunner::pause() {
    if (submitting_ == std::this_thread::get_id()) {
        throw RequestError("a signal handler cannot use the model whose forward pass it interrupts");
    }
    return std::unique_lock(submission_);
}

// What had stayed may be in the way of the rest: together they fit into the heaps that a load makes.
uint64_t ForwardRunner::give_up_weights(std::string_view reason) {
    const uint64_t bytes = plan_.evict_weights();
    if (bytes) log_.record(MemoryAction::evict_weights, bytes, "weights", reason);
    return bytes;
}

// Before the batch takes pages, so that these come out of what weights leave. Nobody goes on without them: where idle
// sequences have too little to give, pages move together, which they can since nothing is in flight, and then all make
// room, this pass too.
void ForwardRunner::restore_weights() {
    constexpr std::string_view kReason = "room for weights";
    while (!plan_.ready()) {
        try {
            log_.record(MemoryAction::restore_weights, plan_.restore(), "weights", "needed again");
        } catch (const OutOfMemory& error) {
            const std::lock_guard lock(cache_.mutex());
            if (cache_.evict_idle(error.needed, kReason) == 0 && cache_.compact(kReason) == 0 &&
                cache_.evict_all(kReason) == 0 && give_up_weights(kReason) == 0) {
                throw;
            }
            continue;
        }
        const std::lock_guard lock(cache_.mutex());
        cache_.expect_others(0);
    }
}

// Runs the next batch of the pass.
ForwardRunner::Turn ForwardRunner::submit_next(Pass& pass) {
    const std::unique_lock submission = pause();
    const Flight flight(*this, pass);
    restore_weights();
    {
        const std::lock_guard lock(cache_.mutex());
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

void ForwardRunner::forward(std::span<const RunRequest> requests, float* logits,
                            const std::function<bool()>& interrupted) {
    const Admission::Caller caller(admission_);
    const Hold hold(*this, requests);
    Pass pass{requests, std::vector<Progress>(requests.size()), {}, logits, interrupted, requests.size()};
    for (const RunRequest& request : requests) pass.sequences.push_back(request.sequence);
    for (size_t i = 1; i < requests.size(); ++i) {
        pass.progress[i].result_row = pass.progress[i - 1].result_row + logit_rows(requests.subspan(i - 1, 1));
    }
    for (;;) {
        const Turn turn = submit_next(pass);
        if (turn == Turn::done) return;
        if (turn == Turn::wait) admission_.wait_for_room(interrupted);
    }
}

}  // namespace metallic
