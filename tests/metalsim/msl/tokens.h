#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// Tokens of a preprocessed source, and edits of it that keep its lines.
namespace metalsim::msl {

enum class TokenKind : uint8_t { identifier, number, string, punctuation, end };

struct Token {
    TokenKind kind = TokenKind::end;
    std::string_view text;   // as in the source
    std::string_view space;  // white space and directives before it
    uint32_t line = 0;       // by the line markers
    uint32_t file = 0;
    int32_t match = -1;  // the other of a pair of () [] {}
    // Edits.
    std::string before, after;
    std::string replacement;
    bool replaced = false;

    bool is(std::string_view t) const noexcept { return text == t; }
    bool identifier() const noexcept { return kind == TokenKind::identifier; }
};

class Tokens {
  public:
    // Throws CompileError for brackets that do not match. Keeps views of `source`.
    explicit Tokens(std::string_view source);

    size_t size() const noexcept { return tokens_.size(); }  // the last is of kind `end`
    Token& operator[](size_t i) noexcept { return tokens_[i]; }
    const Token& operator[](size_t i) const noexcept { return tokens_[i]; }
    bool is(size_t i, std::string_view text) const noexcept { return i < tokens_.size() && tokens_[i].text == text; }

    // After the `>` that closes the `<` at i, or 0: skips brackets; a further `<`
    // opens a list only after an identifier.
    size_t close_angle(size_t i) const noexcept;
    // Two adjacent `[`: an attribute. Yields its end (after the second `]`), or 0.
    size_t attribute_end(size_t i) const noexcept;

    void insert_before(size_t i, std::string_view text) { tokens_[i].before += text; }
    void insert_after(size_t i, std::string_view text) { tokens_[i].after += text; }
    void replace(size_t i, std::string_view text);
    void drop(size_t begin, size_t end);  // [begin, end)

    std::string text(size_t begin, size_t end) const;  // with its edits, without directives, on one line
    std::string where(size_t i) const;                 // "file:line"
    std::string str() const;                           // all of it, with its edits

  private:
    std::vector<Token> tokens_;
    std::vector<std::string> files_;
};

[[noreturn]] void fail(const Tokens& tokens, size_t at, std::string_view what);

}  // namespace metalsim::msl
