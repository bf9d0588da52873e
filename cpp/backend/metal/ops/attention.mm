#include "backend/metal/ops/attention.h"

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "backend/metal/ops/attention_schedule.h"
#include "backend/metal/ops/grid.h"
#include "backend/metal/ops/kv_place.h"
#include "core/blocks.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kThreadgroupBytes = 32768;
constexpr uint64_t kMostPartialBytes = uint64_t{16} << 20;

// ---- attention_few ---------------------------------------------------------------------------------------------

constexpr uint32_t kMostFewQueries = 8;  // of a threadgroup; the kernel has one variant for each power of two
constexpr uint32_t kFewVariants = 4;
constexpr uint32_t kMostFewSimdgroups = 16;
constexpr uint32_t kShortestFewPages = 4;

struct FewKernel {
    id<MTLComputePipelineState> pipeline = nil;
    uint32_t queries = 0;
    uint32_t simdgroups = 0;  // each has 32 of the values' dimensions
    uint32_t slices = 0;      // threadgroups that share a head's dimensions
    uint32_t pages = 0;       // between two barriers
    uint32_t bytes = 0;
};

// Threadgroup memory without the weights of pages. See attention_few.h.
constexpr uint64_t few_fixed_bytes(uint32_t queries, uint32_t head_size, uint32_t simdgroups, bool staged) noexcept {
    const uint64_t width = (uint64_t{head_size} + 3) / 4 * 4;
    return (staged ? queries * width : 0) * 4 + (uint64_t{queries} * simdgroups + 3) / 4 * 16;
}
constexpr uint64_t few_page_bytes(uint32_t queries) noexcept {
    return uint64_t{kPageTokens} * queries * 4;
}
constexpr bool few_fits(uint32_t queries, uint32_t head_size, bool staged) noexcept {
    return few_fixed_bytes(queries, head_size, kMostFewSimdgroups, staged) + few_page_bytes(queries) <=
           kThreadgroupBytes;
}

// ---- attention_many ----------------------------------------------------------------------------------------------

constexpr uint32_t kMatrixSide = 8;
constexpr uint32_t kMostMatrices = 16;  // of a simdgroup's queries
constexpr uint32_t kBlockMatrices = kBlock / kMatrixSide;
constexpr uint32_t kManyVariants[] = {4, 8, 10, 12, 16};
constexpr uint32_t kMostManySimdgroups = 8;
constexpr uint32_t kMostManyQueryGroups = 4;
constexpr uint32_t kMostStagedBytes = 17 * 1024;  // of keys or values, if there is a choice
constexpr uint32_t kShortestManyPages = 8;

struct ManyKernel {
    id<MTLComputePipelineState> pipeline = nil;  // nil: the head is too large
    uint32_t matrices = 0;                       // of a simdgroup
    uint32_t parts = 0;                          // simdgroups that share 8 queries
    uint32_t chunk = 0;                          // tokens
    uint32_t simdgroups = 0;
    uint32_t bytes = 0;

    uint32_t queries() const noexcept { return simdgroups / parts * kMatrixSide; }
};

constexpr bool is_narrow(DType dtype) noexcept {
    return dtype == DType::F16 || dtype == DType::BF16;
}

