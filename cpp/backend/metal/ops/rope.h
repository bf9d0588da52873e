#pragma once

#include <memory>

#include "backend/metal/ops/operation.h"
#include "backend/metal/ops/preparation.h"

namespace metallic::metal {

// inverse_frequency / (2 pi) modulo 1, rounded to units of 2^-64: what a position adds to the fraction of a turn.
uint64_t turn_step(float inverse_frequency) noexcept;

// A rotary table as kernels want it; see shaders/rotation.h. Without a table it turns nothing.
struct Rotation {
    Rotation() = default;
    Rotation(const RopeTable& table, Preparation& preparation);

    // Function constants 2 and 3.
    FunctionConstant pairing() const { return FunctionConstant::of(2, neox); }
    FunctionConstant turned() const { return FunctionConstant::of(3, dims); }

    bool neox = false;
    uint32_t dims = 0;
    float magnitudes[2] = {1, 1};
    Binding steps;  // of the base, then of the extended variant: [2][dims / 2], as two words, low first
};

std::unique_ptr<Operation> prepare(const RopeStep& step, Preparation& preparation);

}  // namespace metallic::metal
