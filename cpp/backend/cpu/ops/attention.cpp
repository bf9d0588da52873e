#include "backend/cpu/ops/attention.h"

namespace metallic::cpu {
namespace {

constexpr uint32_t kMostQueries = 128;  // of a tile; see AttentionTile's kernels
constexpr uint32_t kFewestQueries = 16;
constexpr uint32_t kItemsPerThread = 4;
// Partial results of segments: at most so many bytes, and no more than these rows of all heads take.
constexpr size_t kPartialBytes = size_t{16} << 20;
constexpr size_t kPartialRows = 4096;

// How one submission's attention is cut into items. Runs are cut into tiles of query rows, tiles into units (a kv head,
// or some of its query heads), and units, when there are few of them, into segments of history.
struct Cut {
    uint32_t tile_rows = 1;
    uint32_t head_parts = 1;  // of the query heads of one kv head
    bool segmented = false;
    uint64_t items = 0;
};

// Tiles of all runs in turn, last rows first: they see the most history, so the long items start early.
class TileCursor {
  public:
    TileCursor(const Submission& submission, const Cut& cut, uint32_t units, uint32_t window)
        : submission_(submission), cut_(cut), units_(units), window_(window) {
        load();
    }

    // Moves forward to the tile that holds this item; items ascend.
    void seek(uint64_t item) noexcept {
        while (item >= first_item + items()) {
            first_item += items();
            if (++tile_ == tiles()) {
                tile_ = 0;
                ++run;
            }
            load();
        }
    }

    uint64_t items() const noexcept { return uint64_t{units_} * segments_count(); }
    uint32_t segments_count() const noexcept { return cut_.segmented ? segments.last - segments.first + 1 : 1; }
    bool done() const noexcept { return run >= submission_.batch->runs.size(); }

    uint64_t first_item = 0;
    uint32_t run = 0;
    uint32_t first_row = 0;  // within the run
    uint32_t rows = 0;
    AttentionSegments segments{0, 0};

  private:
    uint32_t tiles() const noexcept {
        return (submission_.batch->runs[run].length + cut_.tile_rows - 1) / cut_.tile_rows;
    }
    void load() noexcept {
        if (done()) return;
        const Run& current = submission_.batch->runs[run];
        first_row = (tiles() - 1 - tile_) * cut_.tile_rows;
        rows = std::min(cut_.tile_rows, current.length - first_row);
        segments = attention_segments(current.position + first_row, rows, window_);
    }

    const Submission& submission_;
    const Cut& cut_;
    const uint32_t units_, window_;
    uint32_t tile_ = 0;
};

class Attention final : public Operation {
  public:
    Attention(const AttentionStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), group_(p.group(step.group, step.layer)), layout_(p.kv_layout(step.group)) {
        p.check(step.heads > 0 && step.heads % group_.kv_heads == 0, "heads that are no multiple of the kv heads");
        const uint64_t width = uint64_t{step.heads} * group_.head_size;
        p.expect(step.q, width, Rows::tokens, "queries");
        p.expect(step.out, width, Rows::tokens, "the output");
        if (step.sinks != kNone) sinks_ = p.floats(step.sinks, step.heads, "sinks");
        heads_per_kv_ = step.heads / group_.kv_heads;
        most_rows_ = std::max(1u, kMostQueries / heads_per_kv_);
        most_rows_ = std::min(most_rows_, std::max(1u, p.inputs.max_tokens));
        // Per thread and kernel call; a part of the heads needs no more than all of them.
        p.reserve_scratch(kernels_.attention_scratch_bytes(most_rows_, heads_per_kv_, group_.head_size));
        partial_bytes_ =
            std::min(kPartialBytes, kPartialRows * group_.kv_heads * partial_floats(1, {}) * sizeof(float));
        if (p.threads > 1) p.reserve_shared(partial_bytes_);
    }

    void run(Worker& worker) const noexcept override {
        const Cut cut = choose_cut(worker);
        const uint32_t units = group_.kv_heads * cut.head_parts;
        TileCursor cursor(worker.submission, cut, units, group_.window);
        worker.for_each_item(static_cast<uint32_t>(cut.items), [&](uint32_t item) {
            cursor.seek(item);
            const uint32_t segments = cursor.segments_count();
            const uint64_t within = item - cursor.first_item;
            const uint32_t unit = static_cast<uint32_t>(within / segments);
            const AttentionTile tile = make_tile(worker, cut, cursor, unit);
            if (cut.segmented) {
                const uint32_t segment = static_cast<uint32_t>(within % segments);
                float* const out = partials(worker, cut, item - segment) + segment * partial_floats(tile.rows, cut);
                kernels_.attention_segment(tile, cursor.segments.first + segment, out, worker.scratch);
            } else {
                kernels_.attention(tile, worker.scratch);
            }
        });
        if (cut.segmented && worker.sync()) merge(worker, cut);
    }

