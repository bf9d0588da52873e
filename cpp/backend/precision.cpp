#include "backend/precision.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace metallic {
namespace {

constexpr Precision kAll[] = {Precision::automatic, Precision::float32, Precision::float16, Precision::bfloat16,
                              Precision::int8};

std::string list_names(std::span<const Precision> precisions) {
    std::string names;
    for (const Precision one : precisions) names += (names.empty() ? "" : ", ") + std::string(precision_name(one));
    return names;
}

}  // namespace

std::string_view precision_name(Precision precision) noexcept {
    switch (precision) {
        case Precision::automatic:
            return "auto";
        case Precision::float32:
            return "float32";
        case Precision::float16:
            return "float16";
        case Precision::bfloat16:
            return "bfloat16";
        case Precision::int8:
            return "int8";
    }
    return "";
}

Precision parse_precision(std::string_view name) {
    const auto* const found =
        std::find_if(std::begin(kAll), std::end(kAll), [&](Precision one) { return precision_name(one) == name; });
    if (found != std::end(kAll)) return *found;
    throw RequestError("there is no precision '" + std::string(name) + "', only " + list_names(kAll));
}

void check_precision(Precision precision, std::span<const Precision> supported, std::string_view device) {
    if (precision == Precision::automatic) return;
    if (std::find(supported.begin(), supported.end(), precision) != supported.end()) return;
    throw RequestError("the device " + std::string(device) + " has no matrix products in " +
                       std::string(precision_name(precision)) + "; it has " + list_names(supported));
}

}  // namespace metallic