// Everything but the pipeline; chunk is 0 where the head is too large.
ManyKernel many_shape(const KvLayout& layout) noexcept {
    ManyKernel kernel;
    const uint32_t matrices = ceil_div(layout.head_size, kMatrixSide);
    kernel.parts = ceil_div(matrices, kMostMatrices);
    if (kernel.parts > kMostManySimdgroups) return kernel;
    uint32_t least = ceil_div(matrices, kernel.parts);
    // What is rotated in blocks is not parted within one.
    const bool rotated = layout.key_rows.rotated || layout.value_rows.rotated;
    if (rotated && kernel.parts > 1) least = ceil_div(least, kBlockMatrices) * kBlockMatrices;
    kernel.matrices = *std::lower_bound(std::begin(kManyVariants), std::end(kManyVariants), least);
    kernel.simdgroups = kernel.parts * std::clamp(kMostManySimdgroups / kernel.parts, 1u, kMostManyQueryGroups);
    const bool narrow = is_narrow(layout.key_rows.dtype) && is_narrow(layout.value_rows.dtype);
    const uint32_t width = kernel.matrices * kMatrixSide * kernel.parts;
    const uint32_t row = narrow ? (width + 8) * 2 : (width + 4) * 4;
    uint32_t chunk = kPageTokens;
    while (chunk > kMatrixSide && chunk * row > kMostStagedBytes) chunk /= 2;
    const uint32_t shared = kernel.parts > 1 ? kernel.simdgroups * chunk / kMatrixSide * kSimdWidth * 8 : 0;
    kernel.bytes = (chunk * row + shared + kernel.simdgroups * 4 + 15) / 16 * 16;
    if (kernel.bytes <= kThreadgroupBytes) kernel.chunk = chunk;
    return kernel;
}

// ---- the operation -----------------------------------------------------------------------------------------------

class Attention final : public Operation {
  public:
    Attention(const AttentionStep& step, Preparation& p)
        : step_(step), group_(p.group(step.group, step.layer)), scratch_(p.scratch()) {
        p.check(step.heads > 0 && step.heads % group_.kv_heads == 0, "heads that are no multiple of the kv heads");
        width_ = uint64_t{step.heads} * group_.head_size;
        p.expect(step.q, width_, Rows::tokens, "queries");
        p.expect(step.out, width_, Rows::tokens, "the output");
        q_ = p.place(step.q);
        out_ = p.place(step.out);
        if (step.sinks != kNone) sinks_ = p.floats(step.sinks, step.heads, "sinks");
        group_heads_ = step.heads / group_.kv_heads;
        const KvLayout& layout = p.kv_layout(step.group);
        constants_ = {key_type_constant(layout), value_type_constant(layout), head_size_constant(group_.head_size),
                      FunctionConstant::of(2, step.softcap > 0), FunctionConstant::of(3, step.sinks != kNone)};
        prepare_many(p);
        prepare_few(p);
        merge_ = p.pipeline("attention", "attention_merge", constants_);
        place(p);
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const AttentionSchedule schedule(*submission.batch, shape_);
        void* few = nullptr;
        void* many = nullptr;
        void* merges = nullptr;
        const auto take = [&](uint64_t bytes, void** host) {
            return bytes == 0 ? Binding{} : submission.memory->take(bytes, host);
        };
        const Binding few_tiles = take(schedule.few.tiles * sizeof(AttentionTile), &few);
        const Binding many_tiles = take(schedule.many.tiles * sizeof(AttentionTile), &many);
        const Binding merge_list = take(schedule.merges() * sizeof(AttentionMerge), &merges);
        schedule.write(static_cast<AttentionTile*>(few), static_cast<AttentionTile*>(many),
                       static_cast<AttentionMerge*>(merges));
        if (schedule.few.tiles > 0) encode_few(encoder, submission, schedule.few, few_tiles);
        if (schedule.many.tiles > 0) encode_many(encoder, submission, schedule.many, many_tiles);
        if (schedule.merges() > 0) encode_merges(encoder, submission, schedule, merge_list);
    }

  private:
    void prepare_few(Preparation& p);
    void prepare_many(Preparation& p);
    void place(Preparation& p);

    void bind(Encoder& encoder, const Submission& submission, const TileList& list, const Binding& tiles,
              const AttentionParams& params) const;
    void encode_few(Encoder& encoder, const Submission& submission, const TileList& list, const Binding& tiles) const;
    void encode_many(Encoder& encoder, const Submission& submission, const TileList& list, const Binding& tiles) const;
    void encode_merges(Encoder& encoder, const Submission& submission, const AttentionSchedule& schedule,
                       const Binding& merges) const;

    uint64_t partial_bytes() const noexcept { return (uint64_t{group_.head_size} + 2) * sizeof(float); }
    Binding rows(const Binding& value, uint32_t first, uint32_t end) const noexcept {
        return value.at(first * width_ * sizeof(float), (end - first) * width_ * sizeof(float));
    }

