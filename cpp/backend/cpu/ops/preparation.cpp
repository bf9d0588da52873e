#include "backend/cpu/ops/preparation.h"

#include "core/dequantise.h"
#include "core/error.h"

namespace metallic::cpu {
namespace {

// Bytes of all rows of a weight; 0 when the product does not fit 64 bits or the shape is not of whole blocks.
uint64_t weight_bytes(const Weight& weight) noexcept {
    const DTypeInfo& info = dtype_info(weight.dtype);
    if (weight.cols % info.block_elements != 0) return 0;
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(weight.cols / info.block_elements, uint64_t{info.block_bytes}, &bytes) ||
        __builtin_mul_overflow(bytes, weight.rows, &bytes) || __builtin_mul_overflow(bytes, weight.experts, &bytes)) {
        return 0;
    }
    return bytes;
}

}  // namespace

Preparation::Preparation(const CompileInputs& inputs_, const Isa& isa, uint32_t threads_)
    : inputs(inputs_),
      program(*inputs_.program),
      matmul(*isa.matmul),
      vector(*isa.vector),
      threads(threads_),
      experts_of_ids(inputs_.program->values.size(), 0) {}

void Preparation::fail(const std::string& what) const {
    const std::string scope = step_ ? program.scopes.path(step_->scope) : std::string();
    throw Error((scope.empty() ? "" : scope + ": ") + (step_ ? std::string(step_name(step_->op)) + ": " : "") + what);
}

void Preparation::unsupported(const std::string& what) const {
    throw UnsupportedModelError((step_ ? program.scopes.path(step_->scope) + ": " : "") + what);
}

const Value& Preparation::value(ValueId id) const {
    check(id < program.values.size(), "a value that does not exist");
    return program.values[id];
}

void Preparation::expect(ValueId id, uint64_t width, Rows rows, const char* role) const {
    const Value& found = value(id);
    if (found.width != width) {
        fail(std::string(role) + " is " + std::to_string(found.width) + " wide, not " + std::to_string(width));
    }
    if (found.rows != rows) fail(std::string(role) + " has rows of another kind than the step");
}

const Weight& Preparation::weight(WeightId id) const {
    check(id < program.weights.size() && id < inputs.weights.size(), "a weight that does not exist");
    return program.weights[id];
}

const std::byte* Preparation::weight_data(WeightId id) const {
    const Weight& found = weight(id);
    const BufferView& view = inputs.weights[id];
    const uint64_t bytes = weight_bytes(found);
    if (bytes == 0) fail("weight " + found.name + " has an impossible shape");
    if (!view.heap || view.offset > view.heap->bytes() || view.bytes > view.heap->bytes() - view.offset ||
        view.bytes < bytes) {
        fail("weight " + found.name + " needs " + std::to_string(bytes) + " bytes, its buffer has " +
             std::to_string(view.heap ? view.bytes : 0));
    }
    return reinterpret_cast<const std::byte*>(view.address());
}

Matrix Preparation::matrix(const WeightRows& rows) const {
    const Weight& found = weight(rows.weight);
    const std::byte* data = weight_data(rows.weight);
    if (found.dtype == DType::I32) unsupported("weight " + found.name + " is of type I32");
    if (found.cols > 0x7fffffffu || found.experts > 0x7fffffffu) fail("weight " + found.name + " is too large");
    if (rows.first > found.rows || rows.count > found.rows - rows.first || rows.count == 0) {
        fail("rows outside of weight " + found.name);
    }
    const size_t alignment = found.dtype == DType::F32 ? 4 : dtype_info(found.dtype).quantised ? 1 : 2;
    if (reinterpret_cast<uint64_t>(data) % alignment != 0) fail("weight " + found.name + " is not aligned");
    Matrix result;
    result.dtype = found.dtype;
    result.row_bytes = row_bytes(found.dtype, found.cols);
    result.expert_bytes = result.row_bytes * found.rows;
    result.data = data + rows.first * result.row_bytes;
    result.cols = static_cast<uint32_t>(found.cols);
    result.count = rows.count;
    result.experts = static_cast<uint32_t>(found.experts);
    return result;
}

const float* Preparation::floats(WeightId id, uint64_t elements, const char* role) {
    const Weight& found = weight(id);
    const std::byte* data = weight_data(id);
    if (dtype_info(found.dtype).quantised || found.dtype == DType::I32) {
        unsupported(std::string(role) + " " + found.name + " of type " + std::string(dtype_info(found.dtype).name) +
                    "; F32, F16 and BF16 are supported");
    }
    // weight_data has shown that the product does not overflow.
    const uint64_t held = found.cols * found.rows * found.experts;
    if (held < elements) {
        fail(std::string(role) + " " + found.name + " has " + std::to_string(held) + " elements, not " +
             std::to_string(elements));
    }
    if (found.dtype == DType::F32 && reinterpret_cast<uint64_t>(data) % alignof(float) == 0) {
        return reinterpret_cast<const float*>(data);
    }
    converted.push_back(std::make_unique<float[]>(elements));
    dequantise_row(found.dtype, data, elements, converted.back().get());
    return converted.back().get();
}

const CacheGroup& Preparation::group(uint32_t index, uint32_t layer) const {
    check(index < program.groups.size() && index < inputs.kv.size(), "a cache group that does not exist");
    const CacheGroup& found = program.groups[index];
    check(layer < found.layers, "a layer outside of its cache group");
    check(found.kv_heads > 0 && found.head_size > 0, "a cache group without heads");
    const KvLayout& layout = inputs.kv[index];
    if (layout.dtype != DType::F32 && layout.dtype != DType::F16 && layout.dtype != DType::BF16 &&
        layout.dtype != DType::Q8_0) {
        unsupported("keys and values of type " + std::string(dtype_info(layout.dtype).name));
    }
    const KvLayout wanted = KvLayout::of(found, layout.dtype);
    check(layout.kv_heads == wanted.kv_heads && layout.head_size == wanted.head_size &&
              layout.layers == wanted.layers && layout.row_bytes == wanted.row_bytes &&
              layout.head_bytes == wanted.head_bytes && layout.side_bytes == wanted.side_bytes &&
              layout.page_bytes == wanted.page_bytes,
          "a page layout that does not fit its cache group");
    return found;
}

const RopeTable& Preparation::rope(RopeId id, uint32_t head_size) const {
    check(id < program.ropes.size(), "a rotary table that does not exist");
    const RopeTable& found = program.ropes[id];
    check(found.dims % 2 == 0 && found.dims > 0 && found.dims <= head_size, "a rotary table wider than a head");
    check(found.base.inverse_frequencies.size() == found.dims / 2, "a rotary table with missing frequencies");
    check(found.extended.inverse_frequencies.empty() || found.extended.inverse_frequencies.size() == found.dims / 2,
          "a rotary table with missing extended frequencies");
    return found;
}

}  // namespace metallic::cpu
