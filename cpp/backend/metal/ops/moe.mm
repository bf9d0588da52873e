#include "backend/metal/ops/moe.h"

#include <algorithm>
#include <string>

#include "backend/metal/ops/grid.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kThreadgroupBytes = 32768;

// One simdgroup per row, its scores in threadgroup memory.
class Route final : public Operation {
  public:
    Route(const RouteStep& step, Preparation& p)
        : rows_(p.value(step.logits).rows), params_{p.value(step.logits).width, step.top_k, step.scale} {
        p.check(step.top_k >= 1 && step.top_k <= params_.experts, "more experts chosen than there are");
        p.expect(step.ids, step.top_k, rows_, "the ids");
        p.expect(step.weights, step.top_k, rows_, "the weights");
        p.experts_of_ids[step.ids] = params_.experts;
        // Apple's devices want threadgroup memory in multiples of 16 bytes.
        const uint64_t bytes = (uint64_t{params_.experts} + step.top_k) * sizeof(float);
        if (bytes > kThreadgroupBytes) {
            p.unsupported("a router over " + std::to_string(params_.experts) + " experts; at most " +
                          std::to_string(kThreadgroupBytes / sizeof(float)) + " less the number chosen is supported");
        }
        scores_bytes_ = static_cast<uint32_t>((bytes + 15) / 16 * 16);
        logits_ = p.place(step.logits);
        ids_ = p.place(step.ids);
        weights_ = p.place(step.weights);
        const FunctionConstant constants[] = {FunctionConstant::of(0, static_cast<uint32_t>(step.gate)),
                                              FunctionConstant::of(1, step.normalise)};
        pipeline_ = p.pipeline("moe", "route", constants);
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t rows = submission.count(rows_);
        encoder.pipeline(pipeline_);
        encoder.read(0, logits_);
        encoder.write(1, ids_);
        encoder.write(2, weights_);
        encoder.params(3, params_);
        encoder.threadgroup_memory(0, scores_bytes_);
        encoder.dispatch(MTLSizeMake(rows, 1, 1), MTLSizeMake(kSimdWidth, 1, 1));
    }

  private:
    const Rows rows_;
    const RouteParams params_;
    Binding logits_, ids_, weights_;
    uint32_t scores_bytes_ = 0;
    id<MTLComputePipelineState> pipeline_ = nil;
};

class Combine final : public Operation {
  public:
    Combine(const CombineStep& step, Preparation& p)
        : width_(p.value(step.out).width), top_k_(step.top_k), rows_(p.value(step.out).rows) {
        p.check(top_k_ >= 1, "no expert chosen");
        p.expect(step.in, uint64_t{top_k_} * width_, rows_, "the input");
        p.expect(step.weights, top_k_, rows_, "the weights");
        in_ = p.place(step.in);
        weights_ = p.place(step.weights);
        out_ = p.place(step.out);
        residual_ = in_;  // a stand-in
        if (step.residual != kNone) {
            p.expect(step.residual, width_, rows_, "the residual");
            residual_ = p.place(step.residual);
        }
        vectors_ = width_ % 4 == 0 && fours({in_, residual_, out_});
        const FunctionConstant constants[] = {FunctionConstant::of(2, step.residual != kNone)};
        pipeline_ = p.pipeline("moe", vectors_ ? "combine_4" : "combine", constants);
        threads_ = whole_simdgroups(pipeline_, std::min(units(), 256u));
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t rows = submission.count(rows_);
        encoder.pipeline(pipeline_);
        encoder.read(0, in_);
        encoder.read(1, weights_);
        encoder.read(2, residual_);
        encoder.write(3, out_);
        encoder.params(4, CombineParams{units(), rows, top_k_});
        encoder.dispatch(MTLSizeMake(ceil_div(units(), threads_), rows, 1), MTLSizeMake(threads_, 1, 1));
    }

  private:
    uint32_t units() const noexcept { return vectors_ ? width_ / 4 : width_; }

    const uint32_t width_, top_k_;
    const Rows rows_;
    Binding in_, weights_, residual_, out_;
    bool vectors_ = false;
    id<MTLComputePipelineState> pipeline_ = nil;
    uint32_t threads_ = 0;
};

}  // namespace

std::unique_ptr<Operation> prepare(const RouteStep& step, Preparation& preparation) {
    return std::make_unique<Route>(step, preparation);
}
std::unique_ptr<Operation> prepare(const CombineStep& step, Preparation& preparation) {
    return std::make_unique<Combine>(step, preparation);
}

}  // namespace metallic::metal