    const AttentionStep step_;
    const CacheGroup group_;
    const Binding& scratch_;
    std::vector<FunctionConstant> constants_;
    uint64_t width_ = 0;
    uint32_t group_heads_ = 1;
    FewKernel few_[kFewVariants];  // by the logarithm of their queries; those without a pipeline are not used
    uint32_t most_few_queries_ = 1;
    ManyKernel many_;
    id<MTLComputePipelineState> merge_ = nil;
    Binding q_, out_, sinks_;
    AttentionShape shape_;
    AttentionParams params_{};
};

void Attention::prepare_few(Preparation& p) {
    const uint32_t head = group_.head_size;
    while (most_few_queries_ < kMostFewQueries && few_fits(2 * most_few_queries_, head, true)) most_few_queries_ *= 2;
    if (many_.pipeline != nil && group_heads_ > most_few_queries_) return;  // no run is few enough
    const bool staged = few_fits(most_few_queries_, head, true);
    std::vector<FunctionConstant> constants = constants_;
    constants.push_back(FunctionConstant::of(4, staged));
    for (uint32_t i = 0; i < kFewVariants; ++i) {
        FewKernel& kernel = few_[i];
        kernel.queries = 1u << i;
        const uint32_t least = std::bit_ceil(std::min(group_heads_, most_few_queries_));
        if (kernel.queries < least || kernel.queries > most_few_queries_) continue;
        kernel.pipeline = p.pipeline("attention", "attention_few_" + std::to_string(kernel.queries), constants);
        const uint32_t wanted = ceil_div(head, kSimdWidth);
        const uint32_t most = whole_simdgroups(kernel.pipeline, kMostFewSimdgroups * kSimdWidth) / kSimdWidth;
        kernel.slices = ceil_div(wanted, most);
        kernel.simdgroups = ceil_div(wanted, kernel.slices);
        const uint64_t fixed = few_fixed_bytes(kernel.queries, head, kernel.simdgroups, staged);
        const uint64_t page = few_page_bytes(kernel.queries);
        kernel.pages = static_cast<uint32_t>(std::min<uint64_t>(kernel.simdgroups, (kThreadgroupBytes - fixed) / page));
        kernel.bytes = static_cast<uint32_t>(fixed + kernel.pages * page);
    }
}

void Attention::prepare_many(Preparation& p) {
    ManyKernel kernel = many_shape(p.kv_layout(step_.group));
    if (kernel.chunk == 0) return;
    std::vector<FunctionConstant> constants = constants_;
    constants.push_back(FunctionConstant::of(5, kernel.chunk));
    constants.push_back(FunctionConstant::of(6, kernel.parts));
    kernel.pipeline = p.pipeline("attention", "attention_many_" + std::to_string(kernel.matrices), constants);
    const uint32_t most = whole_simdgroups(kernel.pipeline, kernel.simdgroups * kSimdWidth) / kSimdWidth;
    if (most < kernel.parts) return;
    kernel.simdgroups = most / kernel.parts * kernel.parts;
    many_ = kernel;
}

void Attention::place(Preparation& p) {
    params_.kv = kv_place(p, step_.group, step_.layer);
    params_.heads = step_.heads;
    params_.group_heads = group_heads_;
    params_.window = group_.window > INT32_MAX ? 0 : group_.window;  // no position is beyond
    params_.factor = step_.softcap > 0 ? step_.scale / step_.softcap : step_.scale;
    params_.softcap = step_.softcap;

    shape_.heads = step_.heads;
    shape_.window = params_.window;
    const uint32_t queries = most_few_queries_;
    shape_.few.rows = std::max(1u, queries / group_heads_);
    shape_.few.groups = group_.kv_heads * ceil_div(group_heads_, queries);
    shape_.few.shortest_pages = kShortestFewPages;
    shape_.few_tokens = UINT32_MAX;
    if (many_.pipeline != nil) {
        shape_.few_tokens = queries / group_heads_;
        shape_.many.rows = std::max(1u, many_.queries() / group_heads_);
        shape_.many.groups = group_.kv_heads * ceil_div(group_heads_, many_.queries());
        shape_.many.shortest_pages = kShortestManyPages;
    }
    const uint64_t tiles = AttentionSchedule::most_tiles(p.inputs.max_tokens);
    const uint64_t wanted = AttentionSchedule::most_partials(shape_, p.inputs.max_tokens) * partial_bytes();
    const uint64_t bytes = std::min(kMostPartialBytes, wanted);
    shape_.most_partials = bytes / partial_bytes();
    p.reserve_scratch(shape_.most_partials * partial_bytes());
    p.reserve_batch(tiles * sizeof(AttentionTile) + 16 +
                    AttentionSchedule::most_merges(p.inputs.max_tokens) * sizeof(AttentionMerge));
}

