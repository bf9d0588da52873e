#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace metallic {

static_assert(std::endian::native == std::endian::little, "GGUF data is used in place, as little-endian");

// `text` from a file made fit for a message: printable ASCII, other bytes as \xNN, shortened after 96 characters.
std::string printable(std::string_view text);

// Reads little-endian fields from bytes that nobody vouches for. Every read is checked against what is left, and every
// failure is a ModelFormatError that names the file, the key or tensor being read, and the byte.
class Cursor {
  public:
    // Views are kept, not copied: `bytes` and `file` must outlive the cursor.
    Cursor(std::span<const std::byte> bytes, const std::string& file) noexcept : bytes_(bytes), file_(file) {}

    uint64_t offset() const noexcept { return offset_; }
    uint64_t remaining() const noexcept { return bytes_.size() - offset_; }
    uint64_t size() const noexcept { return bytes_.size(); }

    // The metadata key or tensor name that the next failures are about; empty for the header.
    void set_where(std::string_view where) noexcept { where_ = where; }

    template <typename T>
    T read(const char* what) {
        static_assert(std::is_arithmetic_v<T>);
        T value;
        std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
        return value;
    }

    // The next `size` bytes. `what` completes the sentence "the file ends inside the <what>".
    std::span<const std::byte> take(uint64_t size, const char* what) {
        if (size > remaining()) fail_short(size, what);
        const auto taken = bytes_.subspan(offset_, size);
        offset_ += size;
        return taken;
    }

    // A GGUF string: a 64-bit length and that many bytes, of any encoding.
    std::string_view read_string(const char* what) {
        const uint64_t length = read<uint64_t>(what);
        if (length > remaining()) fail_long_string(length, what);
        const auto text = take(length, what);
        return {reinterpret_cast<const char*>(text.data()), text.size()};
    }

    // Throws unless `count` items of at least `item_bytes` each can follow; `at` is where the count stands.
    void check_count(uint64_t count, uint64_t item_bytes, const char* items, uint64_t at) const;

    [[noreturn]] void fail(const std::string& message, uint64_t at) const;
    // A file that is well-formed here, but asks for what this library does not have.
    [[noreturn]] void fail_unsupported(const std::string& message, uint64_t at) const;

  private:
    [[noreturn]] void fail_short(uint64_t needed, const char* what) const;
    [[noreturn]] void fail_long_string(uint64_t length, const char* what) const;

    std::span<const std::byte> bytes_;
    const std::string& file_;
    std::string_view where_;
    uint64_t offset_ = 0;
};

}  // namespace metallic
