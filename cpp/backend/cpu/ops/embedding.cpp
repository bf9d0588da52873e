#include "backend/cpu/ops/embedding.h"

namespace metallic::cpu {
namespace {

class Embedding final : public Operation {
  public:
    Embedding(const EmbeddingStep& step, Preparation& p)
        : matmul_(p.matmul),
          vector_(p.vector),
          table_(p.matrix({step.weight, 0, all_rows(step, p)})),
          scale_(step.scale),
          out_(step.out) {
        p.expect(out_, table_.cols, Rows::tokens, "the output");
        p.check(table_.experts == 1, "an embedding of experts");
        p.vocabulary = p.vocabulary ? std::min(p.vocabulary, table_.count) : table_.count;
    }

    void run(Worker& worker) const noexcept override {
        const Worker::Range rows = worker.share(worker.submission.count(Rows::tokens));
        for (uint64_t row = rows.first; row < rows.last; ++row) {
            // The plan has checked that every id is within the table.
            const size_t token = static_cast<size_t>(worker.submission.batch->tokens[row]);
            float* const out = worker.value(out_) + row * table_.cols;
            matmul_.dequantise_row(table_.dtype, table_.data + token * table_.row_bytes, table_.cols, out);
            if (scale_ != 1.0f) vector_.scale(out, scale_, table_.cols, out);
        }
    }

  private:
    static uint32_t all_rows(const EmbeddingStep& step, const Preparation& p) {
        p.check(step.weight < p.program.weights.size(), "a weight that does not exist");
        return static_cast<uint32_t>(std::min<uint64_t>(p.program.weights[step.weight].rows, 0x7fffffffu));
    }

    const MatmulKernels& matmul_;
    const VectorKernels& vector_;
    const Matrix table_;
    const float scale_;
    const ValueId out_;
};

}  // namespace

std::unique_ptr<Operation> prepare(const EmbeddingStep& step, Preparation& preparation) {
    return std::make_unique<Embedding>(step, preparation);
}

}  // namespace metallic::cpu
