#include "backend/batch_check.h"

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
        if (table.pages[page - table.first_page] == 0) throw RequestError("batch: a page table with a missing page");
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

}  // namespace

void check_batch(const Batch& batch, const BatchLimits& limits) {
    const auto require = [](bool holds, const char* what) {
        if (!holds) throw RequestError(std::string("batch: ") + what);
    };
    require(!batch.tokens.empty(), "no tokens");
    require(batch.tokens.size() <= limits.max_tokens, "more tokens than the plan was made for");
    require(batch.output_rows.size() <= limits.max_outputs, "more outputs than the plan was made for");
    require(batch.output_rows.empty() || batch.logits, "outputs without memory for logits");
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
