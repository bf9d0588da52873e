#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/isa/select.h"
#include "backend/cpu/ops/operation.h"

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

// Compile-time look-ups: turns a program's ids into pointers and sizes, and checks everything that a kernel relies on.
// Every failed check throws Error with the step's scope.
class Preparation {
  public:
    Preparation(const CompileInputs& inputs, const Isa& isa, uint32_t threads);

    const CompileInputs& inputs;
    const Program& program;
    const MatmulKernels& matmul;
    const VectorKernels& vector;
    const uint32_t threads;

    void enter(const Step& step) noexcept { step_ = &step; }
    [[noreturn]] void fail(const std::string& what) const;
    [[noreturn]] void unsupported(const std::string& what) const;
    void check(bool holds, const char* what) const {
        if (!holds) fail(what);
    }

    const Value& value(ValueId id) const;
    // Checks that the value exists and has this shape.
    void expect(ValueId id, uint64_t width, Rows rows, const char* role) const;
    uint32_t max_rows(Rows rows) const noexcept {
        return rows == Rows::tokens ? inputs.max_tokens : inputs.max_outputs;
    }

    // Checked against the weight's buffer.
    Matrix matrix(const WeightRows& rows) const;
    // The elements of a float weight as F32: in place where it is F32 and aligned, else a copy that the plan keeps.
    const float* floats(WeightId id, uint64_t elements, const char* role);
    const CacheGroup& group(uint32_t index, uint32_t layer) const;
    const KvLayout& kv_layout(uint32_t index) const { return inputs.kv[index]; }
    const RopeTable& rope(RopeId id, uint32_t head_size) const;

    // Scratch that an operation needs while it runs: of each thread, or shared by all.
    void reserve_scratch(size_t bytes) { scratch_bytes = std::max(scratch_bytes, aligned_size(bytes)); }
    void reserve_shared(size_t bytes) { shared_bytes = std::max(shared_bytes, aligned_size(bytes)); }

    // Which values hold expert ids, and of how many experts; 0 for all others.
    std::vector<uint32_t> experts_of_ids;

    size_t scratch_bytes = 0;
    size_t shared_bytes = 0;
    uint32_t vocabulary = 0;  // the least number of rows of any embedding; 0: there is none
    std::vector<std::unique_ptr<float[]>> converted;

  private:
    const Weight& weight(WeightId id) const;
    const std::byte* weight_data(WeightId id) const;

    const Step* step_ = nullptr;
};

}  // namespace metallic::cpu
