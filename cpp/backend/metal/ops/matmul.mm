#include "backend/metal/ops/matmul.h"

#include <algorithm>
#include <string>
#include <vector>

#include "backend/metal/ops/grid.h"

namespace metallic::metal {

const char* kernel_type(DType dtype) noexcept {
    switch (dtype) {
        case DType::F32:
            return "f32";
        case DType::F16:
            return "f16";
        case DType::BF16:
            return "bf16";
        case DType::Q4_0:
            return "q4_0";
        case DType::Q4_1:
            return "q4_1";
        case DType::Q5_0:
            return "q5_0";
        case DType::Q5_1:
            return "q5_1";
        case DType::Q8_0:
            return "q8_0";
        case DType::IQ4_NL:
            return "iq4_nl";
        case DType::MXFP4:
            return "mxfp4";
        case DType::Q2_K:
            return "q2_k";
        case DType::Q3_K:
            return "q3_k";
        case DType::Q4_K:
            return "q4_k";
        case DType::Q5_K:
            return "q5_k";
        case DType::Q6_K:
            return "q6_k";
        case DType::IQ4_XS:
            return "iq4_xs";
        case DType::I32:
            break;
    }
    return nullptr;
}

bool has_tiles(const Preparation& preparation) noexcept {
    return preparation.device.matrix_units;
}

namespace {

// What the tiles of both operands hold.
const char* staging(const Preparation& preparation) {
    if (preparation.precision == Precision::float16) return "half";
    return preparation.precision == Precision::bfloat16 ? "bfloat" : "float";
}

// Where kernels of matmul.metal expect their arguments.
enum Slot : uint32_t {
    kParams,
    kIn,
    kNormWeight,
    kRowScale,
    kResidual,
    kIndex,
    kWeights,  // of four parts
    kUp = kWeights + kMatmulParts,
    kBiases,
    kUpBias = kBiases + kMatmulParts,
    kOuts,
};

}  // namespace

std::vector<MatmulLaunch> MatmulLaunch::divide(const Input& input, std::span<const Part> parts, bool gated) {
    std::vector<MatmulLaunch> launches;
    const auto append = [&](const Part& part) -> MatmulLaunch& {
        MatmulLaunch& launch = launches.emplace_back(input);
        launch.parts_[launch.count_++] = part;
        return launch;
    };
    if (gated) {
        MatmulLaunch& first = append(parts[0]);
        if (parts[0].matrix.dtype != parts[1].matrix.dtype) {
            append(parts[1]).gate_ready_ = true;
            return launches;
        }
        first.parts_[first.count_++] = parts[1];
        first.gated_ = true;
        return launches;
    }
    for (const Part& part : parts) {
        const auto found = std::find_if(launches.begin(), launches.end(), [&](const MatmulLaunch& launch) {
            return launch.dtype() == part.matrix.dtype;
        });
        if (found == launches.end()) {
            append(part);
        } else {
            found->parts_[found->count_++] = part;
        }
    }
    return launches;
}

id<MTLComputePipelineState> MatmulLaunch::pipeline(Preparation& preparation, const std::string& name, bool many) const {
    const auto has_part = [&](uint32_t i) { return i < count_ && !(gated_ && i > 0); };
    const auto biased = [&](uint32_t i) { return has_part(i) && parts_[i].biased; };
    const bool constants_of[] = {input_.norm,
                                 input_.norm_weighted,
                                 many && input_.norm,
                                 has_part(1),
                                 has_part(2),
                                 has_part(3),
                                 biased(0),
                                 biased(1),
                                 biased(2),
                                 biased(3),
                                 gated_,
                                 gated_ && parts_[1].biased,
                                 gate_ready_,
                                 residual_.buffer != nil,
                                 input_.experts > 0};
    std::vector<FunctionConstant> constants;
    for (const bool value : constants_of) {
        constants.push_back(FunctionConstant::of(static_cast<uint32_t>(constants.size()), value));
    }
    // Where it matters: equal constants share a pipeline.
    const Activation activation = gated_ || gate_ready_ ? input_.activation : Activation::silu;
    constants.push_back(
        FunctionConstant::of(static_cast<uint32_t>(constants.size()), static_cast<uint32_t>(activation)));
    const id<MTLComputePipelineState> state = preparation.pipeline("matmul", name, constants);
    const uint32_t threads = many ? kMatmulThreads : kMatvecSimdgroups * kSimdWidth;
    if ([state maxTotalThreadsPerThreadgroup] < threads) preparation.unsupported("a device too small for " + name);
    return state;
}

void MatmulLaunch::compile(Preparation& preparation, uint32_t max_rows, bool many) {
    const char* const type = kernel_type(dtype());
    preparation.check(type != nullptr, "a weight of a type without products");
    uint32_t fewest = 1;  // rows for which a variant is the best
    for (size_t i = 0; i < kFewRows.size() && fewest <= max_rows; fewest = kFewRows[i++] + 1) {
        few_[i] = pipeline(preparation, std::string("matvec_") + type + "_" + std::to_string(kFewRows[i]), false);
        if (input_.experts > 0) break;  // pairs do not share weights
    }
    if (many) many_ = pipeline(preparation, std::string("matmul_") + type + "_" + staging(preparation), true);
}

MatmulParams MatmulLaunch::params(uint32_t rows) const noexcept {
    MatmulParams params{};
    for (uint32_t i = 0; i < count_; ++i) {
        const Matrix& matrix = parts_[i].matrix;
        params.parts[i] = {matrix.expert_bytes, static_cast<uint32_t>(matrix.row_bytes), matrix.count, 0,
                           parts_[i].bias_stride};
    }
    params.rows = rows;
    params.cols = input_.cols;
    params.epsilon = input_.epsilon;
    params.pairs_per_input = input_.pairs_per_input;
    params.experts = input_.experts;
    return params;
}

uint32_t MatmulLaunch::place_parts(MatmulParams& params, uint32_t outputs) const noexcept {
    uint32_t groups = 0;
    for (uint32_t i = 0; i < (gated_ ? 1 : count_); ++i) {
        params.parts[i].first_group = groups;
        groups += ceil_div(params.parts[i].count, outputs);
    }
    return groups;
}

void MatmulLaunch::bind(Encoder& encoder, const MatmulParams& params, bool many, const Binding& aid) const {
    encoder.params(kParams, params);
    encoder.read(kIn, input_.in);
    if (input_.norm_weighted) encoder.constant(kNormWeight, input_.norm_weight);
    if (input_.norm && many) encoder.read(kRowScale, aid);
    if (residual_.buffer) encoder.read(kResidual, residual_);
    if (input_.experts > 0) encoder.read(kIndex, aid);
    for (uint32_t i = 0; i < count_; ++i) {
        const Part& part = parts_[i];
        const bool up = gated_ && i == 1;
        encoder.constant(up ? kUp : kWeights + i, part.matrix.data);
        if (part.biased) encoder.constant(up ? kUpBias : kBiases + i, part.bias);
        if (up) continue;
        if (gate_ready_) {
            encoder.read_write(kOuts + i, part.out);
        } else {
            encoder.write(kOuts + i, part.out);
        }
    }
}

void MatmulLaunch::encode_few(Encoder& encoder, uint32_t rows, const Binding& ids) const {
    size_t variant = 0;
    while (input_.experts == 0 && kFewRows[variant] < rows && variant + 1 < kFewRows.size()) ++variant;
    const uint32_t weights = matvec_weights(kFewRows[variant]);
    MatmulParams values = params(rows);
    const uint32_t groups = place_parts(values, kMatvecSimdgroups * (gated_ ? weights / 2 : weights));
    encoder.pipeline(few_[variant]);
    bind(encoder, values, false, ids);
    const bool pairs = input_.experts > 0;
    encoder.dispatch(MTLSizeMake(groups, pairs ? 1 : ceil_div(rows, kFewRows[variant]), pairs ? rows : 1),
                     MTLSizeMake(kMatvecSimdgroups * kSimdWidth, 1, 1));
}

void MatmulLaunch::encode_many(Encoder& encoder, uint32_t rows, uint32_t tiles, const Binding& aid) const {
    MatmulParams values = params(rows);
    values.order = tiles * static_cast<uint32_t>(sizeof(ExpertTile) / sizeof(uint32_t));
    const uint32_t groups = place_parts(values, gated_ ? kMatmulTileWeights / 2 : kMatmulTileWeights);
    encoder.pipeline(many_);
    bind(encoder, values, true, aid);
    encoder.dispatch(MTLSizeMake(tiles, groups, 1), MTLSizeMake(kMatmulThreads, 1, 1));
}

namespace {

class Linear final : public Operation {
  public:
    Linear(const LinearStep& step, Preparation& p) : rows_(p.value(step.in).rows), has_tiles_(has_tiles(p)) {
        p.check(step.part_count >= 1 && step.part_count <= kMaxLinearParts, "a wrong number of parts");
        input_.in = p.place(step.in);
        input_.cols = p.value(step.in).width;
        p.check(fours({input_.in}), "an input that is not aligned");
        input_.activation = step.activation;
        prepare_norm(step.norm, p);
        std::vector<MatmulLaunch::Part> parts;
        for (uint32_t i = 0; i < step.part_count; ++i) parts.push_back(part(step, step.parts[i], p));
        if (step.gated) {
            p.check(parts.size() == 2 && parts[0].matrix.count == parts[1].matrix.count, "gate and up that differ");
            p.check(step.residual == kNone, "a gated product with a residual");
            p.expect(step.gated_out, parts[0].matrix.count, rows_, "the gated output");
            parts[0].out = parts[1].out = p.place(step.gated_out);
        }
        launches_ = MatmulLaunch::divide(input_, parts, step.gated);
        if (step.residual != kNone) {
            p.check(step.part_count == 1, "a residual of several parts");
            p.expect(step.residual, parts[0].matrix.count, rows_, "the residual");
            launches_[0].add_residual(p.place(step.residual));
        }
        for (MatmulLaunch& launch : launches_) launch.compile(p, p.max_rows(rows_), is_many(p.max_rows(rows_)));
    }

