#include "gguf/cursor.h"

#include "core/error.h"

namespace metallic {

std::string printable(std::string_view text) {
    constexpr size_t kLongest = 96;
    constexpr char kHex[] = "0123456789abcdef";
    std::string out;
    for (const char c : text.substr(0, kLongest)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f) {
            out += c;
        } else {
            out += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
        }
    }
    if (text.size() > kLongest) out += "...";
    return out;
}

void Cursor::check_count(uint64_t count, uint64_t item_bytes, const char* items, uint64_t at) const {
    const uint64_t most = remaining() / item_bytes;
    if (count <= most) return;
    fail("the file says that " + std::to_string(count) + " " + items + " follow, but the " +
             std::to_string(remaining()) + " bytes left can hold " + std::to_string(most) + " at most",
         at);
}

void Cursor::fail(const std::string& message, uint64_t at) const {
    throw ModelFormatError(message, file_, printable(where_), at);
}

void Cursor::fail_unsupported(const std::string& message, uint64_t at) const {
    throw UnsupportedModelError(file_ + (where_.empty() ? "" : ": " + printable(where_)) + ": " + message +
                                " (at byte " + std::to_string(at) + ")");
}

void Cursor::fail_short(uint64_t needed, const char* what) const {
    fail(std::string("the file ends inside the ") + what + ": " + std::to_string(needed) + " bytes are needed and " +
             std::to_string(remaining()) + " are left; it may be an incomplete download",
         offset_);
}

void Cursor::fail_long_string(uint64_t length, const char* what) const {
    fail(std::string("the ") + what + " has a length of " + std::to_string(length) + " bytes, but only " +
             std::to_string(remaining()) + " are left in the file",
         offset_ - sizeof(uint64_t));
}

}  // namespace metallic
