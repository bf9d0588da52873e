#include "backend/cpu/ops/copy.h"

#include <cstring>

namespace metallic::cpu {
namespace {

class Select final : public Operation {
  public:
    Select(const SelectStep& step, Preparation& p) : step_(step), width_(p.value(step.in).width) {
        p.expect(step.in, width_, Rows::tokens, "the input");
        p.expect(step.out, width_, Rows::outputs, "the output");
        p.experts_of_ids[step.out] = p.experts_of_ids[step.in];
    }

    void run(Worker& worker) const noexcept override {
        const float* const in = worker.value(step_.in);
        float* const out = worker.value(step_.out);
        const Worker::Range rows = worker.share(worker.submission.count(Rows::outputs));
        for (uint64_t i = rows.first; i < rows.last; ++i) {
            const uint64_t row = worker.submission.batch->output_rows[i];
            std::memcpy(out + i * width_, in + row * width_, width_ * sizeof(float));
        }
    }

  private:
    const SelectStep step_;
    const uint32_t width_;
};

}  // namespace

std::unique_ptr<Operation> prepare(const SelectStep& step, Preparation& preparation) {
    return std::make_unique<Select>(step, preparation);
}

}  // namespace metallic::cpu
