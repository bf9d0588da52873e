#include "backend/metal/ops/kv_write.h"

#include <vector>

#include "backend/metal/ops/grid.h"
#include "backend/metal/ops/kv_place.h"
#include "backend/metal/ops/rope.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kSimdgroups = 4;  // of a threadgroup; each has one head of one token

class KvWrite final : public Operation {
  public:
    KvWrite(const KvWriteStep& step, Preparation& p) : step_(step), group_(p.group(step.group, step.layer)) {
        const uint32_t head = group_.head_size;
        p.expect(step.k, uint64_t{group_.kv_heads} * head, Rows::tokens, "keys");
        p.expect(step.v, uint64_t{group_.kv_heads} * head, Rows::tokens, "values");
        p.check((step.q == kNone) == (step.q_out == kNone), "queries without an output, or the reverse");
        k_ = p.place(step.k);
        v_ = p.place(step.v);
        if (step.q != kNone) bind_queries(p);
        if (step.q_norm != kNone) q_norm_ = p.floats(step.q_norm, head, "query norm");
        if (step.k_norm != kNone) k_norm_ = p.floats(step.k_norm, head, "key norm");
        if (step.rope != kNone) rotation_ = Rotation(p.rope(step.rope, head), p);
        const KvLayout& layout = p.kv_layout(step.group);
        const FunctionConstant constants[] = {key_type_constant(layout),
                                              value_type_constant(layout),
                                              head_size_constant(head),
                                              rotation_.pairing(),
                                              rotation_.turned(),
                                              FunctionConstant::of(4, step.q_norm != kNone),
                                              FunctionConstant::of(5, step.k_norm != kNone)};
        pipeline_ = p.pipeline("rope", "kv_write", constants);
        threads_ = whole_simdgroups(pipeline_, kSimdgroups * kSimdWidth);
        params_.kv = kv_place(p, step.group, step.layer);
        params_.q_heads = q_heads_;
        params_.kv_heads = group_.kv_heads;
        params_.epsilon = step.norm_epsilon;
        params_.magnitudes[0] = rotation_.magnitudes[0];
        params_.magnitudes[1] = rotation_.magnitudes[1];
        p.check(uint64_t{p.max_rows(Rows::tokens)} * heads() <= INT32_MAX, "too many heads for one grid");
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        KvWriteParams params = params_;
        params.rows = submission.count(Rows::tokens);
        encoder.pipeline(pipeline_);
        encoder.params(0, params);
        encoder.constant(1, submission.row_params);
        encoder.constant(2, submission.run_params);
        encoder.constant(3, submission.table_params);
        encoder.constant(4, submission.pages);
        // What is not there is not read; the table of rows stands in for it.
        const auto optional = [&](uint32_t index, const Binding& binding) {
            encoder.constant(index, binding.buffer ? binding : submission.row_params);
        };
        optional(5, rotation_.steps);
        optional(6, q_norm_);
        optional(7, k_norm_);
        if (step_.q == kNone) {
            optional(8, {});
            optional(9, {});
        } else {
            encoder.read(8, q_);
            encoder.write(9, q_out_);
        }
        encoder.read(10, k_);
        encoder.read(11, v_);
        encoder.writes_pages(step_.group, step_.layer);
        encoder.dispatch(MTLSizeMake(ceil_div(params.rows * heads(), threads_ / kSimdWidth), 1, 1),
                         MTLSizeMake(threads_, 1, 1));
    }

  private:
    void bind_queries(Preparation& p) {
        const uint32_t width = p.value(step_.q).width;
        p.check(width % group_.head_size == 0, "queries that are no whole heads");
        p.expect(step_.q, width, Rows::tokens, "queries");
        p.expect(step_.q_out, width, Rows::tokens, "the queries' output");
        q_heads_ = width / group_.head_size;
        q_ = p.place(step_.q);
        q_out_ = p.place(step_.q_out);
    }
    uint32_t heads() const noexcept { return q_heads_ + 2 * group_.kv_heads; }

    const KvWriteStep step_;
    const CacheGroup group_;
    Rotation rotation_;
    Binding q_, q_out_, k_, v_, q_norm_, k_norm_;
    uint32_t q_heads_ = 0, threads_ = 0;
    KvWriteParams params_{};
    id<MTLComputePipelineState> pipeline_ = nil;
};

}  // namespace

std::unique_ptr<Operation> prepare(const KvWriteStep& step, Preparation& preparation) {
    return std::make_unique<KvWrite>(step, preparation);
}

}  // namespace metallic::metal
