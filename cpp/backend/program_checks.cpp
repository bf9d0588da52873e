#include "backend/program_checks.h"

#include "core/error.h"

namespace metallic {
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

// Steps that read other elements than the ones they write, and so cannot work in place.
bool needs_apart(const StepOp& op) {
    return std::holds_alternative<LinearStep>(op) || std::holds_alternative<ExpertLinearStep>(op) ||
           std::holds_alternative<AttentionStep>(op) || std::holds_alternative<CombineStep>(op) ||
           std::holds_alternative<RouteStep>(op) || std::holds_alternative<SelectStep>(op);
}

}  // namespace

Rows rows_of(const StepOp& op, const Program& program) {
    Rows rows = Rows::tokens;
    for_each_write(op, [&](ValueId id) { rows = program.values[id].rows; });
    return rows;
}

ProgramChecks::ProgramChecks(const CompileInputs& inputs_)
    : inputs(inputs_), program(*inputs_.program), experts_of_ids(inputs_.program->values.size(), 0) {}

void ProgramChecks::fail(const std::string& what) const {
    const std::string where = scope();
    throw Error((where.empty() ? "" : where + ": ") + (step_ ? std::string(step_name(step_->op)) + ": " : "") + what);
}

void ProgramChecks::unsupported(const std::string& what) const {
    throw UnsupportedModelError((step_ ? scope() + ": " : "") + what);
}

const Value& ProgramChecks::value(ValueId id) const {
    check(id < program.values.size(), "a value that does not exist");
    return program.values[id];
}

void ProgramChecks::expect(ValueId id, uint64_t width, Rows rows, const char* role) const {
    const Value& found = value(id);
    if (found.width != width) {
        fail(std::string(role) + " is " + std::to_string(found.width) + " wide, not " + std::to_string(width));
    }
    if (found.rows != rows) fail(std::string(role) + " has rows of another kind than the step");
}

uint64_t ProgramChecks::value_bytes(ValueId id) const {
    const Value& found = value(id);
    return uint64_t{found.width} * max_rows(found.rows) * sizeof(float);
}

const Weight& ProgramChecks::weight(WeightId id) const {
    check(id < program.weights.size() && id < inputs.weights.size(), "a weight that does not exist");
    return program.weights[id];
}

BufferView ProgramChecks::weight_view(WeightId id) const {
    const Weight& found = weight(id);
    BufferView view = inputs.weights[id];
    const uint64_t bytes = weight_bytes(found);
    if (bytes == 0) fail("weight " + found.name + " has an impossible shape");
    if (!view.heap || view.offset > view.heap->bytes() || view.bytes > view.heap->bytes() - view.offset ||
        view.bytes < bytes) {
        fail("weight " + found.name + " needs " + std::to_string(bytes) + " bytes, its buffer has " +
             std::to_string(view.heap ? view.bytes : 0));
    }
    view.bytes = bytes;
    return view;
}

const Weight& ProgramChecks::weight_rows(const WeightRows& rows, uint64_t* offset) const {
    const Weight& found = weight(rows.weight);
    if (found.dtype == DType::I32) unsupported("weight " + found.name + " is of type I32");
    if (found.cols > 0x7fffffffu || found.experts > 0x7fffffffu) fail("weight " + found.name + " is too large");
    if (rows.first > found.rows || rows.count > found.rows - rows.first || rows.count == 0) {
        fail("rows outside of weight " + found.name);
    }
    *offset = rows.first * row_bytes(found.dtype, found.cols);
    return found;
}

const Weight& ProgramChecks::float_weight(WeightId id, uint64_t elements, const char* role) const {
    const Weight& found = weight(id);
    if (dtype_info(found.dtype).quantised || found.dtype == DType::I32) {
        unsupported(std::string(role) + " " + found.name + " of type " + std::string(dtype_info(found.dtype).name) +
                    "; F32, F16 and BF16 are supported");
    }
    weight_view(id);  // which shows that the product does not overflow
    const uint64_t held = found.cols * found.rows * found.experts;
    if (held < elements) {
        fail(std::string(role) + " " + found.name + " has " + std::to_string(held) + " elements, not " +
             std::to_string(elements));
    }
    return found;
}

