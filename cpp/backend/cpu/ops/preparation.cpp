#include "backend/cpu/ops/preparation.h"

#include "backend/allocator.h"
#include "core/dequantise.h"

namespace metallic::cpu {
namespace {

// Up to here `auto` is exact: products of so few weights take little time in any case, and then a small model, such as
// the demo, gives the same text on every device. Above, decoding is bound by reading weights, which int8 does best.
constexpr uint64_t kMostExactBytes = uint64_t{32} << 20;

Precision choose_precision(const CompileInputs& inputs) {
    constexpr Precision kSupported[] = {Precision::float32, Precision::int8};
    check_precision(inputs.precision, kSupported, "cpu");
    if (inputs.precision != Precision::automatic) return inputs.precision;
    const std::vector<Weight>& weights = inputs.program->weights;
    uint64_t bytes = 0;
    for (size_t i = 0; i < std::min(weights.size(), inputs.weights.size()); ++i) {
        if (weights[i].rows > 1 || weights[i].experts > 1) bytes += inputs.weights[i].bytes;
    }
    return bytes <= kMostExactBytes ? Precision::float32 : Precision::int8;
}

}  // namespace

Preparation::Preparation(const CompileInputs& inputs_, const Isa& isa, uint32_t threads_)
    : ProgramChecks(inputs_),
      matmul(*isa.matmul),
      vector(*isa.vector),
      threads(threads_),
      precision(choose_precision(inputs_)) {}

const std::byte* Preparation::weight_data(WeightId id) const {
    return reinterpret_cast<const std::byte*>(weight_view(id).address());
}

Matrix Preparation::matrix(const WeightRows& rows) const {
    uint64_t offset = 0;
    const Weight& found = weight_rows(rows, &offset);
    const std::byte* data = weight_data(rows.weight);
    const size_t alignment = found.dtype == DType::F32 ? 4 : dtype_info(found.dtype).quantised ? 1 : 2;
    if (reinterpret_cast<uint64_t>(data) % alignment != 0) fail("weight " + found.name + " is not aligned");
    Matrix result;
    result.dtype = found.dtype;
    result.row_bytes = row_bytes(found.dtype, found.cols);
    result.expert_bytes = result.row_bytes * found.rows;
    result.data = data + offset;
    result.cols = static_cast<uint32_t>(found.cols);
    result.count = rows.count;
    result.experts = static_cast<uint32_t>(found.experts);
    return result;
}

const float* Preparation::floats(WeightId id, uint64_t elements, const char* role) {
    const Weight& found = float_weight(id, elements, role);
    const std::byte* data = weight_data(id);
    if (found.dtype == DType::F32 && reinterpret_cast<uint64_t>(data) % alignof(float) == 0) {
        return reinterpret_cast<const float*>(data);
    }
    converted.push_back(inputs.allocator->allocate(elements * sizeof(float), Storage::shared, Tag::weights, found.name,
                                                   Contents::undefined));
    auto* const values = reinterpret_cast<float*>(converted.back()->host());
    dequantise_row(found.dtype, data, elements, values);
    return values;
}

}  // namespace metallic::cpu
