#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "gguf/metadata.h"

namespace metallic::testing {

// The bytes of a GGUF file, and where its number fields stand, so that a test can spoil exactly one of them.
struct BuiltFile {
    struct Field {
        std::string label;
        size_t offset;
        size_t width;
    };

    std::vector<std::byte> bytes;
    std::vector<Field> fields;

    size_t offset_of(std::string_view label) const {
        for (const Field& field : fields) {
            if (field.label == label) return field.offset;
        }
        throw std::out_of_range("no field is labelled " + std::string(label));
    }

    template <typename T>
    void set(std::string_view label, T value) {
        std::memcpy(bytes.data() + offset_of(label), &value, sizeof(T));
    }
};

template <typename T>
constexpr GgufType gguf_type_of() {
    if constexpr (std::is_same_v<T, uint8_t>) return GgufType::UInt8;
    if constexpr (std::is_same_v<T, int8_t>) return GgufType::Int8;
    if constexpr (std::is_same_v<T, uint16_t>) return GgufType::UInt16;
    if constexpr (std::is_same_v<T, int16_t>) return GgufType::Int16;
    if constexpr (std::is_same_v<T, uint32_t>) return GgufType::UInt32;
    if constexpr (std::is_same_v<T, int32_t>) return GgufType::Int32;
    if constexpr (std::is_same_v<T, uint64_t>) return GgufType::UInt64;
    if constexpr (std::is_same_v<T, int64_t>) return GgufType::Int64;
    if constexpr (std::is_same_v<T, float>) return GgufType::Float32;
    if constexpr (std::is_same_v<T, double>) return GgufType::Float64;
    if constexpr (std::is_same_v<T, bool>) return GgufType::Bool;
}

// Writes GGUF files for tests: whatever it is told to write, right or wrong. Source of the format: ggml's gguf.md.
class GgufBuilder {
  public:
    uint32_t version = 3;
    uint64_t alignment = 32;  // of the data; an entry "general.alignment" is the caller's business

    template <typename T>
    GgufBuilder& add(const std::string& key, T value) {
        begin_entry(key, gguf_type_of<T>());
        number(body_, key + ".value", value);
        return *this;
    }

    GgufBuilder& add_string(const std::string& key, std::string_view value) {
        begin_entry(key, GgufType::String);
        text(body_, key + ".value", value);
        return *this;
    }

    template <typename T>
    GgufBuilder& add_array(const std::string& key, const std::vector<T>& values) {
        begin_array(key, gguf_type_of<T>(), values.size());
        for (size_t i = 0; i < values.size(); ++i) {
            number(body_, key + "[" + std::to_string(i) + "]", static_cast<T>(values[i]));
        }
        return *this;
    }

    GgufBuilder& add_strings(const std::string& key, const std::vector<std::string>& values) {
        begin_array(key, GgufType::String, values.size());
        for (size_t i = 0; i < values.size(); ++i) text(body_, key + "[" + std::to_string(i) + "]", values[i]);
        return *this;
    }

    // Appends a tensor of `size` data bytes behind the others. The shape and the type need not agree with the size.
    GgufBuilder& add_tensor(const std::string& name, const std::vector<uint64_t>& shape, uint32_t type, size_t size) {
        pad(data_.bytes, alignment);
        text(table_, name + ".name", name);
        number(table_, name + ".n_dims", static_cast<uint32_t>(shape.size()));
        for (size_t i = 0; i < shape.size(); ++i) number(table_, name + ".dim" + std::to_string(i), shape[i]);
        number(table_, name + ".type", type);
        number(table_, name + ".offset", static_cast<uint64_t>(data_.bytes.size()));
        for (size_t i = 0; i < size; ++i) data_.bytes.push_back(static_cast<std::byte>(i * 31 + tensors_ * 7 + 1));
        ++tensors_;
        return *this;
    }

    BuiltFile build() const {
        BuiltFile file;
        for (const char c : std::string_view("GGUF")) file.bytes.push_back(static_cast<std::byte>(c));
        number(file, "version", version);
        number(file, "tensor_count", tensors_);
        number(file, "entry_count", entries_);
        append(file, body_);
        append(file, table_);
        if (tensors_ > 0) pad(file.bytes, alignment);
        append(file, data_);
        return file;
    }

  private:
    template <typename T>
    static void number(BuiltFile& to, std::string label, T value) {
        to.fields.push_back({std::move(label), to.bytes.size(), sizeof(T)});
        const auto* raw = reinterpret_cast<const std::byte*>(&value);
        to.bytes.insert(to.bytes.end(), raw, raw + sizeof(T));
    }

    static void text(BuiltFile& to, const std::string& label, std::string_view value) {
        number(to, label + ".length", static_cast<uint64_t>(value.size()));
        for (const char c : value) to.bytes.push_back(static_cast<std::byte>(c));
    }

    static void pad(std::vector<std::byte>& bytes, uint64_t alignment) {
        while (bytes.size() % alignment != 0) bytes.push_back(std::byte{0});
    }

    static void append(BuiltFile& to, const BuiltFile& part) {
        for (BuiltFile::Field field : part.fields) {
            field.offset += to.bytes.size();
            to.fields.push_back(std::move(field));
        }
        to.bytes.insert(to.bytes.end(), part.bytes.begin(), part.bytes.end());
    }

    void begin_entry(const std::string& key, GgufType type) {
        text(body_, key + ".key", key);
        number(body_, key + ".type", static_cast<uint32_t>(type));
        ++entries_;
    }

    void begin_array(const std::string& key, GgufType type, size_t count) {
        begin_entry(key, GgufType::Array);
        number(body_, key + ".element_type", static_cast<uint32_t>(type));
        number(body_, key + ".count", static_cast<uint64_t>(count));
    }

    BuiltFile body_;
    BuiltFile table_;
    BuiltFile data_;
    uint64_t entries_ = 0;
    uint64_t tensors_ = 0;
};

}  // namespace metallic::testing
