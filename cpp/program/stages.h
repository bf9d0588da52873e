#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "program/program.h"

// A program whose steps run on more than one device is cut into stages: consecutive steps of one device. Devices are
// numbers here; what they stand for is their user's business.
namespace metallic {

// Chooses the device of each step of a traced program and numbers the stages in Step::stage. A step that reads a weight
// runs on the weight's device (`devices`, by WeightId); a look-up of embeddings does so only where that is not device
// 0, and else runs with what follows. A step without weights runs with the step before it in its block, or else with
// the next one. Attention runs where its keys and values are written. Returns the device of each stage.
std::vector<uint32_t> assign_stages(Program& traced, std::span<const uint32_t> devices);

// One stage: a program of its own over the value, weight and scope ids of the whole. Its cache groups are those of its
// device, with the layers that are there, so that all stages of a device share pages.
struct Stage {
    Program program;  // `inputs` are the values alive before it, `outputs` those alive after it
    uint32_t device = 0;
};

// The cache groups of one device: groups[i] is the id of the whole program's group whose layers the stages' group i
// has.
struct DeviceGroups {
    std::vector<CacheGroup> groups;
    std::vector<uint32_t> ids;
};

struct StagedProgram {
    std::vector<Stage> stages;
    std::vector<DeviceGroups> devices;
};

// Cuts a planned program. `devices` is what assign_stages returned for the traced one. Throws UnsupportedModelError
// when the logits are read after their stage.
StagedProgram split_stages(const Program& planned, std::span<const uint32_t> devices);

}  // namespace metallic
