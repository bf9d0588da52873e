#include "program/planner.h"

#include <algorithm>
#include <optional>

#include "core/error.h"
#include "program/fusion.h"

namespace metallic {
namespace {

// Every value is written once, before it is read; every id exists.
void check_program(const Program& program) {
    std::vector<bool> written(program.values.size(), false);
    const auto fail = [&](const Step& step, const char* what) {
        throw Error("malformed program: step " + std::string(step_name(step.op)) + " in '" +
                    program.scopes.path(step.scope) + "' " + what);
    };
    for (const Step& step : program.steps) {
        for_each_read(step.op, [&](ValueId id) {
            if (id >= written.size() || !written[id]) fail(step, "reads a value before it is written");
        });
        for_each_write(step.op, [&](ValueId id) {
            if (id >= written.size() || written[id]) fail(step, "writes a value twice");
            written[id] = true;
        });
    }
    if (program.logits >= written.size() || !written[program.logits]) throw Error("malformed program: no logits");
}

bool is_row_wise(const StepOp& op) {
    return !std::holds_alternative<KvWriteStep>(op) && !std::holds_alternative<AttentionStep>(op) &&
           !std::holds_alternative<EmbeddingStep>(op) && !std::holds_alternative<SelectStep>(op);
}

// Moves every row-wise step whose results lead only to the logits behind a selection of the requested rows.
void narrow_to_outputs(Program& program) {
    const size_t values = program.values.size();
    std::vector<bool> has_wide_reader(values, false);
    std::vector<bool> has_reader(values, false);
    std::vector<bool> narrow_step(program.steps.size(), false);
    has_reader[program.logits] = true;
    for (size_t i = program.steps.size(); i-- > 0;) {
        const StepOp& op = program.steps[i].op;
        bool narrow = is_row_wise(op);
        for_each_write(op, [&](ValueId id) { narrow = narrow && has_reader[id] && !has_wide_reader[id]; });
        narrow_step[i] = narrow;
        for_each_read(op, [&](ValueId id) {
            has_reader[id] = true;
            if (!narrow) has_wide_reader[id] = true;
        });
    }

    std::vector<ValueId> selected(values, kNone);
    std::vector<Step> steps;
    for (size_t i = 0; i < program.steps.size(); ++i) {
        Step step = program.steps[i];
        if (narrow_step[i]) {
            for_each_write(step.op, [&](ValueId id) { program.values[id].rows = Rows::outputs; });
            std::vector<ValueId> wide;
            for_each_read(step.op, [&](ValueId id) {
                if (program.values[id].rows == Rows::tokens) wide.push_back(id);
            });
            for (const ValueId id : wide) {
                if (selected[id] == kNone) {
                    selected[id] = static_cast<ValueId>(program.values.size());
                    program.values.push_back({program.values[id].width, Rows::outputs});
                    // In the stage before, if this step opens one: then only the rows asked for cross.
                    const uint32_t stage = steps.empty() ? step.stage : steps.back().stage;
                    steps.push_back({SelectStep{id, selected[id]}, step.scope, stage});
                }
                replace_reads(step.op, id, selected[id]);
            }
        }
        steps.push_back(step);
    }
    // The logits themselves come straight from a cross-token step: select them.
    if (program.values[program.logits].rows == Rows::tokens) {
        const ValueId out = static_cast<ValueId>(program.values.size());
        program.values.push_back({program.values[program.logits].width, Rows::outputs});
        steps.push_back({SelectStep{program.logits, out}, 0, steps.back().stage});
        program.logits = out;
    }
    program.steps = std::move(steps);
}

// A key-and-value write rewrites the queries in place: both names share one place in the arena.
std::vector<ValueId> storage_of(const Program& program) {
    std::vector<ValueId> storage(program.values.size());
    for (ValueId id = 0; id < storage.size(); ++id) storage[id] = id;
    for (const Step& step : program.steps) {
        const auto* write = std::get_if<KvWriteStep>(&step.op);
        if (write && write->q_out != kNone) storage[write->q_out] = storage[write->q];
    }
    return storage;
}

struct Interval {
    ValueId id;
    size_t first, last;
    uint64_t bytes;
};

std::vector<Interval> live_intervals(const Program& program, const std::vector<ValueId>& storage, uint64_t max_tokens,
                                     uint64_t max_outputs) {
    constexpr size_t kNever = ~size_t{0};
    std::vector<Interval> all(program.values.size());
    for (ValueId id = 0; id < all.size(); ++id) {
        const Value& value = program.values[id];
        const uint64_t rows = value.rows == Rows::tokens ? max_tokens : max_outputs;
        all[id] = {id, kNever, 0, (rows * value.width * sizeof(float) + 63) / 64 * 64};
    }
    for (size_t i = 0; i < program.steps.size(); ++i) {
        const auto touch = [&](ValueId id) {
            Interval& interval = all[storage[id]];
            interval.first = std::min(interval.first, i);
            interval.last = std::max(interval.last, i);
        };
        for_each_read(program.steps[i].op, touch);
        for_each_write(program.steps[i].op, touch);
    }
    const size_t end = program.steps.size();
    for (const ValueId id : program.inputs) all[storage[id]].first = 0;
    for (const ValueId id : program.outputs) all[storage[id]].last = end;
    if (program.logits != kNone) all[storage[program.logits]].last = end;
    std::erase_if(all, [&](const Interval& interval) { return interval.first == kNever; });
    return all;
}

}  // namespace

Program plan_program(const Program& traced) {
    Program program = traced;
    check_program(program);
    narrow_to_outputs(program);
    fuse_steps(program);
    check_program(program);
    return program;
}

// Greedy by size (Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020): the largest
// value first, each at the lowest offset where it meets no value that is alive at the same time.
ArenaLayout layout_arena(const Program& program, uint32_t max_tokens, uint32_t max_outputs) {
    const std::vector<ValueId> storage = storage_of(program);
    std::vector<Interval> intervals = live_intervals(program, storage, max_tokens, max_outputs);
    std::stable_sort(intervals.begin(), intervals.end(),
                     [](const Interval& a, const Interval& b) { return a.bytes > b.bytes; });

    ArenaLayout layout;
    layout.offsets.assign(program.values.size(), ArenaLayout::kUnplaced);
    std::vector<Interval> placed;  // by offset
    for (const Interval& value : intervals) {
        uint64_t offset = 0;
        auto at = placed.begin();
        for (auto other = placed.begin(); other != placed.end(); ++other) {
            if (other->last < value.first || other->first > value.last) continue;
            const uint64_t start = layout.offsets[other->id];
            if (offset + value.bytes <= start) break;
            offset = std::max(offset, start + other->bytes);
        }
        layout.offsets[value.id] = offset;
        layout.bytes = std::max(layout.bytes, offset + value.bytes);
        at = std::upper_bound(placed.begin(), placed.end(), offset,
                              [&](uint64_t o, const Interval& other) { return o < layout.offsets[other.id]; });
        placed.insert(at, value);
    }
    for (ValueId id = 0; id < storage.size(); ++id) layout.offsets[id] = layout.offsets[storage[id]];
    return layout;
}

}  // namespace metallic
