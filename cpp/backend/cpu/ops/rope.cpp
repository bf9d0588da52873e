#include "backend/cpu/ops/rope.h"

#include <cmath>
#include <cstring>

namespace metallic::cpu {
namespace {

class Rope final : public Operation {
  public:
    Rope(const RopeStep& step, Preparation& p)
        : kernels_(p.vector),
          step_(step),
          width_(p.value(step.in).width),
          rotation_(step.rope, p.rope(step.rope, step.head_size)) {
        p.check(step.head_size > 0 && width_ % step.head_size == 0, "heads that do not divide the width");
        p.expect(step.in, width_, Rows::tokens, "the input");
        p.expect(step.out, width_, Rows::tokens, "the output");
    }

    void run(Worker& worker) const noexcept override {
        const float* const in = worker.value(step_.in);
        float* const out = worker.value(step_.out);
        const uint32_t heads = width_ / step_.head_size;
        const Worker::Range range = worker.share(uint64_t{worker.submission.count(Rows::tokens)} * heads);
        for (uint64_t i = range.first; i < range.last; ++i) {
            float* const head = out + i * step_.head_size;
            if (in != out) std::memcpy(head, in + i * step_.head_size, step_.head_size * sizeof(float));
            rotation_.apply(kernels_, worker, static_cast<uint32_t>(i / heads), head, 1, step_.head_size);
        }
    }

  private:
    const VectorKernels& kernels_;
    const RopeStep step_;
    const uint32_t width_;
    const RowRotation rotation_;
};

}  // namespace

void fill_rope_rows(const RopeTable& table, const RopeRows& out, const Worker& worker) noexcept {
    const Submission& submission = worker.submission;
    const Worker::Range rows = worker.share(submission.count(Rows::tokens));
    for (uint64_t row = rows.first; row < rows.last; ++row) {
        const Run& run = submission.batch->runs[submission.run_of_row[row]];
        const bool extended = run.rope_extended && !table.extended.inverse_frequencies.empty();
        const RopeTable::Variant& variant = extended ? table.extended : table.base;
        const double position = static_cast<float>(submission.position(static_cast<uint32_t>(row)));
        for (uint32_t i = 0; i < out.half; ++i) {
            const double angle = position * static_cast<double>(variant.inverse_frequencies[i]);
            out.cos[row * out.half + i] = static_cast<float>(std::cos(angle) * static_cast<double>(variant.magnitude));
            out.sin[row * out.half + i] = static_cast<float>(std::sin(angle) * static_cast<double>(variant.magnitude));
        }
    }
}

std::unique_ptr<Operation> prepare(const RopeStep& step, Preparation& preparation) {
    return std::make_unique<Rope>(step, preparation);
}

}  // namespace metallic::cpu
