#pragma once

#include <string>
#include <vector>

#include "../cpp/gguf_builder.h"

namespace metallic::testing {

// A model to start mutating from: the parts of a split model, or one file.
struct Seed {
    std::string name;
    std::vector<BuiltFile> parts;
};

// Valid models that together use every feature of the format: both versions, every value type, every supported tensor
// type, an alignment of their own, many strings, and a split model.
std::vector<Seed> make_seeds();

// The input that stands for a seed (see gguf_fuzz.h).
std::vector<std::byte> join_parts(const std::vector<BuiltFile>& parts);

}  // namespace metallic::testing
