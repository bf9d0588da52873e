#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "gguf/model_file.h"
#include "runtime/placement.h"
#include "runtime/staged_plan.h"

namespace metallic {

// What loading a placed model takes from the pools of its devices, found without loading it.
struct LoadNeeds {
    std::vector<StagedPlan::Piece> pieces;  // in the order in which a load asks for them
    std::vector<StagedPlan::Group> groups;
    uint64_t mapped = 0;  // bytes of weights that are read where the file is mapped, each counted once

    // What the plans of a device take beside weights and pages: arena, scratch, logits, constants.
    uint64_t plans(uint32_t device) const noexcept;
    // As the pools count it.
    uint64_t bytes(Tag tag) const noexcept;
    // Throws the OutOfMemory that a load with this budget ends with, and says which budget would do; 0: there is none.
    // Heaps that the budget rounds, and what is left in them, count as they do then. What the device itself may refuse
    // does not.
    void check(uint64_t budget) const;
    bool fits(uint64_t budget) const;
    // A budget that fits, the least up to 4 KiB where more never fits worse.
    uint64_t least_budget() const;

  private:
    void take(uint64_t budget) const;
};

// Compiles a planned program for its devices (null: no stage is there) with weights mapped that are copies otherwise:
// no weight is read but those that a plan converts. What the plans take is held for that long, under no budget. Throws
// what StagedPlan does.
LoadNeeds find_needs(const Program& planned, const Placement& placement, const std::shared_ptr<const ModelFile>& file,
                     const std::array<std::shared_ptr<Backend>, 2>& backends, StagedPlan::Options options);

}  // namespace metallic
