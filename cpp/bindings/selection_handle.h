#pragma once

#include <cstdint>
#include <vector>

#include "core/selection.h"

namespace metallic {

// A selection as Python holds it, on its way from a sampler through a forward pass back to the sampler. Used with the
// GIL.
struct SelectionHandle {
    uint32_t k = 0;
    std::vector<LogitEdit> edits;
    std::vector<uint32_t> mask;
    std::vector<Candidate> candidates;  // empty before the pass
};

}  // namespace metallic
