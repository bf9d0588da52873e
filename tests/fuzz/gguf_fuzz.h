#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

// The entry point that libFuzzer calls, and what the stand-alone driver wants to know besides.
//
// An input is a GGUF file, or several parts of a split model in one: the bytes "MPRT", a 32-bit count, as many 64-bit
// lengths, and the parts.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace metallic::testing {

inline constexpr std::string_view kPartsMagic = "MPRT";

// What the inputs so far led to.
struct FuzzCounts {
    uint64_t accepted = 0;
    uint64_t format_errors = 0;
    uint64_t unsupported = 0;
    double worst_allocation = 0;  // the peak of one input, over what is allowed
};
extern FuzzCounts g_fuzz_counts;

}  // namespace metallic::testing
