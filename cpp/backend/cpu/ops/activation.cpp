#include "backend/cpu/ops/activation.h"

namespace metallic::cpu {
namespace {

class Add final : public Operation {
  public:
    Add(const AddStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), width_(p.value(step.a).width), rows_(p.value(step.a).rows) {
        p.expect(step.b, width_, rows_, "the second operand");
        p.expect(step.out, width_, rows_, "the output");
    }

    void run(Worker& worker) const noexcept override {
        const float* const a = worker.value(step_.a);
        const float* const b = worker.value(step_.b);
        float* const out = worker.value(step_.out);
        worker.for_each_block(worker.submission.count(rows_), width_, [&](uint64_t row, uint64_t first, uint64_t n) {
            const uint64_t at = row * width_ + first;
            kernels_.add(a + at, b + at, n, out + at);
        });
    }

  private:
    const VectorKernels& kernels_;
    const AddStep step_;
    const uint32_t width_;
    const Rows rows_;
};

class Unary final : public Operation {
  public:
    Unary(const UnaryStep& step, Preparation& p)
        : kernel_(step.op == UnaryOp::scale ? p.vector.scale : p.vector.softcap),
          step_(step),
          width_(p.value(step.in).width),
          rows_(p.value(step.in).rows) {
        p.expect(step.out, width_, rows_, "the output");
        p.check(step.op == UnaryOp::scale || step.factor != 0, "a softcap of zero");
    }

    void run(Worker& worker) const noexcept override {
        const float* const in = worker.value(step_.in);
        float* const out = worker.value(step_.out);
        worker.for_each_block(worker.submission.count(rows_), width_, [&](uint64_t row, uint64_t first, uint64_t n) {
            const uint64_t at = row * width_ + first;
            kernel_(in + at, step_.factor, n, out + at);
        });
    }

  private:
    void (*const kernel_)(const float*, float, size_t, float*);
    const UnaryStep step_;
    const uint32_t width_;
    const Rows rows_;
};

class GatedActivation final : public Operation {
  public:
    GatedActivation(const GatedActivationStep& step, Preparation& p)
        : kernels_(p.vector), step_(step), width_(p.value(step.gate).width), rows_(p.value(step.gate).rows) {
        p.expect(step.up, width_, rows_, "up");
        p.expect(step.out, width_, rows_, "the output");
    }

    void run(Worker& worker) const noexcept override {
        const float* const gate = worker.value(step_.gate);
        const float* const up = worker.value(step_.up);
        float* const out = worker.value(step_.out);
        worker.for_each_block(worker.submission.count(rows_), width_, [&](uint64_t row, uint64_t first, uint64_t n) {
            const uint64_t at = row * width_ + first;
            kernels_.gated_activation(static_cast<uint8_t>(step_.activation), gate + at, up + at, n, out + at);
        });
    }

  private:
    const VectorKernels& kernels_;
    const GatedActivationStep step_;
    const uint32_t width_;
    const Rows rows_;
};

}  // namespace

std::unique_ptr<Operation> prepare(const AddStep& step, Preparation& preparation) {
    return std::make_unique<Add>(step, preparation);
}
std::unique_ptr<Operation> prepare(const UnaryStep& step, Preparation& preparation) {
    return std::make_unique<Unary>(step, preparation);
}
std::unique_ptr<Operation> prepare(const GatedActivationStep& step, Preparation& preparation) {
    return std::make_unique<GatedActivation>(step, preparation);
}

}  // namespace metallic::cpu