void Attention::bind(Encoder& encoder, const Submission& submission, const TileList& list, const Binding& tiles,
                     const AttentionParams& params) const {
    encoder.params(0, params);
    encoder.constant(1, tiles);
    encoder.constant(2, submission.table_params);
    encoder.constant(3, submission.pages);
    encoder.read(4, rows(q_, list.first_row, list.end_row));
    encoder.constant(5, sinks_.buffer ? sinks_ : submission.row_params);  // stands in for what is not read
    encoder.write(6, rows(out_, list.first_row, list.end_row));
    if (list.partials > 0) {
        encoder.write(7, scratch_.at(list.first_partial * partial_bytes(), list.partials * partial_bytes()));
    } else {
        encoder.constant(7, submission.row_params);
    }
    encoder.reads_pages(step_.group, step_.layer);
}

void Attention::encode_few(Encoder& encoder, const Submission& submission, const TileList& list,
                           const Binding& tiles) const {
    const uint32_t queries = list.most_rows * group_heads_;
    const FewKernel& kernel = few_[std::countr_zero(std::bit_ceil(std::min(queries, most_few_queries_)))];
    AttentionParams params = params_;
    params.blocks = ceil_div(queries, kernel.queries);
    params.pages = kernel.pages;
    encoder.pipeline(kernel.pipeline);
    bind(encoder, submission, list, tiles, params);
    encoder.threadgroup_memory(0, kernel.bytes);
    encoder.dispatch(MTLSizeMake(list.tiles, group_.kv_heads * params.blocks, kernel.slices),
                     MTLSizeMake(kernel.simdgroups * kSimdWidth, 1, 1));
}

void Attention::encode_many(Encoder& encoder, const Submission& submission, const TileList& list,
                            const Binding& tiles) const {
    AttentionParams params = params_;
    params.blocks = ceil_div(list.most_rows * group_heads_, many_.queries());
    encoder.pipeline(many_.pipeline);
    bind(encoder, submission, list, tiles, params);
    encoder.threadgroup_memory(0, many_.bytes);
    encoder.dispatch(MTLSizeMake(list.tiles, group_.kv_heads * params.blocks, 1),
                     MTLSizeMake(many_.simdgroups * kSimdWidth, 1, 1));
}

void Attention::encode_merges(Encoder& encoder, const Submission& submission, const AttentionSchedule& schedule,
                              const Binding& merges) const {
    const uint64_t partials = uint64_t{schedule.few.partials} + schedule.many.partials;
    encoder.pipeline(merge_);
    encoder.params(0, params_);
    encoder.constant(1, merges);
    encoder.read(2, scratch_.at(0, partials * partial_bytes()));
    encoder.constant(3, sinks_.buffer ? sinks_ : submission.row_params);
    encoder.write(4, rows(out_, 0, submission.count(Rows::tokens)));
    encoder.dispatch(MTLSizeMake(schedule.merges(), schedule.most_merge_rows * step_.heads, 1),
                     MTLSizeMake(kSimdWidth, 1, 1));
}

}  // namespace

std::unique_ptr<Operation> prepare(const AttentionStep& step, Preparation& preparation) {
    return std::make_unique<Attention>(step, preparation);
}

}  // namespace metallic::metal
