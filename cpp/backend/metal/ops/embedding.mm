#include "backend/metal/ops/embedding.h"

#include <algorithm>
#include <string>

#include "backend/metal/ops/grid.h"
#include "params.h"

namespace metallic::metal {
namespace {

// "embed_q4_k" for Q4_K.
std::string kernel_name(DType dtype) {
    std::string name = "embed_" + std::string(dtype_info(dtype).name);
    std::transform(name.begin(), name.end(), name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
    return name;
}

class Embedding final : public Operation {
  public:
    Embedding(const EmbeddingStep& step, Preparation& p)
        : table_(p.matrix({step.weight, 0, all_rows(step, p)})), scale_(step.scale) {
        p.expect(step.out, table_.cols, Rows::tokens, "the output");
        p.check(table_.experts == 1, "an embedding of experts");
        p.check(table_.row_bytes <= UINT32_MAX, "rows too long");
        p.vocabulary = p.vocabulary ? std::min(p.vocabulary, table_.count) : table_.count;
        out_ = p.place(step.out);
        // Blocks are read 16 elements at a time, elements on their own 8.
        pieces_ = ceil_div(table_.cols, dtype_info(table_.dtype).quantised ? 16 : 8);
        pipeline_ = p.pipeline("embedding", kernel_name(table_.dtype));
        threads_ = whole_simdgroups(pipeline_, std::min(pieces_, 256u));
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t rows = submission.count(Rows::tokens);
        encoder.pipeline(pipeline_);
        encoder.constant(0, table_.data);
        encoder.constant(1, submission.tokens);
        encoder.write(2, out_);
        encoder.params(3, EmbeddingParams{table_.cols, rows, static_cast<uint32_t>(table_.row_bytes), scale_});
        encoder.dispatch(MTLSizeMake(ceil_div(pieces_, threads_), rows, 1), MTLSizeMake(threads_, 1, 1));
    }

  private:
    static uint32_t all_rows(const EmbeddingStep& step, const Preparation& p) {
        p.check(step.weight < p.program.weights.size(), "a weight that does not exist");
        return static_cast<uint32_t>(std::min<uint64_t>(p.program.weights[step.weight].rows, 0x7fffffffu));
    }

    const Matrix table_;
    const float scale_;
    Binding out_;
    uint32_t pieces_ = 0;
    id<MTLComputePipelineState> pipeline_ = nil;
    uint32_t threads_ = 0;
};

}  // namespace

std::unique_ptr<Operation> prepare(const EmbeddingStep& step, Preparation& preparation) {
    return std::make_unique<Embedding>(step, preparation);
}

}  // namespace metallic::metal
