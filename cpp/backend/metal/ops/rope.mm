#include "backend/metal/ops/rope.h"

#include <bit>
#include <cmath>

#include "backend/metal/ops/grid.h"
#include "backend/metal/ops/kv_place.h"
#include "params.h"

namespace metallic::metal {
namespace {

constexpr uint32_t kSimdgroups = 4;  // of a threadgroup; each has one head of one token

class Rope final : public Operation {
  public:
    Rope(const RopeStep& step, Preparation& p) : rotation_(p.rope(step.rope, step.head_size), p) {
        const uint32_t width = p.value(step.in).width;
        p.check(step.head_size > 0 && width % step.head_size == 0, "heads that do not divide the width");
        p.expect(step.in, width, Rows::tokens, "the input");
        p.expect(step.out, width, Rows::tokens, "the output");
        heads_ = width / step.head_size;
        p.check(uint64_t{p.max_rows(Rows::tokens)} * heads_ <= INT32_MAX, "too many heads for one grid");
        in_ = p.place(step.in);
        out_ = p.place(step.out);
        const FunctionConstant constants[] = {FunctionConstant::of(0, static_cast<uint32_t>(KvF32)),
                                              head_size_constant(step.head_size), rotation_.pairing(),
                                              rotation_.turned()};
        pipeline_ = p.pipeline("rope", "rope", constants);
        threads_ = whole_simdgroups(pipeline_, kSimdgroups * kSimdWidth);
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t rows = submission.count(Rows::tokens);
        encoder.pipeline(pipeline_);
        encoder.params(0, RopeParams{rows, heads_, {rotation_.magnitudes[0], rotation_.magnitudes[1]}});
        encoder.constant(1, submission.row_params);
        encoder.constant(2, submission.run_params);
        encoder.constant(3, rotation_.steps);
        encoder.read(4, in_);
        encoder.write(5, out_);
        encoder.dispatch(MTLSizeMake(ceil_div(rows * heads_, threads_ / kSimdWidth), 1, 1),
                         MTLSizeMake(threads_, 1, 1));
    }

  private:
    const Rotation rotation_;
    uint32_t heads_ = 0, threads_ = 0;
    Binding in_, out_;
    id<MTLComputePipelineState> pipeline_ = nil;
};

}  // namespace

uint64_t turn_step(float inverse_frequency) noexcept {
    // 1 / (2 pi) in binary: word i holds bits of weight 2^(-32 i - 1) and below.
    constexpr uint32_t kInverse[] = {0x28be60db, 0x9391054a, 0x7f09d5f4, 0x7d4d3770,
                                     0x36d8a566, 0x4f10e410, 0x7f9458ea};
    constexpr int kWords = std::size(kInverse);
    int exponent = 0;
    const float mantissa = std::frexp(std::abs(inverse_frequency), &exponent);
    const uint64_t factor = static_cast<uint64_t>(std::ldexp(mantissa, 24));  // frequency = factor * 2^(exponent - 24)
    uint32_t product[kWords + 1];  // factor / (2 pi): its whole part, then its fraction
    uint64_t carry = 0;
    for (int i = kWords; i-- > 0;) {
        carry += factor * kInverse[i];
        product[i + 1] = static_cast<uint32_t>(carry);
        carry >>= 32;
    }
    product[0] = static_cast<uint32_t>(carry);
    // Bit i of the product's fraction, counted from 0; negative ones are of its whole part.
    const auto bit = [&product](int i) -> uint64_t {
        const int at = i + 32;
        return at < 0 || at >= 32 * (kWords + 1) ? 0 : product[at / 32] >> (31 - at % 32) & 1;
    };
    uint64_t step = 0;
    for (int i = 0; i < 64; ++i) step = step << 1 | bit(exponent - 24 + i);
    step += bit(exponent - 24 + 64);
    return inverse_frequency < 0 ? uint64_t{0} - step : step;
}

Rotation::Rotation(const RopeTable& table, Preparation& preparation)
    : neox(table.pairing == RopePairing::neox), dims(table.dims) {
    const RopeTable::Variant* const variants[] = {
        &table.base, table.extended.inverse_frequencies.empty() ? &table.base : &table.extended};
    std::vector<uint32_t> words;
    for (int v = 0; v < 2; ++v) {
        magnitudes[v] = variants[v]->magnitude;
        for (const float frequency : variants[v]->inverse_frequencies) {
            preparation.check(std::isfinite(frequency), "a rotary table with a frequency that is no number");
            const uint64_t step = turn_step(frequency);
            words.push_back(static_cast<uint32_t>(step));
            words.push_back(static_cast<uint32_t>(step >> 32));
        }
    }
    steps = preparation.keep(std::as_bytes(std::span(words)), "rope/steps");
}

std::unique_ptr<Operation> prepare(const RopeStep& step, Preparation& preparation) {
    return std::make_unique<Rope>(step, preparation);
}

}  // namespace metallic::metal