    void encode(Encoder& encoder, const Submission& submission) const override {
        const uint32_t rows = submission.count(rows_);
        if (!is_many(rows)) {
            for (const MatmulLaunch& launch : launches_) launch.encode_few(encoder, rows);
            return;
        }
        if (input_.norm) encode_row_scale(encoder, rows);
        const uint32_t tiles = ceil_div(rows, kMatmulTileRows);
        const Binding scale = input_.norm ? scratch_->at(0, uint64_t{rows} * sizeof(float)) : Binding{};
        for (const MatmulLaunch& launch : launches_) launch.encode_many(encoder, rows, tiles, scale);
    }

  private:
    // Up to kMatvecRows rows share one pass over the weights, which is what a product of few rows costs. The tiles of
    // more rows have the arithmetic of 32.
    bool is_many(uint32_t rows) const noexcept { return has_tiles_ && rows > kMatvecRows; }

    void prepare_norm(const NormPrologue& norm, Preparation& p) {
        input_.norm = norm.enabled;
        input_.epsilon = norm.epsilon;
        input_.norm_weighted = norm.enabled && norm.weight != kNone;
        if (input_.norm_weighted) input_.norm_weight = p.floats(norm.weight, input_.cols, "norm weight");
        if (!norm.enabled || !is_many(p.max_rows(rows_))) return;
        row_scale_ = p.pipeline("matmul", "row_scale");
        p.reserve_scratch(uint64_t{p.max_rows(rows_)} * sizeof(float));
        scratch_ = &p.scratch();
    }

