#include "gguf/metadata.h"

#include <algorithm>
#include <string>
#include <type_traits>
#include <utility>

// Source of the format: ggml's gguf.md. Limits beside those of gguf.md (keys of 65,535 bytes) are ggml's own, so that
// a file refused here is refused by the reference reader as well.
namespace metallic {
namespace {

constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxStringBytes = uint64_t{1} << 30;
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 30;
// The smallest entry: a key of one byte after its length, a type, a value of one byte.
constexpr uint64_t kSmallestEntry = 8 + 1 + 4 + 1;
// Counts come from the file, so containers start small and grow only with what has really been read.
constexpr uint64_t kFirstReserve = 4096;

// Calls `visit(T{})` with the C++ type of a numeric or boolean `type`; false for all other types.
template <typename Visitor>
bool visit_numeric_type(uint32_t type, Visitor&& visit) {
    switch (static_cast<GgufType>(type)) {
        case GgufType::UInt8:
            visit(uint8_t{});
            return true;
        case GgufType::Int8:
            visit(int8_t{});
            return true;
        case GgufType::UInt16:
            visit(uint16_t{});
            return true;
        case GgufType::Int16:
            visit(int16_t{});
            return true;
        case GgufType::UInt32:
            visit(uint32_t{});
            return true;
        case GgufType::Int32:
            visit(int32_t{});
            return true;
        case GgufType::UInt64:
            visit(uint64_t{});
            return true;
        case GgufType::Int64:
            visit(int64_t{});
            return true;
        case GgufType::Float32:
            visit(float{});
            return true;
        case GgufType::Float64:
            visit(double{});
            return true;
        case GgufType::Bool:
            visit(bool{});
            return true;
        case GgufType::String:
        case GgufType::Array:
            return false;
    }
    return false;
}

void check_bools(const Cursor& cursor, std::span<const std::byte> bytes, uint64_t at) {
    const auto bad = std::find_if(bytes.begin(), bytes.end(), [](std::byte byte) { return byte > std::byte{1}; });
    if (bad == bytes.end()) return;
    cursor.fail("a boolean must be 0 or 1, but is " + std::to_string(std::to_integer<unsigned>(*bad)),
                at + static_cast<uint64_t>(bad - bytes.begin()));
}

std::string_view read_string_value(Cursor& cursor) {
    const uint64_t at = cursor.offset();
    const std::string_view text = cursor.read_string("string");
    if (text.size() > kMaxStringBytes) {
        cursor.fail("the string has " + std::to_string(text.size()) + " bytes; at most 1 GiB is allowed", at);
    }
    return text;
}

template <typename T>
T read_scalar(Cursor& cursor) {
    if constexpr (std::is_same_v<T, bool>) {
        const uint64_t at = cursor.offset();
        const auto byte = cursor.take(1, "value");
        check_bools(cursor, byte, at);
        return byte[0] != std::byte{0};
    } else {
        return cursor.read<T>("value");
    }
}

template <typename T>
ArrayView<T> read_numeric_array(Cursor& cursor, uint64_t count, uint64_t count_at) {
    cursor.check_count(count, sizeof(T), "array elements", count_at);
    const uint64_t at = cursor.offset();
    const auto bytes = cursor.take(count * sizeof(T), "array");
    if constexpr (std::is_same_v<T, bool>) check_bools(cursor, bytes, at);
    return ArrayView<T>(bytes);
}

StringArray read_string_array(Cursor& cursor, uint64_t count, uint64_t count_at) {
    cursor.check_count(count, sizeof(uint64_t), "strings", count_at);
    const uint64_t begin = cursor.offset();
    Cursor whole = cursor;
    std::vector<uint64_t> starts;
    starts.reserve(std::min(count, kFirstReserve) + 1);
    for (uint64_t i = 0; i < count; ++i) {
        starts.push_back(cursor.offset() - begin);
        read_string_value(cursor);
    }
    starts.push_back(cursor.offset() - begin);
    return StringArray(whole.take(cursor.offset() - begin, "array"), std::move(starts));
}

GgufValue read_array(Cursor& cursor) {
    const uint64_t type_at = cursor.offset();
    const auto type = cursor.read<uint32_t>("element type of the array");
    const uint64_t count_at = cursor.offset();
    const auto count = cursor.read<uint64_t>("length of the array");
    if (count > kMaxArrayElements) {
        cursor.fail("the array has " + std::to_string(count) + " elements; at most 2^30 are allowed", count_at);
    }
    if (type == static_cast<uint32_t>(GgufType::String)) return read_string_array(cursor, count, count_at);
    if (type == static_cast<uint32_t>(GgufType::Array)) {
        cursor.fail_unsupported("arrays of arrays are not supported", type_at);
    }
    GgufValue value;
    const bool known = visit_numeric_type(type, [&](auto zero) {
        value.emplace<ArrayView<decltype(zero)>>(read_numeric_array<decltype(zero)>(cursor, count, count_at));
    });
    if (!known) cursor.fail("no array element type has the id " + std::to_string(type), type_at);
    return value;
}

GgufValue read_value(Cursor& cursor, uint32_t type, uint64_t type_at) {
    if (type == static_cast<uint32_t>(GgufType::String)) return read_string_value(cursor);
    if (type == static_cast<uint32_t>(GgufType::Array)) return read_array(cursor);
    GgufValue value;
    const bool known = visit_numeric_type(
        type, [&](auto zero) { value.emplace<decltype(zero)>(read_scalar<decltype(zero)>(cursor)); });
    if (!known) cursor.fail("no metadata value type has the id " + std::to_string(type), type_at);
    return value;
}

std::string_view read_key(Cursor& cursor) {
    cursor.set_where("");
    const uint64_t at = cursor.offset();
    const std::string_view key = cursor.read_string("metadata key");
    if (key.empty()) cursor.fail("a metadata key is empty", at);
    cursor.set_where(key);
    if (key.size() > kMaxKeyBytes) {
        cursor.fail("the metadata key has " + std::to_string(key.size()) + " bytes; at most 65535 are allowed", at);
    }
    return key;
}

}  // namespace

std::optional<uint64_t> as_unsigned(const GgufValue& value) noexcept {
    std::optional<uint64_t> result;
    std::visit(
        [&result](const auto& held) {
            using T = std::decay_t<decltype(held)>;
            if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
                if (std::cmp_greater_equal(held, 0)) result = static_cast<uint64_t>(held);
            }
        },
        value);
    return result;
}

Metadata Metadata::parse(Cursor& cursor, uint64_t count, uint64_t count_at) {
    Metadata metadata;
    cursor.check_count(count, kSmallestEntry, "metadata entries", count_at);
    metadata.entries_.reserve(std::min(count, kFirstReserve));
    for (uint64_t i = 0; i < count; ++i) {
        const uint64_t key_at = cursor.offset();
        const std::string_view key = read_key(cursor);
        if (!metadata.index_.emplace(key, metadata.entries_.size()).second) {
            cursor.fail("the metadata key occurs twice", key_at);
        }
        const uint64_t type_at = cursor.offset();
        const auto type = cursor.read<uint32_t>("type of the value");
        const uint64_t value_at = cursor.offset();
        metadata.entries_.push_back({key, read_value(cursor, type, type_at), value_at});
    }
    cursor.set_where("");
    return metadata;
}

const MetadataEntry* Metadata::find(std::string_view key) const noexcept {
    const auto found = index_.find(key);
    return found == index_.end() ? nullptr : &entries_[found->second];
}

}  // namespace metallic
