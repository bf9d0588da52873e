#pragma once

#include <cstdint>

#include "backend/backend.h"

namespace metallic {

// Where an allocation lies, as the heaps of a pool know it.
struct Place {
    uint32_t heap = 0, node = 0;
    uint64_t id = 0;  // of the heap, see HeapUse; 0: nowhere
    BufferView view;
    bool zero = false;  // all bytes were zero when they were handed out
};

}  // namespace metallic
