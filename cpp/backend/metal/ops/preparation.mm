#include "backend/metal/ops/preparation.h"

#include "backend/metal/context.h"
#include "backend/metal/plan_memory.h"
#include "core/dequantise.h"

namespace metallic::metal {
namespace {

// Kernels load a type's bytes in the largest words, up to four bytes, that all blocks of a row keep aligned.
uint64_t alignment_of(DType dtype) {
    const uint32_t bytes = dtype_info(dtype).block_bytes;
    return bytes % 4 == 0 ? 4 : bytes % 2 == 0 ? 2 : 1;
}

// What `auto` stands for is float32. Throws RequestError for what the device has no arithmetic for.
Precision choose_precision(Precision wanted, const DeviceInfo& device) {
    std::vector<Precision> supported{Precision::float32};
    if (device.half_arithmetic) supported.push_back(Precision::float16);
    if (device.bfloat16_arithmetic) supported.push_back(Precision::bfloat16);
    check_precision(wanted, supported, device.backend);
    return wanted == Precision::automatic ? Precision::float32 : wanted;
}

}  // namespace

Preparation::Preparation(const CompileInputs& inputs_, PlanMemory& memory)
    : ProgramChecks(inputs_),
      device(memory.context().info),
      precision(choose_precision(inputs_.precision, device)),
      context_(memory.context()),
      memory_(memory) {}

Binding Preparation::place(ValueId id) const {
    value(id);
    if (id == program.logits) return memory_.logits();
    MetalHeap* const heap = metal_heap(inputs.arena, context_);
    check(heap, "an arena of another device");
    return heap->bind(inputs.arena.offset + inputs.arena_layout.offsets[id], value_bytes(id));
}

Binding Preparation::bind_weight(WeightId id, uint64_t offset) const {
    const BufferView view = weight_view(id);
    MetalHeap* const heap = metal_heap(view, context_);
    check(heap, "a weight of another device");
    heap->settle();
    const Binding whole = heap->bind(view.offset, view.bytes);
    memory_.borrow(whole, scope() + " (" + weight(id).name + ")");
    return whole.at(offset);
}

Matrix Preparation::matrix(const WeightRows& rows) const {
    uint64_t offset = 0;
    const Weight& found = weight_rows(rows, &offset);
    Matrix result;
    result.dtype = found.dtype;
    result.row_bytes = row_bytes(found.dtype, found.cols);
    result.expert_bytes = result.row_bytes * found.rows;
    result.data = bind_weight(rows.weight, offset);
    result.cols = static_cast<uint32_t>(found.cols);
    result.count = rows.count;
    result.experts = static_cast<uint32_t>(found.experts);
    if (result.data.offset % alignment_of(found.dtype) != 0) fail("weight " + found.name + " is not aligned");
    return result;
}

Binding Preparation::floats(WeightId id, uint64_t elements, const char* role) {
    const Weight& found = float_weight(id, elements, role);
    if (found.dtype == DType::F32) {
        const Binding data = bind_weight(id, 0);
        if (data.offset % sizeof(float) == 0) return data.at(0, elements * sizeof(float));
    }
    BufferView view = weight_view(id);
    view.bytes = elements * row_bytes(found.dtype, 1);
    std::vector<std::byte> raw(view.bytes);
    memory_.transfers().download(view, raw);
    std::vector<float> converted(elements);
    dequantise_row(found.dtype, raw.data(), elements, converted.data());
    return keep(converted, role);
}

Binding Preparation::keep(std::span<const std::byte> data, std::string_view label) {
    return memory_.keep(data, label);
}

id<MTLComputePipelineState> Preparation::pipeline(std::string_view family, std::string_view name,
                                                  std::span<const FunctionConstant> constants) {
    return context_.shaders().pipeline(family, name, constants);
}

void Preparation::reserve_scratch(uint64_t bytes) {
    memory_.reserve_scratch(bytes);
}

const Binding& Preparation::scratch() const noexcept {
    return memory_.scratch();
}

void Preparation::reserve_batch(uint64_t bytes) {
    memory_.reserve_batch(bytes);
}

}  // namespace metallic::metal
