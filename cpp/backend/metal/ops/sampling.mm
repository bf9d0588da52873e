#include "backend/metal/ops/sampling.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "backend/metal/ops/grid.h"
#include "params.h"

namespace metallic::metal {
namespace {

static_assert(kMostCandidates == kSelectThreads && sizeof(Candidate) == sizeof(CandidateParams));

// Rows that go through the rounds together have so many chunks, which is enough to fill the largest GPU.
constexpr uint32_t kWantedChunks = 1024;
constexpr uint64_t kPairBytes = 8;
constexpr uint32_t kMostVocabulary = 1u << 26;
constexpr uint64_t kWordBytes = sizeof(uint32_t);
constexpr uint32_t kEditThreads = 64;

constexpr uint32_t chunks_of(uint32_t count) noexcept {
    return ceil_div(count, kSelectChunk);
}

// What the first round leaves of a row in memory, and what the second one does: later rounds leave less, the last one
// nothing.
constexpr uint64_t left_bytes(uint32_t count, uint32_t most) noexcept {
    const uint32_t chunks = chunks_of(count);
    return chunks == 1 ? 0 : uint64_t{chunks} * most * kPairBytes;
}
constexpr uint64_t first_bytes(uint32_t vocabulary, uint32_t most) noexcept {
    return left_bytes(vocabulary, most);
}
constexpr uint64_t second_bytes(uint32_t vocabulary, uint32_t most) noexcept {
    return left_bytes(chunks_of(vocabulary) * most, most);
}
constexpr uint64_t row_bytes(uint32_t vocabulary, uint32_t most) noexcept {
    return first_bytes(vocabulary, most) + second_bytes(vocabulary, most);
}

LogitEditParams edit_params(uint32_t row, const LogitEdit& edit) noexcept {
    const uint64_t repetition = std::bit_cast<uint64_t>(edit.repetition), less = std::bit_cast<uint64_t>(edit.less);
    LogitEditParams params{};
    params.row = row;
    params.token = static_cast<uint32_t>(edit.token);
    params.kind = edit.kind == LogitEdit::Kind::ban    ? kLogitBan
                  : edit.kind == LogitEdit::Kind::bias ? kLogitBias
                                                       : kLogitPenalty;
    params.repeated = edit.repeated;
    params.bias = std::bit_cast<uint32_t>(edit.bias);
    params.repetition_low = static_cast<uint32_t>(repetition);
    params.repetition_high = static_cast<uint32_t>(repetition >> 32);
    params.less_low = static_cast<uint32_t>(less);
    params.less_high = static_cast<uint32_t>(less >> 32);
    return params;
}

uint64_t count_edits(std::span<const Selection> selections) noexcept {
    uint64_t count = 0;
    for (const Selection& selection : selections) count += selection.edits.size();
    return count;
}

uint64_t count_mask_words(std::span<const Selection> selections) noexcept {
    uint64_t count = 0;
    for (const Selection& selection : selections) count += selection.mask.size();
    return count;
}

}  // namespace

// Rows that go through the rounds together.
struct TopK::Slab {
    uint32_t rows = 0, most = 0;
    Binding logits, masks, params, candidates;
};

TopK::TopK(uint32_t vocabulary, uint32_t max_rows, Preparation& p) : vocabulary_(vocabulary) {
    p.check(vocabulary >= 1 && vocabulary <= kMostVocabulary, "a vocabulary of an impossible size");
    const uint32_t rows = std::clamp(ceil_div(kWantedChunks, chunks_of(vocabulary)), 1u, std::max(max_rows, 1u));
    scratch_bytes_ = rows * row_bytes(vocabulary, kMostCandidates);
    p.reserve_scratch(scratch_bytes_);
    scratch_ = &p.scratch();
    edit_ = p.pipeline("sampling", "edit_logits");
    top_ = rounds("select_top", p);
    best_ = rounds("select_best", p);
}

TopK::Rounds TopK::rounds(const char* kernel, Preparation& p) const {
    const auto pipeline = [&](bool from_logits, bool last) {
        const FunctionConstant constants[] = {FunctionConstant::of(0, from_logits), FunctionConstant::of(1, last)};
        const id<MTLComputePipelineState> state = p.pipeline("sampling", kernel, constants);
        p.check([state maxTotalThreadsPerThreadgroup] >= kSelectThreads, "a kernel that needs too many registers");
        return state;
    };
    Rounds rounds;
    const bool only = chunks_of(vocabulary_) == 1;
    rounds.first = pipeline(true, only);
    if (!only) {
        rounds.middle = pipeline(false, false);
        rounds.last = pipeline(false, true);
    }
    return rounds;
}

uint64_t TopK::batch_bytes(std::span<const Selection> selections) noexcept {
    constexpr uint64_t kPadding = 3 * 16;
    return selections.size() * sizeof(SelectRowParams) + count_edits(selections) * sizeof(LogitEditParams) +
           count_mask_words(selections) * kWordBytes + kPadding;
}

void TopK::encode_edits(Encoder& encoder, BatchMemory& memory, const Binding& logits,
                        std::span<const Selection> selections) const {
    const uint32_t count = static_cast<uint32_t>(count_edits(selections));
    if (count == 0) return;
    void* host = nullptr;
    const Binding edits = memory.take(count * sizeof(LogitEditParams), &host);
    std::byte* to = static_cast<std::byte*>(host);
    for (uint32_t row = 0; row < selections.size(); ++row) {
        for (const LogitEdit& edit : selections[row].edits) {
            const LogitEditParams params = edit_params(row, edit);
            std::memcpy(to, &params, sizeof params);
            to += sizeof params;
        }
    }
    encoder.pipeline(edit_);
    encoder.read_write(0, logits);
    encoder.constant(1, edits);
    encoder.params(2, EditParams{count, vocabulary_});
    const uint32_t threads = whole_simdgroups(edit_, kEditThreads);
    encoder.dispatch(MTLSizeMake(ceil_div(count, threads), 1, 1), MTLSizeMake(threads, 1, 1));
}

void TopK::encode(Encoder& encoder, BatchMemory& memory, const Binding& logits, std::span<const Selection> selections,
                  const Binding& candidates) const {
    if (selections.empty()) return;
    encode_edits(encoder, memory, logits, selections);
    void *host_params = nullptr, *host_masks = nullptr;
    const Binding params = memory.take(selections.size() * sizeof(SelectRowParams), &host_params);
    const uint64_t mask_bytes = count_mask_words(selections) * kWordBytes;
    const Binding masks = mask_bytes ? memory.take(mask_bytes, &host_masks) : params;  // a stand-in
    uint32_t mask_word = 0;
    for (size_t row = 0; row < selections.size(); ++row) {
        const Selection& selection = selections[row];
        const SelectRowParams of_row{selection.k, !selection.mask.empty(), mask_word, 0};
        std::memcpy(static_cast<std::byte*>(host_params) + row * sizeof of_row, &of_row, sizeof of_row);
        if (selection.mask.empty()) continue;
        std::memcpy(static_cast<std::byte*>(host_masks) + mask_word * kWordBytes, selection.mask.data(),
                    selection.mask.size_bytes());
        mask_word += static_cast<uint32_t>(selection.mask.size());
    }
    const uint32_t most = candidate_stride(selections), rows = static_cast<uint32_t>(selections.size());
    // The fewer candidates, the more rows at a time.
    const uint64_t each = row_bytes(vocabulary_, most);
    const uint32_t together = each ? static_cast<uint32_t>(std::min<uint64_t>(scratch_bytes_ / each, rows)) : rows;
    for (uint32_t first = 0; first < rows; first += together) {
        Slab slab;
        slab.rows = std::min(together, rows - first);
        slab.most = most;
        slab.logits = logits.at(uint64_t{first} * vocabulary_ * sizeof(float));
        slab.masks = masks;
        slab.params = params.at(first * sizeof(SelectRowParams));
        slab.candidates = candidates.at(uint64_t{first} * most * sizeof(Candidate));
        encode_slab(encoder, slab);
    }
}

void TopK::encode_slab(Encoder& encoder, const Slab& slab) const {
    const Rounds& kernels = slab.most == 1 ? best_ : top_;
    const Binding places[2] = {scratch_->at(0, slab.rows * first_bytes(vocabulary_, slab.most)),
                               scratch_->at(slab.rows * first_bytes(vocabulary_, slab.most),
                                            slab.rows * second_bytes(vocabulary_, slab.most))};
    uint32_t count = vocabulary_;
    for (uint32_t round = 0;; ++round) {
        const uint32_t chunks = chunks_of(count);
        const bool last = chunks == 1;
        const Binding& to = last ? slab.candidates : places[round % 2];
        encoder.pipeline(round == 0 ? kernels.first : last ? kernels.last : kernels.middle);
        encoder.read(0, slab.logits);
        encoder.constant(1, slab.masks);
        encoder.read(2, round == 0 ? slab.logits : places[(round - 1) % 2]);
        encoder.write(3, to);  // the one of the two that a round writes stands in for the other
        encoder.write(4, to);
        encoder.constant(5, slab.params);
        encoder.params(6, SelectTopParams{vocabulary_, count, slab.most});
        encoder.dispatch(MTLSizeMake(chunks, slab.rows, 1), MTLSizeMake(kSelectThreads, 1, 1));
        if (last) return;
        count = chunks * slab.most;
    }
}

}  // namespace metallic::metal
