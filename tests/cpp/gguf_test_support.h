#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "core/error.h"
#include "gguf_builder.h"

namespace metallic::testing {

inline constexpr uint32_t kF32 = 0;
inline constexpr uint32_t kQ8_0 = 8;

// Expects a ModelFormatError about `where`, at byte `offset`, whose text contains `text`.
inline void expect_corrupt(const std::function<void()>& action, std::string_view where, uint64_t offset,
                           std::string_view text) {
    try {
        action();
        FAIL() << "nothing was thrown; expected: " << text;
    } catch (const ModelFormatError& error) {
        EXPECT_EQ(error.where, where) << error.what();
        EXPECT_EQ(error.offset, offset) << error.what();
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
    }
}

inline GgufBuilder two_tensors() {
    GgufBuilder builder;
    builder.add_string("general.architecture", "llama");
    builder.add_tensor("first", {8, 2}, kF32, 64).add_tensor("second", {64, 3}, kQ8_0, 204);
    return builder;
}

}  // namespace metallic::testing
