#include "backend/metal/ops/expert_matmul.h"

#include <algorithm>
#include <vector>

#include "backend/metal/ops/grid.h"
#include "backend/metal/ops/matmul.h"

namespace metallic::metal {
namespace {

// Pairs of a token and an expert, for each expert on average, from which they are sorted by expert and multiplied in
// tiles: a tile costs the arithmetic of 32 rows however many it has, as much as reading its weights three or four
// times.
constexpr uint32_t kGroupedPairs = 4;

// Few pairs are computed one by one, each reading its expert's weights. Many are grouped by a small kernel, whose tiles
// the host cannot count: the grid has as many as there can be, and those too many end at once.
class ExpertLinear final : public Operation {
  public:
    ExpertLinear(const ExpertLinearStep& step, Preparation& p)
        : top_k_(step.top_k), rows_(p.value(step.in).rows), has_tiles_(has_tiles(p)) {
        p.check(step.part_count >= 1 && step.part_count <= kMaxLinearParts, "a wrong number of parts");
        p.check(top_k_ >= 1, "no expert chosen");
        p.expect(step.ids, top_k_, rows_, "the ids");
        input_.cols = p.value(step.in).width / (step.per_slot ? top_k_ : 1);
        p.expect(step.in, uint64_t{input_.cols} * (step.per_slot ? top_k_ : 1), rows_, "the input");
        p.check(uint64_t{p.max_rows(rows_)} * top_k_ < 0x7fffffffu, "too many experts chosen for the batch");
        input_.in = p.place(step.in);
        p.check(fours({input_.in}), "an input that is not aligned");
        ids_ = p.place(step.ids);
        input_.activation = step.activation;
        input_.experts = p.experts_of_ids[step.ids];
        input_.pairs_per_input = step.per_slot ? 1 : top_k_;
        p.check(input_.experts > 0, "ids that no routing has written");
        for (uint32_t i = 0; i < step.part_count; ++i) parts_.push_back(part(step, step.parts[i], p));
        if (step.gated) {
            p.check(parts_.size() == 2 && parts_[0].matrix.count == parts_[1].matrix.count, "gate and up that differ");
            p.expect(step.gated_out, uint64_t{top_k_} * parts_[0].matrix.count, rows_, "the gated output");
            parts_[0].out = parts_[1].out = p.place(step.gated_out);
        }
        launches_ = MatmulLaunch::divide(input_, parts_, step.gated);
        const uint32_t most_pairs = p.max_rows(rows_) * top_k_;
        for (MatmulLaunch& launch : launches_) launch.compile(p, 1, is_grouped(most_pairs));
        if (!is_grouped(most_pairs)) return;
        group_ = p.pipeline("matmul", "expert_group");
        p.reserve_scratch(index_bytes(most_pairs));
        scratch_ = &p.scratch();
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t pairs = submission.count(rows_) * top_k_;
        if (!is_grouped(pairs)) {
            for (const MatmulLaunch& launch : launches_) launch.encode_few(encoder, pairs, ids_);
            return;
        }
        const Binding index = scratch_->at(0, index_bytes(pairs));
        encoder.pipeline(group_);
        encoder.params(0, ExpertGroupParams{pairs, input_.experts, tiles(pairs)});
        encoder.read(1, ids_);
        encoder.write(2, index);
        encoder.dispatch(MTLSizeMake(1, 1, 1), MTLSizeMake(kExpertGroupThreads, 1, 1));
        for (const MatmulLaunch& launch : launches_) launch.encode_many(encoder, pairs, tiles(pairs), index);
    }

  private:
    bool is_grouped(uint32_t pairs) const noexcept {
        return has_tiles_ && input_.experts <= kExpertGroupLimit && pairs >= uint64_t{kGroupedPairs} * input_.experts;
    }

    // Every expert that has pairs may have one tile that is not full.
    uint32_t tiles(uint32_t pairs) const noexcept { return pairs / kMatmulTileRows + std::min(pairs, input_.experts); }

    uint64_t index_bytes(uint32_t pairs) const noexcept {
        return uint64_t{tiles(pairs)} * sizeof(ExpertTile) + uint64_t{pairs} * sizeof(uint32_t);
    }

    MatmulLaunch::Part part(const ExpertLinearStep& step, const LinearPart& source, Preparation& p) const {
        MatmulLaunch::Part part;
        part.matrix = p.matrix(source.weight);
        p.check(part.matrix.cols == input_.cols, "a weight that does not fit the input's width");
        p.check(part.matrix.experts == input_.experts, "a weight that holds another number of experts than the router");
        p.check(part.matrix.row_bytes <= UINT32_MAX, "a weight whose rows are too long");
        if (source.bias != kNone) {
            // [experts, rows of the whole weight]
            const uint64_t stride = p.weight(source.weight.weight).rows;
            p.check(stride <= UINT32_MAX, "a weight with too many rows");
            part.biased = true;
            part.bias = p.floats(source.bias, stride * input_.experts, "bias").at(source.weight.first * sizeof(float));
            part.bias_stride = static_cast<uint32_t>(stride);
        }
        p.check(step.gated == (source.out == kNone), "a part's output is missing, or one too many");
        if (step.gated) return part;
        p.expect(source.out, uint64_t{top_k_} * part.matrix.count, rows_, "the output");
        part.out = p.place(source.out);
        return part;
    }

    const uint32_t top_k_;
    const Rows rows_;
    const bool has_tiles_;
    Binding ids_;
    MatmulLaunch::Input input_;
    std::vector<MatmulLaunch::Part> parts_;
    std::vector<MatmulLaunch> launches_;
    id<MTLComputePipelineState> group_ = nil;
    const Binding* scratch_ = nullptr;
};

}  // namespace

std::unique_ptr<Operation> prepare(const ExpertLinearStep& step, Preparation& preparation) {
    return std::make_unique<ExpertLinear>(step, preparation);
}

}  // namespace metallic::metal
