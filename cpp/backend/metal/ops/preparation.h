#pragma once

#import <Metal/Metal.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "backend/metal/encoder.h"
#include "backend/metal/shader_library.h"
#include "backend/program_checks.h"

namespace metallic::metal {

class Context;
class PlanMemory;

// `experts` matrices of `count` rows of `cols` elements, in a weight's own layout.
struct Matrix {
    DType dtype = DType::F32;
    Binding data;  // from the first row of the view in expert 0 to the end of the weight
    uint64_t row_bytes = 0;
    uint64_t expert_bytes = 0;
    uint32_t cols = 0;
    uint32_t count = 0;
    uint32_t experts = 0;
};

// Compile-time look-ups: turns a program's ids into pipelines, bindings and sizes. See ProgramChecks for what is
// checked and how: fail, unsupported, check, value, expect, max_rows, group, kv_layout, rope, experts_of_ids,
// vocabulary.
class Preparation : public ProgramChecks {
  public:
    Preparation(const CompileInputs& inputs, PlanMemory& memory);

    const DeviceInfo& device;
    const Precision precision;  // float32, float16 or bfloat16, which the device has

    // The value's place: [max rows, width] of 4-byte elements.
    Binding place(ValueId id) const;

    // Checked against the weight's buffer, and aligned to what a kernel's loads of the type need.
    Matrix matrix(const WeightRows& rows) const;
    // The elements of a float weight as F32: in place where it is F32, else a copy that the plan keeps.
    Binding floats(WeightId id, uint64_t elements, const char* role);
    // Data that the plan keeps in device memory.
    Binding keep(std::span<const float> data, std::string_view label) { return keep(std::as_bytes(data), label); }
    Binding keep(std::span<const std::byte> data, std::string_view label);

    // The kernel `name` of shaders/<family>.metal, specialised. Cached: equal calls give the same pipeline, which lives
    // as long as the plan. Throws DeviceError with the compiler's text.
    id<MTLComputePipelineState> pipeline(std::string_view family, std::string_view name,
                                         std::span<const FunctionConstant> constants = {});

    // Device memory that operations may use while they run, shared by all operations of the plan; the encoder's
    // dependencies keep users apart.
    void reserve_scratch(uint64_t bytes);
    const Binding& scratch() const noexcept;  // a reference that stays valid, filled in after all steps are prepared

    // Batch memory that one submission of an operation takes at most, all its calls of BatchMemory::take together.
    void reserve_batch(uint64_t bytes);

  private:
    // A range of a weight, of this device.
    Binding bind_weight(WeightId id, uint64_t offset) const;

    Context& context_;
    PlanMemory& memory_;
};

}  // namespace metallic::metal
