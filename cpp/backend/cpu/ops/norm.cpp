#include "backend/cpu/ops/norm.h"

namespace metallic::cpu {
namespace {

class Norm final : public Operation {
  public:
    Norm(const NormStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), width_(p.value(step.in).width), rows_(p.value(step.in).rows) {
        p.check(step.group > 0 && width_ % step.group == 0, "groups that do not divide the width");
        p.expect(step.out, width_, rows_, "the output");
        if (step.residual != kNone) p.expect(step.residual, width_, rows_, "the residual");
        if (step.weight != kNone) weight_ = p.floats(step.weight, step.group, "norm weight");
    }

    void run(Worker& worker) const noexcept override {
        const uint64_t groups = uint64_t{worker.submission.count(rows_)} * (width_ / step_.group);
        const float* const in = worker.value(step_.in);
        const float* const residual = step_.residual != kNone ? worker.value(step_.residual) : nullptr;
        float* const out = worker.value(step_.out);
        const Worker::Range range = worker.share(groups);
        for (uint64_t i = range.first; i < range.last; ++i) {
            const uint64_t at = i * step_.group;
            kernels_.rms_norm(in + at, weight_, residual ? residual + at : nullptr, step_.epsilon, step_.group,
                              out + at);
        }
    }

  private:
    const VectorKernels& kernels_;
    const NormStep step_;
    const uint32_t width_;
    const Rows rows_;
    const float* weight_ = nullptr;
};

}  // namespace

std::unique_ptr<Operation> prepare(const NormStep& step, Preparation& preparation) {
    return std::make_unique<Norm>(step, preparation);
}

}  // namespace metallic::cpu
