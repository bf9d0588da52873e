#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "backend/cpu/isa/select.h"
#include "backend/cpu/ops/operation.h"
#include "backend/program_checks.h"

namespace metallic::cpu {

// `experts` matrices of `count` rows of `cols` elements, in a weight's own layout.
struct Matrix {
    DType dtype = DType::F32;
    const std::byte* data = nullptr;  // the first row of the view in expert 0
    size_t row_bytes = 0;
    size_t expert_bytes = 0;
    uint32_t cols = 0;
    uint32_t count = 0;
    uint32_t experts = 0;
};

// Compile-time look-ups: turns a program's ids into pointers and sizes.
class Preparation : public ProgramChecks {
  public:
    Preparation(const CompileInputs& inputs, const Isa& isa, uint32_t threads);

    const MatmulKernels& matmul;
    const VectorKernels& vector;
    const uint32_t threads;
    const Precision precision;  // float32 or int8

    // Checked against the weight's buffer.
    Matrix matrix(const WeightRows& rows) const;
    // The elements of a float weight as F32: in place where it is F32 and aligned, else a copy that the plan keeps.
    const float* floats(WeightId id, uint64_t elements, const char* role);

    // Scratch that an operation needs while it runs: of each thread, or shared by all.
    void reserve_scratch(size_t bytes) { scratch_bytes = std::max(scratch_bytes, aligned_size(bytes)); }
    void reserve_shared(size_t bytes) { shared_bytes = std::max(shared_bytes, aligned_size(bytes)); }

    size_t scratch_bytes = 0;
    size_t shared_bytes = 0;
    std::vector<std::shared_ptr<const BufferView>> converted;

  private:
    const std::byte* weight_data(WeightId id) const;
};

}  // namespace metallic::cpu
