#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "gguf/metadata.h"

namespace metallic {

// One tensor of a model file. `shape` is in GGUF's order: shape[0] is the length of a row, whose elements are
// consecutive; dimensions from `n_dims` on are 1.
struct TensorInfo {
    std::string name;
    DType dtype = DType::F32;
    uint32_t n_dims = 1;
    std::array<uint64_t, 4> shape{1, 1, 1, 1};
    uint64_t offset = 0;  // of the data, from the beginning of its file
    uint64_t bytes = 0;
    uint32_t file = 0;  // index of the part of a split model
};

// The header of one GGUF file, fully checked: every tensor is of a supported type, has a unique name, and its data is
// aligned, lies inside the file and overlaps no other. Metadata views point into the bytes it was parsed from.
//
// Parsing allocates a small multiple of the header's bytes, whatever counts and lengths the file claims.
struct GgufFile {
    std::string name;
    uint32_t version = 0;
    uint64_t alignment = 0;
    uint64_t data_offset = 0;  // where the tensors' data section begins
    Metadata metadata;
    std::vector<TensorInfo> tensors;  // in the file's order

    // Parses a whole file held in `bytes`, which must outlive the result; `file_name` is used in messages.
    // Reads GGUF 2 and 3, little-endian. Throws ModelFormatError for a corrupt file, UnsupportedModelError for
    // another version, a big-endian file, a tensor type that is not supported, or a nested array.
    static GgufFile parse(std::span<const std::byte> bytes, std::string file_name);
};

}  // namespace metallic
