#include "backend/metal/ops/copy.h"

#include <algorithm>

#include "backend/metal/ops/grid.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kQuadBytes = 16;

class Select final : public Operation {
  public:
    Select(const SelectStep& step, Preparation& p) : width_(p.value(step.in).width) {
        p.expect(step.in, width_, Rows::tokens, "the input");
        p.expect(step.out, width_, Rows::outputs, "the output");
        p.experts_of_ids[step.out] = p.experts_of_ids[step.in];
        in_ = p.place(step.in);
        out_ = p.place(step.out);
        pipeline_ = p.pipeline("copy", "select_rows");
        threads_ = whole_simdgroups(pipeline_, std::min(width_, kThreads));
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t rows = submission.count(Rows::outputs);
        encoder.pipeline(pipeline_);
        encoder.read(0, in_);
        encoder.constant(1, submission.output_rows);
        encoder.write(2, out_);
        encoder.params(3, SelectParams{width_, rows});
        encoder.dispatch(MTLSizeMake(ceil_div(width_, threads_), rows, 1), MTLSizeMake(threads_, 1, 1));
    }

  private:
    const uint32_t width_;
    Binding in_, out_;
    id<MTLComputePipelineState> pipeline_ = nil;
    uint32_t threads_ = 0;
};

const char* cast_kernel(DType from, DType to) noexcept {
    if (from == DType::F32 && to == DType::F16) return "f32_to_f16";
    if (from == DType::F32 && to == DType::BF16) return "f32_to_bf16";
    if (from == DType::F16 && to == DType::F32) return "f16_to_f32";
    if (from == DType::BF16 && to == DType::F32) return "bf16_to_f32";
    return nullptr;
}

}  // namespace

std::unique_ptr<Operation> prepare(const SelectStep& step, Preparation& preparation) {
    return std::make_unique<Select>(step, preparation);
}

Cast::Cast(DType from, DType to, Preparation& p) {
    const char* const kernel = cast_kernel(from, to);
    p.check(kernel != nullptr, "a cast between types that there is no kernel for");
    pipeline_ = p.pipeline("copy", kernel);
}

void Cast::encode(Encoder& encoder, const Binding& from, const Binding& to, uint32_t count) const {
    if (count == 0) return;
    encoder.pipeline(pipeline_);
    encoder.read(0, from);
    encoder.write(1, to);
    encoder.params(2, count);
    const uint32_t threads = whole_simdgroups(pipeline_, kThreads);
    encoder.dispatch(MTLSizeMake(ceil_div(count, threads), 1, 1), MTLSizeMake(threads, 1, 1));
}

PageMoves::PageMoves(uint32_t group, Preparation& p) : group_(group) {
    layers_ = p.group(group, 0).layers;
    const uint64_t bytes = p.kv_layout(group).page_bytes;
    p.check(bytes % kQuadBytes == 0 && bytes / kQuadBytes <= UINT32_MAX, "pages of an impossible size");
    page_quads_ = static_cast<uint32_t>(bytes / kQuadBytes);
    pipeline_ = p.pipeline("copy", "move_pages");
}

void PageMoves::encode(Encoder& encoder, const Binding& addresses, uint32_t moves) const {
    if (moves == 0) return;
    encoder.pipeline(pipeline_);
    encoder.constant(0, addresses);
    encoder.params(1, MoveParams{page_quads_, moves});
    for (uint32_t layer = 0; layer < layers_; ++layer) {
        encoder.reads_pages(group_, layer);
        encoder.writes_pages(group_, layer);
    }
    const uint32_t threads = whole_simdgroups(pipeline_, std::min(page_quads_, kThreads));
    encoder.dispatch(MTLSizeMake(ceil_div(page_quads_, threads), moves, 1), MTLSizeMake(threads, 1, 1));
}

}  // namespace metallic::metal
