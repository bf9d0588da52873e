#include "backend/metal/ops/norm.h"

#include <algorithm>

#include "backend/metal/ops/grid.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kNarrowElements = 512;  // up to here a simdgroup does a group alone
constexpr uint32_t kNarrowSimdgroups = 4;  // of a threadgroup
constexpr uint32_t kMostThreads = 1024;
constexpr uint32_t kElementsPerThread = 8;

class Norm final : public Operation {
  public:
    Norm(const NormStep& step, Preparation& p)
        : width_(p.value(step.in).width), group_(step.group), rows_(p.value(step.in).rows), epsilon_(step.epsilon) {
        p.check(group_ > 0 && width_ % group_ == 0, "groups that do not divide the width");
        p.expect(step.out, width_, rows_, "the output");
        p.check(uint64_t{p.max_rows(rows_)} * (width_ / group_) <= UINT32_MAX, "too many groups for one grid");
        in_ = p.place(step.in);
        out_ = p.place(step.out);
        weight_ = residual_ = in_;  // stand-ins
        if (step.residual != kNone) {
            p.expect(step.residual, width_, rows_, "the residual");
            residual_ = p.place(step.residual);
        }
        if (step.weight != kNone) weight_ = p.floats(step.weight, group_, "norm weight");
        has_weight_ = step.weight != kNone;

        vectors_ = group_ % 4 == 0 && fours({in_, out_, weight_, residual_});
        wide_ = group_ > kNarrowElements;
        const FunctionConstant constants[] = {FunctionConstant::of(0, has_weight_),
                                              FunctionConstant::of(1, step.residual != kNone)};
        const char* const name =
            wide_ ? (vectors_ ? "norm_wide_4" : "norm_wide") : (vectors_ ? "norm_narrow_4" : "norm_narrow");
        pipeline_ = p.pipeline("norm", name, constants);
        const uint32_t wanted = std::min(kMostThreads, group_ / kElementsPerThread);
        threads_ = whole_simdgroups(pipeline_, wide_ ? wanted : kNarrowSimdgroups * kSimdWidth);
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t groups = submission.count(rows_) * (width_ / group_);
        encoder.pipeline(pipeline_);
        encoder.read(0, in_);
        if (has_weight_) {
            encoder.constant(1, weight_);
        } else {
            encoder.read(1, weight_);
        }
        encoder.read(2, residual_);
        encoder.write(3, out_);
        encoder.params(4, NormParams{groups, group_, vectors_ ? group_ / 4 : group_, epsilon_});
        const uint32_t at_once = wide_ ? 1 : threads_ / kSimdWidth;
        encoder.dispatch(MTLSizeMake(ceil_div(groups, at_once), 1, 1), MTLSizeMake(threads_, 1, 1));
    }

  private:
    const uint32_t width_, group_;
    const Rows rows_;
    const float epsilon_;
    Binding in_, weight_, residual_, out_;
    bool has_weight_ = false, vectors_ = false, wide_ = false;
    id<MTLComputePipelineState> pipeline_ = nil;
    uint32_t threads_ = 0;
};

}  // namespace

std::unique_ptr<Operation> prepare(const NormStep& step, Preparation& preparation) {
    return std::make_unique<Norm>(step, preparation);
}

}  // namespace metallic::metal
