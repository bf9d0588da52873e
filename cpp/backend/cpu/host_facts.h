#pragma once

#include <cstdint>
#include <string>

// What the operating system says of the machine that this process may use.
namespace metallic::cpu {

// Cores that this process may run on: the machine's, less what its affinity mask and its control group's quota
// withhold; on Apple silicon the performance cores. At least 1.
uint32_t usable_cores() noexcept;

// Bytes of memory: the machine's, or its control group's limit where that is lower.
uint64_t memory_bytes() noexcept;

// The processor's marketing name; "CPU" where the system does not tell.
std::string processor_name();

}  // namespace metallic::cpu
