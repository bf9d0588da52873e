#include "backend/metal/ops/activation.h"

#include <algorithm>

#include "backend/metal/ops/grid.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kPerThread = 4;  // elements

// out = op(a, b), element by element; b is a where there is no second operand.
class ElementWise final : public Operation {
  public:
    ElementWise(ValueId a, ValueId b, ValueId out, float factor, Preparation& p)
        : width_(p.value(a).width), rows_(p.value(a).rows), factor_(factor) {
        p.expect(b, width_, rows_, "the second operand");
        p.expect(out, width_, rows_, "the output");
        p.check(uint64_t{p.max_rows(rows_)} * width_ < uint64_t{1} << 32, "more than 2^32 elements");
        a_ = p.place(a);
        b_ = p.place(b);
        out_ = p.place(out);
    }

    void choose(std::string_view kernel, Activation activation, Preparation& p) {
        const FunctionConstant constants[] = {FunctionConstant::of(0, static_cast<uint32_t>(activation)),
                                              FunctionConstant::of(1, fours({a_, b_, out_}))};
        pipeline_ = p.pipeline("activation", kernel, constants);
        threads_ = whole_simdgroups(pipeline_, kThreads);
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t count = submission.count(rows_) * width_;
        encoder.pipeline(pipeline_);
        encoder.read(0, a_);
        encoder.read(1, b_);
        encoder.write(2, out_);
        encoder.params(3, ElementParams{count, factor_});
        const uint32_t groups = ceil_div(ceil_div(count, kPerThread), threads_);
        encoder.dispatch(MTLSizeMake(groups, 1, 1), MTLSizeMake(threads_, 1, 1));
    }

  private:
    const uint32_t width_;
    const Rows rows_;
    const float factor_;
    Binding a_, b_, out_;
    id<MTLComputePipelineState> pipeline_ = nil;
    uint32_t threads_ = 0;
};

}  // namespace

std::unique_ptr<Operation> prepare(const AddStep& step, Preparation& p) {
    auto operation = std::make_unique<ElementWise>(step.a, step.b, step.out, 0.0f, p);
    operation->choose("add", {}, p);
    return operation;
}

std::unique_ptr<Operation> prepare(const UnaryStep& step, Preparation& p) {
    p.check(step.op == UnaryOp::scale || step.factor != 0, "a softcap of zero");
    auto operation = std::make_unique<ElementWise>(step.in, step.in, step.out, step.factor, p);
    operation->choose(step.op == UnaryOp::scale ? "scale" : "softcap", {}, p);
    return operation;
}

std::unique_ptr<Operation> prepare(const GatedActivationStep& step, Preparation& p) {
    auto operation = std::make_unique<ElementWise>(step.gate, step.up, step.out, 0.0f, p);
    operation->choose("gated_activation", step.activation, p);
    return operation;
}

}  // namespace metallic::metal
