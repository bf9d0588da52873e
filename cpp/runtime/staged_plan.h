#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/kv_types.h"
#include "gguf/model_file.h"
#include "memory/pool.h"
#include "program/stages.h"
#include "runtime/placement.h"
#include "runtime/weights.h"

namespace metallic {

// A placed program, compiled stage by stage, each for its device, and run as one. A program of one stage is run as it
// is. Where there are more, the activations alive between two of them cross once, the rows of the batch alone; each
// device has one arena, which its stages take in turn. Not thread-safe.
class StagedPlan {
  public:
    struct Device {
        std::shared_ptr<Backend> backend;
        Pool* pool = nullptr;
    };
    // What a load takes from a pool.
    struct Piece {
        uint32_t device = 0;
        uint64_t bytes = 0;
        Storage storage = Storage::shared;
        Tag tag = Tag::activations;
        bool copy = false;  // of a weight
        std::string owner;
    };
    struct Options {
        uint32_t max_tokens = 0, max_outputs = 0;
        KvTypes kv_types;
        Precision precision = Precision::automatic;
        EventRing* events = nullptr;
        // Not null: a trial, which is not run. What the plan takes from its pools is appended, in order; weights that
        // it would copy are appended too, and mapped instead.
        std::vector<Piece>* pieces = nullptr;
    };
    // The pages of one cache group on one device.
    struct Group {
        uint32_t device = 0;
        CacheGroup group;  // with the layers that are there
        KvLayout layout;
    };

    // `planned` and its placement, by which stages were assigned; `devices` by the numbers that the stages have. The
    // program, the pools and the ring outlive the plan. Compiles all stages. Throws UnsupportedModelError, OutOfMemory,
    // RequestError.
    StagedPlan(const Program& planned, const Placement& placement, const std::shared_ptr<const ModelFile>& file,
               std::vector<Device> devices, const Options& options);

    // Whose page tables a batch has for each run, in this order.
    std::span<const Group> groups() const noexcept { return groups_; }

    // Uploads what is missing of the weights, runs the batch and waits for it. Only while it is ready. Throws what
    // Backend::submit and wait do, and what Weights::upload does.
    void run(const Batch& batch);

    // Drops the plans and frees the copies of weights; returns their bytes. Until `restore` it is not ready.
    uint64_t evict_weights() noexcept;
    // The same for so many copies that at least `bytes` of heaps come back, or all whose heaps do. What a pass needs
    // last goes first: each pass uses everything once, in one order, and what stays is in the heaps that a load makes.
    uint64_t evict_weights(uint64_t bytes);
    bool ready() const noexcept { return compiled_; }
    // Makes room for the evicted copies again, which the runs that need them fill, and compiles all stages. Returns
    // their bytes. Throws as the constructor does; what came back is not held then, what had stayed is, and it may be
    // called again.
    uint64_t restore();
    uint64_t copied_bytes() const noexcept;

    // Of the stage that makes the logits; see Plan::precision.
    Precision precision() const noexcept { return precision_; }
    uint64_t arena_bytes() const noexcept;
    size_t stages() const noexcept { return parts_.size(); }

  private:
    // What one device has of the model.
    struct Seat {
        Device device;
        std::unique_ptr<Weights> weights;
        std::vector<KvLayout> layouts;
        Allocation arena;
        size_t first_group = 0, group_count = 0;  // among groups_
        std::vector<PageTableView> tables;        // of the batch being run
    };
    struct Part {
        const Program* program = nullptr;
        uint32_t device = 0;
        ArenaLayout layout;
        std::vector<WeightId> weights;
        std::unique_ptr<Plan> plan;
    };

    void add_parts(const Program& planned, const Placement& placement);
    void add_groups(uint32_t device, std::span<const CacheGroup> groups);
    void place_weights(const Program& planned, const Placement& placement,
                       const std::shared_ptr<const ModelFile>& file);
    // In a trial: lists the weights of a device that would be copies, and has them mapped.
    std::vector<bool> list_copies(const Program& planned, uint32_t device, const ModelFile& file,
                                  std::vector<std::optional<Storage>>& storage);
    void place_arenas();
    std::shared_ptr<Allocator> allocator_of(uint32_t device) const;
    void compile();
    void drop_plans() noexcept;
    std::vector<WeightId> last_used_first() const;
    void run_part(Part& part, const Batch& batch);
    void pick_tables(const Batch& batch);
    void cross(const Part& from, const Part& to, const Batch& batch);
    BufferView value_rows(const Part& part, ValueId id, uint64_t rows) const;

    const Options options_;
    StagedProgram staged_;  // where there is more than one stage
    std::vector<Group> groups_;
    std::vector<Seat> seats_;
    std::vector<Part> parts_;
    std::vector<std::byte> crossing_;  // for arenas that the host does not see
    bool compiled_ = false;
    Precision precision_ = Precision::automatic;
};

}  // namespace metallic
