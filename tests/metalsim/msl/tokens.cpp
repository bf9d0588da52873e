#include "msl/tokens.h"

#include <cctype>
#include <charconv>

#include "msl/library.h"

namespace metalsim::msl {

namespace {

// `>` stands alone: two of them may close two template argument lists.
constexpr std::string_view kPunctuation[] = {"...", "<<=", "->*", "::", "->", "<<", "<=", ">=", "==", "!=", "&&",
                                             "||",  "++",  "--",  "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="};

class Scanner {
  public:
    Scanner(std::string_view source, std::vector<Token>& tokens, std::vector<std::string>& files)
        : source_(source), tokens_(tokens), files_(files) {}

    void run() {
        while (true) {
            const size_t start = at_;
            skip_space();
            const std::string_view space = source_.substr(start, at_ - start);
            Token token;
            const size_t begin = at_;
            token.kind = at_ == source_.size() ? TokenKind::end : next();
            token.text = source_.substr(begin, at_ - begin);
            token.space = space;
            token.line = line_;
            token.file = file_;
            for (const char c : token.text) line_ += c == '\n';
            tokens_.push_back(token);
            if (token.kind == TokenKind::end) return;
        }
    }

  private:
    char peek(size_t ahead = 0) const { return at_ + ahead < source_.size() ? source_[at_ + ahead] : '\0'; }
    static bool word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

    // Also over directives.
    void skip_space() {
        for (; at_ < source_.size(); ++at_) {
            if (source_[at_] == '#' && line_start_) {
                const size_t begin = at_;
                while (at_ < source_.size() && source_[at_] != '\n') ++at_;
                marker(source_.substr(begin, at_ - begin));
                if (at_ == source_.size()) return;
            }
            if (!std::isspace(static_cast<unsigned char>(source_[at_]))) return;
            if (source_[at_] == '\n') {
                ++line_;
                line_start_ = true;
            }
        }
    }

    TokenKind next() {
        line_start_ = false;
        const char c = peek();
        if (std::isdigit(static_cast<unsigned char>(c)) ||
            (c == '.' && std::isdigit(static_cast<unsigned char>(peek(1)))))
            return number();
        if (word(c)) {
            while (word(peek())) ++at_;
            return TokenKind::identifier;
        }
        if (c == '"' || c == '\'') return quoted(c);
        for (const std::string_view p : kPunctuation)
            if (source_.substr(at_, p.size()) == p) {
                at_ += p.size();
                return TokenKind::punctuation;
            }
        ++at_;
        return TokenKind::punctuation;
    }

    TokenKind number() {
        while (word(peek()) || peek() == '.' ||
               ((peek() == '+' || peek() == '-') &&
                std::string_view("eEpP").find(source_[at_ - 1]) != std::string_view::npos &&
                !(source_[at_ - 1] == 'e' || source_[at_ - 1] == 'E' ? hexadecimal() : false)))
            ++at_;
        return TokenKind::number;
    }
    bool hexadecimal() const {
        size_t start = at_;
        while (start > 0 && (word(source_[start - 1]) || source_[start - 1] == '.')) --start;
        return source_.substr(start, 2) == "0x" || source_.substr(start, 2) == "0X";
    }

    TokenKind quoted(char quote) {
        ++at_;
        while (at_ < source_.size() && source_[at_] != quote && source_[at_] != '\n')
            at_ += source_[at_] == '\\' ? 2 : 1;
        at_ = std::min(at_ + 1, source_.size());
        return TokenKind::string;
    }

    // # 12 "file": the next line is line 12 of file.
    void marker(std::string_view text) {
        size_t i = 1;
        while (i < text.size() && text[i] == ' ') ++i;
        uint32_t line = 0;
        const auto [end, error] = std::from_chars(text.data() + i, text.data() + text.size(), line);
        if (error != std::errc()) return;
        const size_t open = text.find('"'), close = text.rfind('"');
        if (open == std::string_view::npos || close <= open) return;
        const std::string name(text.substr(open + 1, close - open - 1));
        for (file_ = 0; file_ < files_.size() && files_[file_] != name;) ++file_;
        if (file_ == files_.size()) files_.push_back(name);
        line_ = line - 1;  // the end of this line makes it `line`
    }

    std::string_view source_;
    std::vector<Token>& tokens_;
    std::vector<std::string>& files_;
    size_t at_ = 0;
    uint32_t line_ = 1, file_ = 0;
    bool line_start_ = true;
};

}  // namespace

void fail(const Tokens& tokens, size_t at, std::string_view what) {
    throw CompileError(tokens.where(at) + ": error: " + std::string(what));
}

Tokens::Tokens(std::string_view source) : files_{"program_source"} {
    Scanner(source, tokens_, files_).run();
    std::vector<size_t> open;
    for (size_t i = 0; i < tokens_.size(); ++i) {
        if (tokens_[i].kind != TokenKind::punctuation) continue;
        const std::string_view t = tokens_[i].text;
        if (t == "(" || t == "[" || t == "{") open.push_back(i);
        if (t != ")" && t != "]" && t != "}") continue;
        const char wanted = t == ")" ? '(' : t == "]" ? '[' : '{';
        if (open.empty() || tokens_[open.back()].text[0] != wanted)
            fail(*this, i, "unmatched '" + std::string(t) + "'");
        tokens_[i].match = static_cast<int32_t>(open.back());
        tokens_[open.back()].match = static_cast<int32_t>(i);
        open.pop_back();
    }
    if (!open.empty()) fail(*this, open.back(), "unmatched '" + std::string(tokens_[open.back()].text) + "'");
}

size_t Tokens::close_angle(size_t i) const noexcept {
    int depth = 0;
    for (; i < tokens_.size(); ++i) {
        const Token& t = tokens_[i];
        if (t.is("(") || t.is("[") || t.is("{")) {
            i = static_cast<size_t>(t.match);
        } else if (t.is("<")) {
            if (depth == 0 || tokens_[i - 1].identifier()) ++depth;
        } else if (t.is(">")) {
            if (--depth == 0) return i + 1;
        } else if (t.is(";") || t.is(")") || t.is("]") || t.is("}") || t.kind == TokenKind::end) {
            return 0;
        }
    }
    return 0;
}

size_t Tokens::attribute_end(size_t i) const noexcept {
    if (!is(i, "[") || !is(i + 1, "[")) return 0;
    const auto close = static_cast<size_t>(tokens_[i].match);
    return static_cast<size_t>(tokens_[i + 1].match) + 1 == close ? close + 1 : 0;
}

void Tokens::replace(size_t i, std::string_view text) {
    tokens_[i].replacement = text;
    tokens_[i].replaced = true;
}

void Tokens::drop(size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
        replace(i, "");
        tokens_[i].before.clear();
        tokens_[i].after.clear();
    }
}

std::string Tokens::text(size_t begin, size_t end) const {
    std::string out;
    for (size_t i = begin; i < end && i < tokens_.size(); ++i) {
        const Token& t = tokens_[i];
        if (!t.space.empty() && !out.empty()) out += ' ';
        out += t.before;
        out += t.replaced ? std::string_view(t.replacement) : t.text;
        out += t.after;
    }
    return out;
}

std::string Tokens::where(size_t i) const {
    const Token& t = tokens_[std::min(i, tokens_.size() - 1)];
    return files_[t.file] + ":" + std::to_string(t.line);
}

std::string Tokens::str() const {
    std::string out;
    for (const Token& t : tokens_) {
        out += t.space;
        out += t.before;
        out += t.replaced ? std::string_view(t.replacement) : t.text;
        out += t.after;
    }
    return out;
}

}  // namespace metalsim::msl
