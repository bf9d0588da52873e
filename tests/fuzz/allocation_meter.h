#pragma once

#include <cstddef>

// Counts what operator new hands out, by replacing it for the whole program (allocation_meter.cpp).
namespace metallic::testing {

// Begins a measurement: the peak is counted from what is allocated now.
void begin_allocation_peak() noexcept;
// The most bytes allocated at once since the measurement began, beyond those allocated at its beginning.
size_t allocation_peak() noexcept;

}  // namespace metallic::testing
