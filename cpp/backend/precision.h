#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace metallic {

// What matrix products may round their operands to on the way into the arithmetic units; sums are F32 always.
enum class Precision : uint8_t {
    automatic,  // the backend's choice
    float32,    // nothing is rounded: weights have the values that dequantisation gives
    float16,
    bfloat16,
    int8,  // activations alone, in blocks with a scale each, and only where the weights are quantised
};

// "auto", "float32", "float16", "bfloat16" or "int8".
std::string_view precision_name(Precision precision) noexcept;
// Throws RequestError for any other name.
Precision parse_precision(std::string_view name);
// Throws RequestError, naming what there is, unless `precision` is automatic or one of `supported`.
void check_precision(Precision precision, std::span<const Precision> supported, std::string_view device);

}  // namespace metallic
