#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace metallic {

// Compile-time look-ups that every backend makes: turns a program's ids into its parts and checks all that a kernel may
// rely on. Every failed check throws Error with the step's scope.
class ProgramChecks {
  public:
    explicit ProgramChecks(const CompileInputs& inputs);

    const CompileInputs& inputs;
    const Program& program;

    void enter(const Step& step) noexcept { step_ = &step; }
    // The scope of the step that was entered.
    std::string scope() const { return step_ ? program.scopes.path(step_->scope) : std::string(); }
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
    uint64_t value_bytes(ValueId id) const;

    const Weight& weight(WeightId id) const;
    // The weight's bytes, all there: [experts, rows, cols].
    BufferView weight_view(WeightId id) const;
    // Checks that the rows exist and that a kernel can count them; `offset` is where they begin in weight_view.
    const Weight& weight_rows(const WeightRows& rows, uint64_t* offset) const;
    // Checks that the weight has at least so many elements of a float type.
    const Weight& float_weight(WeightId id, uint64_t elements, const char* role) const;

    const CacheGroup& group(uint32_t index, uint32_t layer) const;
    const KvLayout& kv_layout(uint32_t index) const { return inputs.kv[index]; }
    const RopeTable& rope(RopeId id, uint32_t head_size) const;

    // Checks what holds for a program as a whole; before its steps.
    void check_program();
    // Checks that all values that steps use lie in the arena, and apart where a step needs that; after its steps.
    void check_values();

    // Which values hold expert ids, and of how many experts; 0 for all others.
    std::vector<uint32_t> experts_of_ids;
    uint32_t vocabulary = 0;  // the least number of rows of any embedding; 0: there is none

  private:
    void check_apart(const Step& step) const;

    const Step* step_ = nullptr;
};

// Of which kind the rows are that a step computes.
Rows rows_of(const StepOp& op, const Program& program);

}  // namespace metallic
