#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "gguf/cursor.h"

namespace metallic {

// Ids of metadata value types (gguf.md, `gguf_metadata_value_type`).
enum class GgufType : uint32_t {
    UInt8 = 0,
    Int8 = 1,
    UInt16 = 2,
    Int16 = 3,
    UInt32 = 4,
    Int32 = 5,
    Float32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    UInt64 = 10,
    Int64 = 11,
    Float64 = 12,
};

// A numeric or boolean array where it lies in the file, at any alignment.
template <typename T>
class ArrayView {
  public:
    using value_type = T;

    ArrayView() = default;
    // `bytes` must be a whole number of elements.
    explicit ArrayView(std::span<const std::byte> bytes) noexcept : bytes_(bytes) {}

    size_t size() const noexcept { return bytes_.size() / sizeof(T); }
    bool empty() const noexcept { return bytes_.empty(); }

    // `index` must be below size().
    T operator[](size_t index) const noexcept {
        if constexpr (std::is_same_v<T, bool>) {
            return bytes_[index] != std::byte{0};
        } else {
            T value;
            std::memcpy(&value, bytes_.data() + index * sizeof(T), sizeof(T));
            return value;
        }
    }

    // Writes size() elements to `out`.
    void copy_to(T* out) const noexcept {
        if constexpr (std::is_same_v<T, bool>) {
            for (size_t i = 0; i < size(); ++i) out[i] = (*this)[i];
        } else {
            if (!empty()) std::memcpy(out, bytes_.data(), bytes_.size());
        }
    }

  private:
    static_assert(sizeof(bool) == 1);
    std::span<const std::byte> bytes_;
};

// An array of strings where it lies in the file. The index of their positions is made once, when the file is parsed;
// lengths are never read from the mapping again, so a file that changes later cannot lead out of its bounds.
class StringArray {
  public:
    StringArray() = default;
    // `starts` holds, for each string, the position in `bytes` of its length field, and last the end of the array.
    StringArray(std::span<const std::byte> bytes, std::vector<uint64_t> starts)
        : bytes_(bytes), starts_(std::make_shared<const std::vector<uint64_t>>(std::move(starts))) {}

    size_t size() const noexcept { return starts_ ? starts_->size() - 1 : 0; }
    bool empty() const noexcept { return size() == 0; }

    // `index` must be below size(). The bytes are as in the file: UTF-8 by convention, unchecked.
    std::string_view operator[](size_t index) const noexcept {
        const uint64_t begin = (*starts_)[index] + sizeof(uint64_t);
        return {reinterpret_cast<const char*>(bytes_.data() + begin), (*starts_)[index + 1] - begin};
    }

  private:
    std::span<const std::byte> bytes_;
    std::shared_ptr<const std::vector<uint64_t>> starts_;
};

// A metadata value. Strings and arrays are views into the file's bytes.
using GgufValue = std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t, float, double,
                               bool, std::string_view, ArrayView<uint8_t>, ArrayView<int8_t>, ArrayView<uint16_t>,
                               ArrayView<int16_t>, ArrayView<uint32_t>, ArrayView<int32_t>, ArrayView<uint64_t>,
                               ArrayView<int64_t>, ArrayView<float>, ArrayView<double>, ArrayView<bool>, StringArray>;

// The value of an integer of any width that is not negative; nothing for every other kind of value.
std::optional<uint64_t> as_unsigned(const GgufValue& value) noexcept;

struct MetadataEntry {
    std::string_view key;
    GgufValue value;
    uint64_t offset;  // of the value in the file, after its type
};

// The key-value pairs of one file, in the file's order. Keys are unique. Views point into the file's bytes.
class Metadata {
  public:
    // Reads `count` entries; the count stands at byte `count_at`. Throws ModelFormatError, or UnsupportedModelError for
    // an array of arrays.
    static Metadata parse(Cursor& cursor, uint64_t count, uint64_t count_at);

    // Null when there is no such key.
    const MetadataEntry* find(std::string_view key) const noexcept;

    const std::vector<MetadataEntry>& entries() const noexcept { return entries_; }

  private:
    std::vector<MetadataEntry> entries_;
    std::unordered_map<std::string_view, size_t> index_;
};

}  // namespace metallic
