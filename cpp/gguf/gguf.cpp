#include "gguf/gguf.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>
#include <unordered_set>
#include <utility>

// Source of the format: ggml's gguf.md.
namespace metallic {
namespace {

constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kSmallestAlignment = 8;
constexpr uint64_t kLargestAlignment = uint64_t{1} << 30;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint64_t kMaxElements = std::numeric_limits<int64_t>::max();
// The smallest tensor entry: a name of one byte after its length, n_dims, one dimension, a type, an offset.
constexpr uint64_t kSmallestTensorEntry = 8 + 1 + 4 + 8 + 4 + 8;
// Counts come from the file, so containers start small and grow only with what has really been read.
constexpr uint64_t kFirstReserve = 4096;

constexpr uint32_t swapped(uint32_t value) noexcept {
    return value >> 24 | (value >> 8 & 0xff00u) | (value << 8 & 0xff0000u) | value << 24;
}

// What a file that is not GGUF probably is, by its first bytes.
struct Lookalike {
    std::string_view magic;
    const char* hint;
};
constexpr Lookalike kLookalikes[] = {
    {"version https://git-lfs", "this is a Git LFS pointer; fetch the real file with `git lfs pull`"},
    {"PK\x03\x04", "this looks like a PyTorch or zip archive; convert the model to GGUF first"},
    {"lmgg", "this is a GGML file from before GGUF; convert the model to GGUF again"},
    {"fmgg", "this is a GGMF file from before GGUF; convert the model to GGUF again"},
    {"tjgg", "this is a GGJT file from before GGUF; convert the model to GGUF again"},
    {"FUGG", "this is a GGUF file with its bytes swapped"},
    {"<!", "this is a web page; the download went wrong"},
    {"<html", "this is a web page; the download went wrong"},
};

const char* not_gguf_hint(std::string_view bytes) noexcept {
    for (const Lookalike& lookalike : kLookalikes) {
        if (bytes.starts_with(lookalike.magic)) return lookalike.hint;
    }
    // safetensors: a 64-bit length of a JSON header, then that header.
    if (bytes.size() > 8 && bytes[8] == '{')
        return "this looks like a safetensors file; convert the model to GGUF first";
    return "a GGUF file begins with the bytes \"GGUF\"";
}

void read_magic(Cursor& cursor, std::span<const std::byte> bytes) {
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (!text.starts_with("GGUF")) cursor.fail(std::string("not a GGUF file: ") + not_gguf_hint(text), 0);
    cursor.take(4, "magic");
}

uint32_t read_version(Cursor& cursor) {
    const uint64_t at = cursor.offset();
    const auto version = cursor.read<uint32_t>("header");
    if (version == 2 || version == 3) return version;
    const std::string supported = "; versions 2 and 3, little-endian, are supported";
    if (version == 0) cursor.fail("GGUF version 0 does not exist" + supported, at);
    if ((version & 0xffffu) == 0) {
        cursor.fail_unsupported(
            "this is a big-endian GGUF file of version " + std::to_string(swapped(version)) + supported, at);
    }
    cursor.fail_unsupported("GGUF version " + std::to_string(version) + " is not supported" + supported, at);
}

uint64_t find_alignment(Cursor& cursor, const Metadata& metadata) {
    const MetadataEntry* entry = metadata.find(kAlignmentKey);
    if (entry == nullptr) return kDefaultAlignment;
    cursor.set_where(kAlignmentKey);
    const auto alignment = as_unsigned(entry->value);
    if (!alignment) cursor.fail("the alignment must be a positive integer", entry->offset);
    if (!std::has_single_bit(*alignment) || *alignment < kSmallestAlignment || *alignment > kLargestAlignment) {
        cursor.fail("the alignment is " + std::to_string(*alignment) + ", but must be a power of two from 8 to 2^30",
                    entry->offset);
    }
    cursor.set_where("");
    return *alignment;
}

std::string supported_types() {
    std::string names;
    for (uint32_t type = 0; type <= std::numeric_limits<uint8_t>::max(); ++type) {
        if (const DTypeInfo* info = find_dtype(type)) names += (names.empty() ? "" : ", ") + std::string(info->name);
    }
    return names;
}

// What is kept of a tensor's entry for later checks: its name in the file's bytes, and where its data offset stands.
struct TensorEntry {
    std::string_view name;
    uint64_t offset_at;
};

std::string_view read_name(Cursor& cursor, TensorInfo& tensor) {
    cursor.set_where("");
    const uint64_t at = cursor.offset();
    const std::string_view name = cursor.read_string("tensor name");
    if (name.empty()) cursor.fail("a tensor name is empty", at);
    cursor.set_where(name);
    if (name.size() > kMaxTensorNameBytes) {
        cursor.fail("the tensor name has " + std::to_string(name.size()) + " bytes; at most 64 are allowed", at);
    }
    tensor.name = name;
    return name;
}

// Reads the dimensions and returns the number of elements.
uint64_t read_shape(Cursor& cursor, TensorInfo& tensor) {
    const uint64_t at = cursor.offset();
    tensor.n_dims = cursor.read<uint32_t>("tensor's number of dimensions");
    if (tensor.n_dims < 1 || tensor.n_dims > tensor.shape.size()) {
        cursor.fail("the tensor has " + std::to_string(tensor.n_dims) + " dimensions; 1 to 4 are allowed", at);
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < tensor.n_dims; ++i) {
        const uint64_t dimension_at = cursor.offset();
        const auto dimension = cursor.read<uint64_t>("tensor's shape");
        if (dimension == 0) cursor.fail("dimension " + std::to_string(i) + " of the tensor is 0", dimension_at);
        if (dimension > kMaxElements / elements) {
            cursor.fail("the tensor's number of elements overflows at dimension " + std::to_string(i) + ", which is " +
                            std::to_string(dimension),
                        dimension_at);
        }
        elements *= dimension;
        tensor.shape[i] = dimension;
    }
    return elements;
}

const DTypeInfo& read_type(Cursor& cursor) {
    const uint64_t at = cursor.offset();
    const auto type = cursor.read<uint32_t>("tensor's type");
    if (const DTypeInfo* info = find_dtype(type)) return *info;
    const std::string_view name = gguf_type_name(type);
    const std::string shown =
        name.empty() ? "the unknown type id " + std::to_string(type) : "type " + std::string(name);
    cursor.fail_unsupported(
        "the tensor has " + shown + ", which is not supported; supported types: " + supported_types(), at);
}

// Reads one entry of the tensor table. `offset` is left relative to the data section, whose place is not known yet.
TensorEntry read_tensor(Cursor& cursor, TensorInfo& tensor) {
    TensorEntry entry{};
    entry.name = read_name(cursor, tensor);
    const uint64_t shape_at = cursor.offset() + sizeof(uint32_t);
    const uint64_t elements = read_shape(cursor, tensor);
    const DTypeInfo& info = read_type(cursor);
    tensor.dtype = info.dtype;
    if (tensor.shape[0] % info.block_elements != 0) {
        cursor.fail("the tensor's rows have " + std::to_string(tensor.shape[0]) +
                        " elements, which is no multiple of " + std::to_string(info.block_elements) +
                        ", the block of its type " + std::string(info.name),
                    shape_at);
    }
    entry.offset_at = cursor.offset();
    tensor.offset = cursor.read<uint64_t>("tensor's data offset");
    // No overflow: a tensor that does not fit the file is refused before its blocks are turned into bytes.
    const uint64_t blocks = elements / info.block_elements;
    if (blocks > cursor.size() / info.block_bytes) {
        cursor.fail("the tensor has " + std::to_string(elements) + " elements of type " + std::string(info.name) +
                        ", more than the whole file of " + std::to_string(cursor.size()) + " bytes can hold",
                    shape_at);
    }
    tensor.bytes = blocks * info.block_bytes;
    return entry;
}

// Makes the tensor's offset absolute, when its data lies inside the file.
void place_tensor(Cursor& cursor, const GgufFile& file, TensorInfo& tensor, uint64_t offset_at) {
    cursor.set_where(tensor.name);
    if (tensor.offset % file.alignment != 0) {
        cursor.fail("the tensor's data offset " + std::to_string(tensor.offset) +
                        " is no multiple of the file's alignment of " + std::to_string(file.alignment),
                    offset_at);
    }
    const uint64_t room = cursor.size() > file.data_offset ? cursor.size() - file.data_offset : 0;
    if (tensor.bytes > room || tensor.offset > room - tensor.bytes) {
        cursor.fail("the tensor's " + std::to_string(tensor.bytes) + " bytes at offset " +
                        std::to_string(tensor.offset) + " of the data section (which begins at byte " +
                        std::to_string(file.data_offset) + ") end beyond the file's " + std::to_string(cursor.size()) +
                        " bytes; it may be an incomplete download",
                    offset_at);
    }
    tensor.offset += file.data_offset;
}

void check_overlaps(Cursor& cursor, const std::vector<TensorInfo>& tensors, const std::vector<TensorEntry>& entries) {
    std::vector<size_t> order(tensors.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return std::pair(tensors[a].offset, a) < std::pair(tensors[b].offset, b); });
    for (size_t i = 1; i < order.size(); ++i) {
        const TensorInfo& before = tensors[order[i - 1]];
        const TensorInfo& after = tensors[order[i]];
        if (before.offset + before.bytes <= after.offset) continue;
        cursor.set_where(after.name);
        cursor.fail("the tensor's data at byte " + std::to_string(after.offset) + " overlaps that of " +
                        printable(before.name) + ", which ends at byte " + std::to_string(before.offset + before.bytes),
                    entries[order[i]].offset_at);
    }
}

void read_tensors(Cursor& cursor, uint64_t count, GgufFile& file) {
    std::vector<TensorEntry> entries;
    std::unordered_set<std::string_view> names;
    file.tensors.reserve(std::min(count, kFirstReserve));
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t name_at = cursor.offset();
        entries.push_back(read_tensor(cursor, file.tensors.emplace_back()));
        if (!names.insert(entries.back().name).second) cursor.fail("the tensor's name occurs twice", name_at);
    }
    cursor.set_where("");
    file.data_offset = (cursor.offset() + file.alignment - 1) / file.alignment * file.alignment;
    for (size_t i = 0; i < file.tensors.size(); ++i) place_tensor(cursor, file, file.tensors[i], entries[i].offset_at);
    check_overlaps(cursor, file.tensors, entries);
}

}  // namespace

GgufFile GgufFile::parse(std::span<const std::byte> bytes, std::string file_name) {
    GgufFile file;
    file.name = std::move(file_name);
    Cursor cursor(bytes, file.name);
    read_magic(cursor, bytes);
    file.version = read_version(cursor);
    const uint64_t tensor_count_at = cursor.offset();
    const auto tensor_count = cursor.read<uint64_t>("header");
    const uint64_t entry_count_at = cursor.offset();
    const auto entry_count = cursor.read<uint64_t>("header");
    cursor.check_count(tensor_count, kSmallestTensorEntry, "tensors", tensor_count_at);
    file.metadata = Metadata::parse(cursor, entry_count, entry_count_at);
    file.alignment = find_alignment(cursor, file.metadata);
    cursor.check_count(tensor_count, kSmallestTensorEntry, "tensors", tensor_count_at);
    read_tensors(cursor, tensor_count, file);
    return file;
}

}  // namespace metallic
