#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "params.h"

// How one submission's attention is cut: runs into tiles of queries, and tiles, where there are few of them, into
// segments of history.
namespace metallic::metal {

// What one of the two attention kernels can do.
struct TileShape {
    uint32_t rows = 1;            // tokens of a tile, at most
    uint32_t groups = 1;          // threadgroups that one tile, or segment, takes
    uint32_t shortest_pages = 1;  // of a segment, at least
};

// Runs of either kernel: with up to so many tokens they go to attention_few, others to attention_many.
struct AttentionShape {
    uint32_t heads = 1;
    uint32_t window = 0;
    uint32_t few_tokens = 1;  // ~0: all runs are few
    TileShape few, many;
    uint64_t most_partials = 0;  // that there is memory for
};

// Tiles of one kernel.
struct TileList {
    uint32_t tiles = 0;
    uint32_t first_row = 0, end_row = 0;  // of the batch
    uint32_t most_rows = 0;               // of a tile
    uint32_t segment_pages = 0;
    uint32_t first_partial = 0, partials = 0;
    uint32_t merges = 0;
};

struct AttentionSchedule {
    AttentionSchedule(const Batch& batch, const AttentionShape& shape) noexcept;
    // Tiles of the few, then those of the many, then merges, into memory for so many.
    void write(AttentionTile* few, AttentionTile* many, AttentionMerge* merges) const noexcept;
    uint32_t merges() const noexcept { return few.merges + many.merges; }

    // No schedule of so many tokens has more.
    static uint64_t most_tiles(uint32_t tokens) noexcept;
    static uint64_t most_merges(uint32_t tokens) noexcept;
    static uint64_t most_partials(const AttentionShape& shape, uint32_t tokens) noexcept;

    TileList few, many;
    uint32_t most_merge_rows = 0;  // of a tile that was cut

  private:
    template <typename Visit>
    void for_each_tile(bool is_few, const Visit& visit) const noexcept;
    void count(bool is_few, TileList& list) noexcept;
    uint64_t wanted_pages(bool is_few) const noexcept;
    void write(bool is_few, const TileList& list, AttentionTile* tiles, AttentionMerge*& merges) const noexcept;

    const Batch& batch_;
    const AttentionShape shape_;
};

}  // namespace metallic::metal
