#pragma once

#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/preparation.h"
#include "params.h"

namespace metallic::metal {

std::unique_ptr<Operation> prepare(const LinearStep& step, Preparation& preparation);

// ---- shared with the mixture-of-experts step ----

// How a weight's type is called in the names of kernels ("q4_k"); null: there are none.
const char* kernel_type(DType dtype) noexcept;

// One launch: up to four weights of one type that share their input, or a gated pair of one type. See matmul.metal.
class MatmulLaunch {
  public:
    // What all launches of a step share.
    struct Input {
        Binding in;
        uint32_t cols = 0;
        bool norm = false, norm_weighted = false;
        Binding norm_weight;
        float epsilon = 0;
        Activation activation = Activation::silu;
        uint32_t experts = 0;  // 0: a plain product, of one matrix
        uint32_t pairs_per_input = 1;
    };
    struct Part {
        Matrix matrix;
        bool biased = false;
        Binding bias;
        uint32_t bias_stride = 0;  // elements from one expert's to the next
        Binding out;               // not of up in a gated pair
    };

    explicit MatmulLaunch(const Input& input) : input_(input) {}

    // Parts of one type are one launch. Parts that differ in type, as the values' projection does in many files, are
    // launches of their own without a barrier between them: they run at the same time, and each kernel keeps to the
    // registers and the code of one type. A gated pair of two types is the gate's product, then up's, which finishes.
    static std::vector<MatmulLaunch> divide(const Input& input, std::span<const Part> parts, bool gated);

    DType dtype() const noexcept { return parts_[0].matrix.dtype; }
    void add_residual(const Binding& residual) noexcept { residual_ = residual; }

    // Chooses pipelines: for encode_few of up to `max_rows` rows, and for encode_many if `many`.
    void compile(Preparation& preparation, uint32_t max_rows, bool many);

    // Up to kMatvecRows rows share a pass over the weights. `ids`: of experts, whose pairs make a pass each.
    void encode_few(Encoder& encoder, uint32_t rows, const Binding& ids = {}) const;
    // `aid`: 1 / root mean square of the rows, where there is a norm; of experts, what expert_group made.
    void encode_many(Encoder& encoder, uint32_t rows, uint32_t tiles, const Binding& aid) const;

  private:
    static constexpr std::array<uint32_t, 4> kFewRows{1, 2, 4, kMatvecRows};

    id<MTLComputePipelineState> pipeline(Preparation& preparation, const std::string& name, bool many) const;
    void bind(Encoder& encoder, const MatmulParams& params, bool many, const Binding& aid) const;
    // Places the parts along the grid of weight rows, in groups of `outputs` rows; gives their number.
    uint32_t place_parts(MatmulParams& params, uint32_t outputs) const noexcept;
    MatmulParams params(uint32_t rows) const noexcept;

    Input input_;
    std::array<Part, kMatmulParts> parts_;
    uint32_t count_ = 0;
    bool gated_ = false, gate_ready_ = false;
    Binding residual_;
    std::array<id<MTLComputePipelineState>, kFewRows.size()> few_{};
    id<MTLComputePipelineState> many_ = nil;
};

// Whether matrix products of many rows have a kernel of their own.
bool has_tiles(const Preparation& preparation) noexcept;

}  // namespace metallic::metal