    MatmulLaunch::Part part(const LinearStep& step, const LinearPart& source, Preparation& p) const {
        MatmulLaunch::Part part;
        part.matrix = p.matrix(source.weight);
        p.check(part.matrix.cols == input_.cols, "a weight that does not fit the input's width");
        p.check(part.matrix.experts == 1, "a weight that holds experts");
        p.check(part.matrix.row_bytes <= UINT32_MAX, "a weight whose rows are too long");
        if (source.bias != kNone) {
            part.biased = true;
            const uint64_t end = uint64_t{source.weight.first} + source.weight.count;
            part.bias = p.floats(source.bias, end, "bias").at(source.weight.first * sizeof(float));
        }
        p.check(step.gated == (source.out == kNone), "a part's output is missing, or one too many");
        if (step.gated) return part;
        p.expect(source.out, part.matrix.count, rows_, "the output");
        part.out = p.place(source.out);
        return part;
    }

    void encode_row_scale(Encoder& encoder, uint32_t rows) const {
        encoder.pipeline(row_scale_);
        encoder.params(0, RowScaleParams{rows, input_.cols, input_.epsilon});
        encoder.read(1, input_.in);
        encoder.write(2, scratch_->at(0, uint64_t{rows} * sizeof(float)));
        encoder.dispatch(MTLSizeMake(ceil_div(rows, kRowScaleSimdgroups), 1, 1),
                         MTLSizeMake(kRowScaleSimdgroups * kSimdWidth, 1, 1));
    }

    const Rows rows_;
    const bool has_tiles_;
    MatmulLaunch::Input input_;
    std::vector<MatmulLaunch> launches_;
    id<MTLComputePipelineState> row_scale_ = nil;
    const Binding* scratch_ = nullptr;
};

}  // namespace

std::unique_ptr<Operation> prepare(const LinearStep& step, Preparation& preparation) {
    return std::make_unique<Linear>(step, preparation);
}

}  // namespace metallic::metal
