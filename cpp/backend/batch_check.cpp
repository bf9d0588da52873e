#include "backend/batch_check.h"

#include <cmath>
#include <string>

#include "core/error.h"

namespace metallic {
namespace {

void check_table(const Run& run, const PageTableView& table, uint32_t window) {
    const uint64_t oldest = window && run.position >= window ? run.position - window + 1 : 0;
    const uint64_t end = uint64_t{run.position} + run.length;
    if (uint64_t{table.first_page} * kPageTokens > oldest ||
        (uint64_t{table.first_page} + table.count) * kPageTokens < end || !table.pages) {
        throw RequestError("batch: a page table that does not cover positions " + std::to_string(oldest) + " to " +
                           std::to_string(end));
    }
    for (uint64_t page = oldest / kPageTokens; page <= (end - 1) / kPageTokens; ++page) {
        const uint64_t address = table.pages[page - table.first_page];
        if (address == 0) throw RequestError("batch: a page table with a missing page");
        if (address % kPageAlignment != 0) {
            throw RequestError("batch: a page at an address that is no multiple of " + std::to_string(kPageAlignment));
        }
    }
}

void check_runs(const Batch& batch, std::span<const CacheGroup> groups) {
    uint64_t row = 0;
    for (size_t r = 0; r < batch.runs.size(); ++r) {
        const Run& run = batch.runs[r];
        if (run.first_row != row || run.length == 0 || run.length > batch.tokens.size() - row) {
            throw RequestError("batch: runs that do not cover the tokens in turn");
        }
        row += run.length;
        if (uint64_t{run.position} + run.length > uint64_t{1} << 31)
            throw RequestError("batch: a position beyond 2^31");
        for (size_t g = 0; g < groups.size(); ++g) {
            check_table(run, batch.tables[r * groups.size() + g], groups[g].window);
        }
    }
    if (row != batch.tokens.size()) throw RequestError("batch: tokens of no run");
}

void check_edits(std::span<const LogitEdit> edits, uint32_t vocabulary) {
    int32_t previous = 0;
    for (const LogitEdit& edit : edits) {
        const auto of = [&] { return " of the logit edit of token " + std::to_string(edit.token); };
        if (edit.token < 0 || static_cast<uint32_t>(edit.token) >= vocabulary) {
            throw RequestError("a logit edit of token " + std::to_string(edit.token) + ": ids run from 0 to " +
                               std::to_string(vocabulary - 1));
        }
        if (edit.token < previous) throw RequestError("logit edits must be in ascending order of tokens");
        if (!std::isfinite(edit.bias)) throw RequestError("the bias" + of() + " is not finite");
        if (!std::isfinite(edit.repetition) || edit.repetition <= 0) {
            throw RequestError("the repetition penalty" + of() + " is not positive and finite");
        }
        if (!std::isfinite(edit.less)) throw RequestError("the penalty" + of() + " is not finite");
        previous = edit.token;
    }
}

}  // namespace

void check_selections(std::span<const Selection> selections, uint32_t vocabulary) {
    const uint64_t words = (uint64_t{vocabulary} + 31) / 32;
    uint64_t edits = 0, mask_words = 0;
    for (const Selection& selection : selections) {
        if (selection.k < 1 || selection.k > kMostCandidates) {
            throw RequestError(std::to_string(selection.k) + " candidates of a row; 1 to " +
                               std::to_string(kMostCandidates) + " can be chosen");
        }
        if (!selection.mask.empty() && selection.mask.size() < words) {
            throw RequestError("the token mask has " + std::to_string(selection.mask.size()) +
                               " words of 32 bits, but " + std::to_string(vocabulary) + " tokens need " +
                               std::to_string(words));
        }
        check_edits(selection.edits, vocabulary);
        edits += selection.edits.size();
        mask_words += selection.mask.size();
    }
    if (edits > UINT32_MAX || mask_words > UINT32_MAX) {
        throw RequestError("too many logit edits or token masks for one batch");
    }
}

void check_batch(const Batch& batch, const BatchLimits& limits) {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw RequestError(std::string("batch: ") + what);
    };
    require(!batch.tokens.empty(), "no tokens");
    require(batch.tokens.size() <= limits.max_tokens, "more tokens than the plan was made for");
    require(batch.output_rows.size() <= limits.max_outputs, "more outputs than the plan was made for");
    if (batch.selections.empty()) {
        require(batch.output_rows.empty() || limits.logits == 0 || batch.logits, "outputs without memory for logits");
    } else {
        require(limits.logits != 0, "selections where there are no logits");
        require(batch.selections.size() == batch.output_rows.size(),
                "a number of selections that is not that of outputs");
        require(batch.candidates, "selections without memory for candidates");
        check_selections(batch.selections, limits.logits);
    }
    uint64_t next = 0;
    for (const uint32_t row : batch.output_rows) {
        require(row >= next && row < batch.tokens.size(), "output rows that do not ascend within the batch");
        next = uint64_t{row} + 1;
    }
    for (const int32_t token : batch.tokens) {
        if (limits.vocabulary && (token < 0 || static_cast<uint32_t>(token) >= limits.vocabulary)) {
            throw RequestError("token id " + std::to_string(token) + " is outside the vocabulary of " +
                               std::to_string(limits.vocabulary));
        }
    }
    require(batch.tables.size() == batch.runs.size() * limits.groups.size(), "a wrong number of page tables");
    check_runs(batch, limits.groups);
}

}  // namespace metallic