const CacheGroup& ProgramChecks::group(uint32_t index, uint32_t layer) const {
    check(index < program.groups.size() && index < inputs.kv.size(), "a cache group that does not exist");
    const CacheGroup& found = program.groups[index];
    check(layer < found.layers, "a layer outside of its cache group");
    check(found.kv_heads > 0 && found.head_size > 0, "a cache group without heads");
    const KvLayout& layout = inputs.kv[index];
    for (const KvSide side : {KvSide::keys, KvSide::values}) {
        const DType dtype = layout.rows(side).dtype;
        if (!is_kv_dtype(dtype)) unsupported("keys or values of type " + std::string(dtype_info(dtype).name));
    }
    check(layout == KvLayout::of(found, layout.types()), "a page layout that does not fit its cache group");
    return found;
}

const RopeTable& ProgramChecks::rope(RopeId id, uint32_t head_size) const {
    check(id < program.ropes.size(), "a rotary table that does not exist");
    const RopeTable& found = program.ropes[id];
    check(found.dims % 2 == 0 && found.dims > 0 && found.dims <= head_size, "a rotary table wider than a head");
    check(found.base.inverse_frequencies.size() == found.dims / 2, "a rotary table with missing frequencies");
    check(found.extended.inverse_frequencies.empty() || found.extended.inverse_frequencies.size() == found.dims / 2,
          "a rotary table with missing extended frequencies");
    return found;
}

void ProgramChecks::check_program() {
    check(inputs.max_tokens > 0 && inputs.max_outputs <= inputs.max_tokens,
          "a plan for no tokens, or for too many outputs");
    if (program.logits == kNone) {
        check(!program.outputs.empty(), "a program without logits");
    } else {
        check(program.logits < program.values.size(), "logits that do not exist");
        check(program.values[program.logits].rows == Rows::outputs, "logits of all tokens");
    }
    for (const ValueId id : program.inputs) value(id);
    for (const ValueId id : program.outputs) value(id);
    check(inputs.arena_layout.offsets.size() == program.values.size(), "an arena laid out for other values");
    for (const Step& step : program.steps) {
        enter(step);
        for_each_read(step.op, [&](ValueId id) { value(id); });
        for_each_write(step.op, [&](ValueId id) { value(id); });
    }
    step_ = nullptr;
}

void ProgramChecks::check_values() {
    const BufferView& arena = inputs.arena;
    const bool held =
        arena.heap && arena.offset <= arena.heap->bytes() && arena.bytes <= arena.heap->bytes() - arena.offset;
    const std::vector<uint64_t>& offsets = inputs.arena_layout.offsets;
    const auto inside = [&](ValueId id) {
        if (id == program.logits) return;  // logits have a place of their own
        check(held && offsets[id] <= arena.bytes && value_bytes(id) <= arena.bytes - offsets[id] &&
                  (arena.address() + offsets[id]) % sizeof(float) == 0,
              "a value outside of the arena");
    };
    for (const ValueId id : program.inputs) inside(id);
    for (const ValueId id : program.outputs) inside(id);
    for (const Step& step : program.steps) {
        enter(step);
        for_each_read(step.op, inside);
        for_each_write(step.op, inside);
        if (needs_apart(step.op)) check_apart(step);
    }
    step_ = nullptr;
}

void ProgramChecks::check_apart(const Step& step) const {
    const std::vector<uint64_t>& offsets = inputs.arena_layout.offsets;
    for_each_read(step.op, [&](ValueId in) {
        for_each_write(step.op, [&](ValueId out) {
            if (in == program.logits || out == program.logits) return;
            check(offsets[in] + value_bytes(in) <= offsets[out] || offsets[out] + value_bytes(out) <= offsets[in],
                  "the output lies upon an input");
        });
    });
}

}  // namespace metallic