  private:
    void merge(Worker& worker, const Cut& cut) const noexcept {
        const uint32_t units = group_.kv_heads * cut.head_parts;
        TileCursor cursor(worker.submission, cut, units, group_.window);
        const Worker::Range range = worker.share(cut.items);
        for (uint64_t item = range.first; item < range.last; ++item) {
            cursor.seek(item);
            const uint64_t within = item - cursor.first_item;
            const uint32_t segments = cursor.segments_count();
            if (within % segments != 0) continue;
            const AttentionTile tile = make_tile(worker, cut, cursor, static_cast<uint32_t>(within / segments));
            kernels_.attention_merge(tile, partials(worker, cut, item), segments);
        }
    }

    // Floats of a partial of a tile with this many rows, and where those of the unit whose first item is `item` start.
    size_t partial_floats(uint32_t rows, const Cut& cut) const noexcept {
        return kernels_.attention_partial_floats(rows, heads_per_kv_ / cut.head_parts, group_.head_size);
    }
    float* partials(const Worker& worker, const Cut& cut, uint64_t item) const noexcept {
        return reinterpret_cast<float*>(worker.submission.shared) + item * partial_floats(cut.tile_rows, cut);
    }

    uint64_t count_items(const Submission& submission, const Cut& cut) const noexcept {
        const uint32_t units = group_.kv_heads * cut.head_parts;
        uint64_t items = 0;
        if (!cut.segmented) {
            for (const Run& run : submission.batch->runs) {
                items += uint64_t{(run.length + cut.tile_rows - 1) / cut.tile_rows} * units;
            }
            return items;
        }
        for (TileCursor cursor(submission, cut, units, group_.window); !cursor.done();) {
            items += cursor.items();
            cursor.seek(items);
        }
        return items;
    }

    // The same on every thread.
    Cut choose_cut(const Worker& worker) const noexcept {
        const Submission& submission = worker.submission;
        const uint64_t wanted = uint64_t{kItemsPerThread} * worker.threads;
        Cut cut;
        cut.tile_rows = most_rows_;
        cut.items = count_items(submission, cut);
        if (worker.threads == 1) return cut;
        while (cut.items < wanted && cut.tile_rows > 1 && cut.tile_rows * heads_per_kv_ > kFewestQueries) {
            cut.tile_rows = (cut.tile_rows + 1) / 2;
            cut.items = count_items(submission, cut);
        }
        if (cut.items >= wanted) return cut;
        Cut segmented = cut;
        segmented.segmented = true;
        segmented.items = count_items(submission, segmented);
        const bool fits = segmented.items * partial_floats(cut.tile_rows, cut) * sizeof(float) <= partial_bytes_;
        if (segmented.items > cut.items && fits) return segmented;
        // A short history: more threads share the kv heads, each with some of the query heads.
        while (cut.items < worker.threads && heads_per_kv_ % (2 * cut.head_parts) == 0) {
            cut.head_parts *= 2;
            cut.items *= 2;
        }
        return cut;
    }

    AttentionTile make_tile(const Worker& worker, const Cut& cut, const TileCursor& cursor,
                            uint32_t unit) const noexcept {
        const Submission& submission = worker.submission;
        const Run& run = submission.batch->runs[cursor.run];
        const PageTableView& table = submission.table(cursor.run, step_.group);
        const uint32_t kv_head = unit / cut.head_parts;
        const uint32_t heads = heads_per_kv_ / cut.head_parts;
        const uint32_t first_head = kv_head * heads_per_kv_ + unit % cut.head_parts * heads;
        const size_t stride = size_t{step_.heads} * group_.head_size;
        const size_t at = (size_t{run.first_row} + cursor.first_row) * stride + size_t{first_head} * group_.head_size;
        AttentionTile tile{};
        tile.q = worker.value(step_.q) + at;
        tile.q_stride = stride;
        tile.out = worker.value(step_.out) + at;
        tile.out_stride = stride;
        tile.rows = cursor.rows;
        tile.position = run.position + cursor.first_row;
        tile.group_heads = heads;
        tile.head_size = group_.head_size;
        tile.scale = step_.scale;
        tile.softcap = step_.softcap;
        tile.window = group_.window;
        tile.sinks = sinks_ ? sinks_ + first_head : nullptr;
        tile.key_rows = layout_.key_rows;
        tile.value_rows = layout_.value_rows;
        tile.pages = table.pages;
        tile.first_page = table.first_page;
        tile.keys_offset = layout_.keys(step_.layer, kv_head);
        tile.values_offset = layout_.values(step_.layer, kv_head);
        return tile;
    }

    const VectorKernels& kernels_;
    const AttentionStep step_;
    const CacheGroup group_;
    const KvLayout layout_;
    const float* sinks_ = nullptr;
    uint32_t heads_per_kv_ = 1;
    uint32_t most_rows_ = 1;
    size_t partial_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Operation> prepare(const AttentionStep& step, Preparation& preparation) {
    return std::make_unique<Attention>(step, preparation);
}

}  // namespace metallic::cpu
