#include "backend/metal/ops/attention_schedule.h"

#include <algorithm>

#include "backend/kv_layout.h"

namespace metallic::metal {
namespace {

// Enough threadgroups to keep the largest GPU busy, and few enough that a segment's cost is in its pages.
constexpr uint32_t kWantedGroups = 256;

// The pages of one tile, in segments of even length.
struct Segments {
    Segments(uint32_t begin, uint32_t end, uint32_t most_pages) noexcept
        : first(begin / kPageTokens), pages((end - 1) / kPageTokens + 1 - first) {
        const uint32_t segments = (pages + most_pages - 1) / most_pages;
        length = (pages + segments - 1) / segments;
        count = (pages + length - 1) / length;
    }
    uint32_t first, pages, length, count;
};

struct Tile {
    uint32_t run, row, rows;  // row: of the batch
    uint32_t position;
    uint32_t begin, end;
};

}  // namespace

// Of each run's tiles the last come first: they see the most history, so the long ones start early.
template <typename Visit>
void AttentionSchedule::for_each_tile(bool is_few, const Visit& visit) const noexcept {
    const uint32_t most = (is_few ? shape_.few : shape_.many).rows;
    for (uint32_t r = 0; r < batch_.runs.size(); ++r) {
        const Run& run = batch_.runs[r];
        if ((run.length <= shape_.few_tokens) != is_few) continue;
        for (uint32_t tiles = (run.length + most - 1) / most; tiles-- > 0;) {
            const uint32_t first = tiles * most, rows = std::min(most, run.length - first);
            const uint32_t position = run.position + first;
            const uint32_t begin = shape_.window && position >= shape_.window ? position - shape_.window + 1 : 0;
            visit(Tile{r, run.first_row + first, rows, position, begin, position + rows});
        }
    }
}

uint64_t AttentionSchedule::wanted_pages(bool is_few) const noexcept {
    const TileShape& shape = is_few ? shape_.few : shape_.many;
    uint64_t pages = 0;
    for_each_tile(is_few, [&](const Tile& tile) { pages += Segments(tile.begin, tile.end, UINT32_MAX / 2).pages; });
    return std::max<uint64_t>(shape.shortest_pages, (pages * shape.groups + kWantedGroups - 1) / kWantedGroups);
}

void AttentionSchedule::count(bool is_few, TileList& list) noexcept {
    list.tiles = list.partials = list.merges = list.most_rows = 0;
    list.first_row = UINT32_MAX;
    uint64_t partials = 0;
    for_each_tile(is_few, [&](const Tile& tile) {
        const Segments segments(tile.begin, tile.end, list.segment_pages);
        list.tiles += segments.count;
        list.first_row = std::min(list.first_row, tile.row);
        list.end_row = std::max(list.end_row, tile.row + tile.rows);
        list.most_rows = std::max(list.most_rows, tile.rows);
        if (segments.count == 1) return;
        ++list.merges;
        most_merge_rows = std::max(most_merge_rows, tile.rows);
        partials += uint64_t{segments.count} * tile.rows * shape_.heads;
    });
    list.partials = static_cast<uint32_t>(std::min<uint64_t>(partials, UINT32_MAX / 2));
}

AttentionSchedule::AttentionSchedule(const Batch& batch, const AttentionShape& shape) noexcept
    : batch_(batch), shape_(shape) {
    uint64_t few_pages = wanted_pages(true), many_pages = wanted_pages(false);
    for (;; few_pages *= 2, many_pages *= 2) {
        // No history is longer than UINT32_MAX / 2 pages, so this ends.
        few.segment_pages = static_cast<uint32_t>(std::min<uint64_t>(few_pages, UINT32_MAX / 2));
        many.segment_pages = static_cast<uint32_t>(std::min<uint64_t>(many_pages, UINT32_MAX / 2));
        most_merge_rows = 0;
        count(true, few);
        count(false, many);
        if (uint64_t{few.partials} + many.partials <= shape_.most_partials) break;
    }
    many.first_partial = few.partials;
}

void AttentionSchedule::write(bool is_few, const TileList& list, AttentionTile* tiles,
                              AttentionMerge*& merges) const noexcept {
    uint32_t partial = 0;  // from the list's first on
    for_each_tile(is_few, [&](const Tile& tile) {
        const Segments segments(tile.begin, tile.end, list.segment_pages);
        const bool cut = segments.count > 1;
        if (cut) *merges++ = {tile.row, tile.rows, list.first_partial + partial, segments.count};
        for (uint32_t s = 0; s < segments.count; ++s) {
            const uint32_t first = segments.first + s * segments.length;
            AttentionTile out{};
            out.row = tile.row - list.first_row;
            out.rows = tile.rows;
            out.position = tile.position;
            out.run = tile.run;
            out.begin = std::max(tile.begin, first * kPageTokens);
            out.end = std::min<uint64_t>(tile.end, (uint64_t{first} + segments.length) * kPageTokens);
            out.partial = cut ? partial : static_cast<uint32_t>(kWholeTile);
            if (cut) partial += tile.rows * shape_.heads;
            *tiles++ = out;
        }
    });
}

void AttentionSchedule::write(AttentionTile* few_tiles, AttentionTile* many_tiles,
                              AttentionMerge* merge_list) const noexcept {
    write(true, few, few_tiles, merge_list);
    write(false, many, many_tiles, merge_list);
}

// A tile has a token of its own, and all cuts of one kernel together make at most kWantedGroups more.
uint64_t AttentionSchedule::most_tiles(uint32_t tokens) noexcept {
    return uint64_t{tokens} + 2 * kWantedGroups;
}
uint64_t AttentionSchedule::most_merges(uint32_t tokens) noexcept {
    return std::min<uint64_t>(tokens, 2 * kWantedGroups);
}
// Of each token, and of the rows of each cut: a kernel's segments are so long that its cuts times the threadgroups of
// one are at most kWantedGroups.
uint64_t AttentionSchedule::most_partials(const AttentionShape& shape, uint32_t tokens) noexcept {
    const auto of_cuts = [tokens](const TileShape& kernel) {
        return uint64_t{kWantedGroups / kernel.groups} * std::min(kernel.rows, tokens);
    };
    const uint64_t of_many = shape.few_tokens < UINT32_MAX ? of_cuts(shape.many) : 0;
    return (tokens + of_cuts(shape.few) + of_many) * shape.heads;
}

}  // namespace metallic::metal
