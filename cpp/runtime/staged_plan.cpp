#include "runtime/staged_plan.h"

#include <algorithm>
#include <array>
#include <unordered_set>

#include "backend/allocator.h"
#include "memory/tensor_view.h"

namespace metallic {
namespace {

// Lists what is taken through it.
class ListingAllocator final : public Allocator {
  public:
    ListingAllocator(std::shared_ptr<Allocator> inner, uint32_t device, std::vector<StagedPlan::Piece>& pieces)
        : inner_(std::move(inner)), device_(device), pieces_(pieces) {}

    std::shared_ptr<const BufferView> allocate(uint64_t bytes, Storage storage, Tag tag, std::string_view owner,
                                               Contents contents) override {
        pieces_.push_back({device_, bytes, storage, tag, false, std::string(owner)});
        return inner_->allocate(bytes, storage, tag, owner, contents);
    }

  private:
    const std::shared_ptr<Allocator> inner_;
    const uint32_t device_;
    std::vector<StagedPlan::Piece>& pieces_;
};

// What a device computes in where the user chose a precision. The half types are those of GPUs; another device that
// helps out rounds nothing.
Precision precision_of(Precision chosen, uint32_t device) {
    const bool half = chosen == Precision::float16 || chosen == Precision::bfloat16;
    return device == kHost && half ? Precision::float32 : chosen;
}

std::vector<WeightId> weights_of(const Program& program) {
    std::vector<WeightId> ids;
    for (const Step& step : program.steps) for_each_weight(step.op, [&](WeightId id) { ids.push_back(id); });
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    return ids;
}

Storage storage_of(WeightPlace place, uint32_t device) {
    if (device == kHost) return Storage::mapped;
    switch (place) {
        case WeightPlace::exclusive:
            return Storage::exclusive;
        case WeightPlace::shared:
            return Storage::shared;
        case WeightPlace::mapped:
        case WeightPlace::host:  // a step of this device needs it beside others
            break;
    }
    return Storage::mapped;
}

}  // namespace

StagedPlan::StagedPlan(const Program& planned, const Placement& placement, const std::shared_ptr<const ModelFile>& file,
                       std::vector<Device> devices, const Options& options)
    : options_(options) {
    for (Device& device : devices) seats_.emplace_back().device = std::move(device);
    add_parts(planned, placement);
    place_weights(planned, placement, file);
    place_arenas();
    compile();
}

void StagedPlan::add_parts(const Program& planned, const Placement& placement) {
    std::vector<uint32_t> devices;
    devices.reserve(placement.stages.size());
    for (const Placement::Stage& stage : placement.stages) devices.push_back(stage.device);
    if (devices.size() == 1) {
        parts_.push_back({&planned, devices.front(), {}, weights_of(planned), nullptr});
        add_groups(devices.front(), planned.groups);
    } else {
        staged_ = split_stages(planned, devices);
        for (const Stage& stage : staged_.stages) {
            parts_.push_back({&stage.program, stage.device, {}, weights_of(stage.program), nullptr});
        }
        for (uint32_t device = 0; device < staged_.devices.size(); ++device) {
            add_groups(device, staged_.devices[device].groups);
        }
    }
}

void StagedPlan::add_groups(uint32_t device, std::span<const CacheGroup> groups) {
    Seat& seat = seats_.at(device);
    seat.first_group = groups_.size();
    seat.group_count = groups.size();
    for (const CacheGroup& group : groups) {
        groups_.push_back({device, group, KvLayout::of(group, options_.kv_types.of(group))});
        seat.layouts.push_back(groups_.back().layout);
    }
}

void StagedPlan::place_weights(const Program& planned, const Placement& placement,
                               const std::shared_ptr<const ModelFile>& file) {
    std::vector<bool> counted(planned.weights.size(), false);  // two devices may see the same bytes of the file
    for (uint32_t device = 0; device < seats_.size(); ++device) {
        std::vector<std::optional<Storage>> storage(planned.weights.size());
        for (const Part& part : parts_) {
            if (part.device != device) continue;
            for (const WeightId id : part.weights) storage[id] = storage_of(placement.weights[id], device);
        }
        Seat& seat = seats_[device];
        if (!seat.device.backend) continue;
        const std::vector<bool> copied = list_copies(planned, device, *file, storage);
        seat.weights = std::make_unique<Weights>(file, seat.device.backend, *seat.device.pool, planned, storage);
        for (size_t id = 0; id < storage.size(); ++id) {
            if (storage[id] != Storage::mapped || copied[id] || counted[id]) continue;
            seat.device.pool->count_mapped(seat.weights->views()[id].bytes);
            counted[id] = true;
        }
    }
}

std::vector<bool> StagedPlan::list_copies(const Program& planned, uint32_t device, const ModelFile& file,
                                          std::vector<std::optional<Storage>>& storage) {
    std::vector<bool> copied(storage.size(), false);
    for (size_t id = 0; options_.pieces && id < storage.size(); ++id) {
        if (!storage[id] || *storage[id] == Storage::mapped) continue;
        const Weight& weight = planned.weights[id];
        const uint64_t bytes = file.tensor_bytes(file.tensor(weight.name)).size();
        options_.pieces->push_back(
            {device, bytes, Weights::storage_of_copy(weight, *storage[id]), Tag::weights, true, weight.name});
        storage[id] = Storage::mapped;
        copied[id] = true;
    }
    return copied;
}

void StagedPlan::place_arenas() {
    std::vector<uint64_t> bytes(seats_.size(), 0);
    for (Part& part : parts_) {
        part.layout = layout_arena(*part.program, options_.max_tokens, options_.max_outputs);
        bytes[part.device] = std::max(bytes[part.device], part.layout.bytes);
    }
    for (size_t device = 0; device < seats_.size(); ++device) {
        Seat& seat = seats_[device];
        if (!seat.device.pool) continue;
        seat.arena = seat.device.pool->allocate_bytes(bytes[device], Tag::activations, "activations");
        if (!options_.pieces) continue;
        options_.pieces->push_back(
            {static_cast<uint32_t>(device), bytes[device], Storage::shared, Tag::activations, false, "activations"});
    }
}

std::shared_ptr<Allocator> StagedPlan::allocator_of(uint32_t device) const {
    const std::shared_ptr<Allocator>& own = seats_[device].device.pool->allocator();
    return options_.pieces ? std::make_shared<ListingAllocator>(own, device, *options_.pieces) : own;
}

void StagedPlan::compile() {
    for (Seat& seat : seats_) {
        if (seat.weights) seat.weights->restore();
    }
    for (Part& part : parts_) {
        Seat& seat = seats_[part.device];
        CompileInputs inputs;
        inputs.program = part.program;
        inputs.weights = seat.weights->views();
        inputs.kv = seat.layouts;
        inputs.arena_layout = part.layout;
        inputs.arena = seat.arena.view();
        inputs.max_tokens = options_.max_tokens;
        inputs.max_outputs = options_.max_outputs;
        inputs.precision = precision_of(options_.precision, part.device);
        inputs.allocator = allocator_of(part.device);
        inputs.events = options_.events;
        part.plan = seat.device.backend->compile(inputs);
    }
    precision_ = parts_.back().plan->precision();
    compiled_ = true;
}

void StagedPlan::run(const Batch& batch) {
    if (parts_.size() == 1) {
        run_part(parts_.front(), batch);
        return;
    }
    pick_tables(batch);
    for (size_t i = 0; i < parts_.size(); ++i) {
        if (i > 0) cross(parts_[i - 1], parts_[i], batch);
        Batch own = batch;
        own.tables = seats_[parts_[i].device].tables;
        if (i + 1 != parts_.size()) own.logits = nullptr, own.selections = {}, own.candidates = nullptr;
        run_part(parts_[i], own);
    }
}

void StagedPlan::run_part(Part& part, const Batch& batch) {
    Seat& seat = seats_[part.device];
    seat.weights->upload(part.weights, batch.interrupted);
    seat.device.backend->wait(seat.device.backend->submit(*part.plan, batch));
}

// Each device gets the tables of its own groups, run by run.
void StagedPlan::pick_tables(const Batch& batch) {
    for (Seat& seat : seats_) {
        seat.tables.clear();
        for (size_t run = 0; run < batch.runs.size() && !groups_.empty(); ++run) {
            const auto first =
                batch.tables.begin() + static_cast<std::ptrdiff_t>(run * groups_.size() + seat.first_group);
            seat.tables.insert(seat.tables.end(), first, first + static_cast<std::ptrdiff_t>(seat.group_count));
        }
    }
}

// The first rows of a value, which is in the part's arena.
BufferView StagedPlan::value_rows(const Part& part, ValueId id, uint64_t rows) const {
    const uint64_t width = part.program->values[id].width;
    BufferView memory = seats_[part.device].arena.view();
    memory.offset += part.layout.offsets[id];
    memory.bytes -= part.layout.offsets[id];
    const std::array<uint64_t, 2> shape{memory.bytes / (width * sizeof(float)), width};
    return TensorView(DType::F32, shape, memory).slice(0, 0, rows).bytes();
}

void StagedPlan::cross(const Part& from, const Part& to, const Batch& batch) {
    Backend& source = *seats_[from.device].device.backend;
    Backend& target = *seats_[to.device].device.backend;
    for (const ValueId id : to.program->inputs) {
        const Value& value = to.program->values[id];
        const uint64_t rows = value.rows == Rows::tokens ? batch.tokens.size() : batch.output_rows.size();
        if (rows == 0) continue;
        const BufferView left = value_rows(from, id, rows), right = value_rows(to, id, rows);
        if (left.heap->host()) {
            target.upload({left.host(), left.bytes}, right);
        } else if (right.heap->host()) {
            source.download(left, {right.host(), right.bytes});
        } else {
            crossing_.resize(left.bytes);
            source.download(left, crossing_);
            target.upload(crossing_, right);
        }
    }
}

void StagedPlan::drop_plans() noexcept {
    for (Part& part : parts_) part.plan.reset();
    compiled_ = false;
}

uint64_t StagedPlan::evict_weights() noexcept {
    if (copied_bytes() == 0) return 0;
    drop_plans();
    uint64_t bytes = 0;
    for (Seat& seat : seats_) bytes += seat.weights ? seat.weights->evict() : 0;
    return bytes;
}

// By the first use in a pass; a tied output is needed as early as the embeddings.
std::vector<WeightId> StagedPlan::last_used_first() const {
    std::vector<WeightId> order;
    std::unordered_set<WeightId> seen;
    for (const Part& part : parts_) {
        for (const Step& step : part.program->steps) {
            for_each_weight(step.op, [&](WeightId id) {
                if (seen.insert(id).second) order.push_back(id);
            });
        }
    }
    std::reverse(order.begin(), order.end());
    return order;
}

// The plans' own memory is a gift on top: they hold addresses of what goes.
uint64_t StagedPlan::evict_weights(uint64_t bytes) {
    const std::vector<WeightId> order = last_used_first();
    std::vector<Weights::Choice> choices(seats_.size());
    uint64_t found = 0;
    for (size_t i = 0; i < seats_.size() && found < bytes; ++i) {
        if (!seats_[i].weights) continue;
        choices[i] = seats_[i].weights->choose(bytes - found, order);
        found += choices[i].heap_bytes;
    }
    if (found == 0) return 0;
    drop_plans();
    uint64_t freed = 0;
    for (size_t i = 0; i < seats_.size(); ++i) {
        if (seats_[i].weights) freed += seats_[i].weights->evict(choices[i].ids);
    }
    return freed;
}

// What was made until something was refused would be in the way of the next attempt.
uint64_t StagedPlan::restore() {
    const uint64_t before = copied_bytes();
    std::vector<std::vector<WeightId>> missing(seats_.size());
    for (size_t i = 0; i < seats_.size(); ++i) {
        if (seats_[i].weights) missing[i] = seats_[i].weights->missing();
    }
    try {
        compile();
    } catch (...) {
        drop_plans();
        for (size_t i = 0; i < seats_.size(); ++i) {
            if (seats_[i].weights) seats_[i].weights->evict(missing[i]);
        }
        throw;
    }
    return copied_bytes() - before;
}

uint64_t StagedPlan::copied_bytes() const noexcept {
    uint64_t bytes = 0;
    for (const Seat& seat : seats_) bytes += seat.weights ? seat.weights->copied_bytes() : 0;
    return bytes;
}

uint64_t StagedPlan::arena_bytes() const noexcept {
    uint64_t bytes = 0;
    for (const Seat& seat : seats_) bytes += seat.arena.view().bytes;
    return bytes;
}

}  // namespace metallic
