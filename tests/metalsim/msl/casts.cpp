#include <array>
#include <cctype>
#include <string>

#include "msl/translate.h"

namespace metalsim::msl {

namespace {

bool is_vector_name(std::string_view name) {
    if (name.starts_with("packed_")) name.remove_prefix(7);
    static const std::unordered_set<std::string_view> elements = {"bool", "char", "uchar", "short", "ushort", "int",
                                                                  "uint", "long", "ulong", "half",  "bfloat", "float"};
    return name.size() > 1 && name.back() >= '2' && name.back() <= '4' &&
           elements.contains(name.substr(0, name.size() - 1));
}

class Casts {
  public:
    Casts(Tokens& tokens, const Structure& structure) : t_(tokens), s_(structure) {}

    void run() {
        for (size_t i = 0; i + 1 < t_.size(); ++i) {
            if (t_[i].kind == TokenKind::number) literal(i);
            if (t_.is(i, "static_cast") && t_.is(i + 1, "<")) named_cast(i);
            if (t_.is(i, "(")) c_cast(i);
            if (t_[i].identifier()) functional(i);
        }
        for (const Routine& f : s_.functions)
            for (size_t i = f.body; f.body != 0 && i < f.end; ++i)
                if (t_[i].identifier()) initialised(i);
    }

  private:
    // 1.0h and 1.0bf, and 1.0, which is a float. (clang's option for that forgets itself in templates.)
    void literal(size_t i) {
        const std::string_view text = t_[i].text;
        const bool hex = text.starts_with("0x") || text.starts_with("0X");
        if (hex && text.find_first_of("pP") == std::string_view::npos) return;
        if (text.ends_with("bf") || text.ends_with("BF"))
            t_.replace(i, "((bfloat)" + std::string(text.substr(0, text.size() - 2)) + number_end(text, 2) + ")");
        else if (text.ends_with("h") || text.ends_with("H"))
            t_.replace(i, "((half)" + std::string(text.substr(0, text.size() - 1)) + number_end(text, 1) + ")");
        else if (text.find_first_of(hex ? "pP" : ".eE") != std::string_view::npos && !text.ends_with("f") &&
                 !text.ends_with("F"))
            t_.replace(i, std::string(text) + "f");
    }
    static std::string number_end(std::string_view text, size_t suffix) {
        text.remove_suffix(suffix);
        return text.find_first_of(".eEpP") == std::string_view::npos ? ".0f" : "f";
    }

    bool may_be_vector(size_t i) const {
        if (!t_[i].identifier()) return false;
        if (is_vector_name(t_[i].text)) return true;
        return s_.type_names.contains(t_[i].text) && !s_.class_names.contains(t_[i].text);
    }

    // A type at i that may be a vector; after it, or 0. [const] [typename] [A<..>::]... B, vec<T, N>.
    size_t type_at(size_t i, size_t& start) const {
        while (t_.is(i, "const") || t_.is(i, "thread")) ++i;
        start = i;
        if (t_.is(i, "typename")) ++i;
        while (t_[i].identifier()) {
            size_t next = i + 1;
            const bool vec = t_.is(i, "vec");
            if (t_.is(next, "<")) {
                next = t_.close_angle(next);
                if (next == 0) return 0;
            }
            if (t_.is(next, "::")) {
                i = next + 1;
                continue;
            }
            return vec ? (next > i + 1 ? next : 0) : may_be_vector(i) ? next : 0;
        }
        return 0;
    }

    void named_cast(size_t i) {
        size_t start = 0;
        const size_t end = type_at(i + 2, start);
        if (end == 0 || !t_.is(end, ">") || !t_.is(end + 1, "(")) return;
        t_.replace(i, "metalsim::make");
    }

    void c_cast(size_t i) {
        size_t start = 0;
        const size_t end = type_at(i + 1, start);
        if (end == 0 || !t_.is(end, ")")) return;
        if (i > 0 && ends_operand(i - 1)) return;
        if (!starts_operand(end + 1)) return;
        const size_t last = operand_end(end + 1);
        if (last == 0) return;
        t_.replace(i, "metalsim::make<");
        t_.drop(i + 1, start);
        t_.replace(end, ">(");
        t_.insert_after(last, ")");
    }

    // Whether the token can end an expression, so that a parenthesis after it is a call, or a declarator.
    bool ends_operand(size_t i) const {
        const Token& t = t_[i];
        return (t.identifier() && !is_keyword(t.text)) || t.is(")") || t.is("]") || t.is(">") || t.is("operator") ||
               t.is("sizeof") || t.is("alignof");
    }
    bool starts_operand(size_t i) const {
        static constexpr std::array<std::string_view, 9> starts = {"(", "+", "-", "!", "~", "*", "&", "++", "--"};
        const Token& t = t_[i];
        if (t.identifier()) return !is_keyword(t.text) || t.is("sizeof");
        if (t.kind == TokenKind::number) return true;
        for (const std::string_view s : starts)
            if (t.is(s)) return true;
        return false;
    }

    // The last token of the operand of a cast.
    size_t operand_end(size_t i) const {
        while (t_.is(i, "+") || t_.is(i, "-") || t_.is(i, "!") || t_.is(i, "~") || t_.is(i, "*") || t_.is(i, "&") ||
               t_.is(i, "++") || t_.is(i, "--"))
            ++i;
        size_t last = i;
        if (t_.is(i, "(")) {
            last = static_cast<size_t>(t_[i].match);
            if (is_type(i + 1, last) && starts_operand(last + 1) && !t_.is(last + 1, "+") && !t_.is(last + 1, "-"))
                return operand_end(last + 1);
        } else if (t_[i].identifier()) {
            last = name_end(i);
        } else if (t_[i].kind != TokenKind::number) {
            return 0;
        }
        while (true) {
            const size_t next = last + 1;
            if (t_.is(next, "(") || t_.is(next, "["))
                last = static_cast<size_t>(t_[next].match);
            else if ((t_.is(next, ".") || t_.is(next, "->")) && t_[next + 1].identifier())
                last = name_end(next + 1);
            else if (t_.is(next, "++") || t_.is(next, "--"))
                last = next;
            else
                return last;
        }
    }
    // A, A::B, A<...>::B, f<...>: a `<` opens a list only where what follows its `>` says so.
    size_t name_end(size_t i) const {
        size_t last = i;
        while (true) {
            if (t_.is(last + 1, "<")) {
                const size_t after = t_.close_angle(last + 1);
                if (after != 0 && (t_.is(after, "(") || t_.is(after, "::") || t_.is(after, "{")) &&
                    looks_like_types(last + 2, after - 1))
                    last = after - 1;
            }
            if (!t_.is(last + 1, "::") || !t_[last + 2].identifier()) return last;
            last += 2;
        }
    }
    bool looks_like_types(size_t begin, size_t end) const {
        for (size_t i = begin; i < end; ++i)
            if (t_.is(i, "&&") || t_.is(i, "||") || t_.is(i, ";") || t_.is(i, "?")) return false;
        return true;
    }
    // What stands in (...) is a type: a known name, or something with a * at its end.
    bool is_type(size_t begin, size_t end) const {
        static const std::unordered_set<std::string_view> scalars = {
            "bool",    "char",     "uchar",   "short",    "ushort",  "int",      "uint",
            "long",    "ulong",    "half",    "bfloat",   "float",   "int8_t",   "uint8_t",
            "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t", "uint64_t", "size_t"};
        if (begin == end) return false;
        if (t_.is(end - 1, "*") || t_.is(end - 1, "&")) return true;
        size_t start = 0;
        if (const size_t after = type_at(begin, start); after == end) return true;
        return end == begin + 1 && (scalars.contains(t_[begin].text) || s_.class_names.contains(t_[begin].text));
    }

    // T(...) at its last name.
    void functional(size_t i) {
        size_t last = i;
        if (!t_.is(i, "vec") && !may_be_vector(i)) return;
        if (t_.is(i + 1, "<")) {
            last = t_.close_angle(i + 1);
            if (last == 0) return;
            --last;
        }
        if (!t_.is(last + 1, "(")) return;
        size_t start = i;
        while (start >= 2 && t_.is(start - 1, "::")) {
            size_t before = start - 2;
            if (t_.is(before, ">")) {
                before = open_angle(before);
                if (before == 0) return;
                --before;
            }
            if (!t_[before].identifier()) return;
            start = before;
        }
        if (start > 0 && t_.is(start - 1, "typename")) --start;
        if (start > 0) {
            const Token& p = t_[start - 1];
            if ((p.identifier() && (!is_keyword(p.text) || p.is("operator") || p.is("constexpr"))) || p.is("~") ||
                p.is(".") || p.is("->"))
                return;
        }
        // T (&name)[n], T (*name)(...): a declarator.
        const auto close = static_cast<size_t>(t_[last + 1].match);
        if ((t_.is(last + 2, "&") || t_.is(last + 2, "*")) && t_[last + 3].identifier() && last + 4 == close &&
            (t_.is(close + 1, "[") || t_.is(close + 1, "(")))
            return;
        t_.insert_before(start, "metalsim::make<");
        t_.insert_after(last, ">");
    }
    // T name(...); in a function, of a type that may be a vector: a plain name.
    void initialised(size_t i) {
        size_t start = 0;
        if (t_.is(i - 1, "::") || (t_.is(i + 1, "::") && !t_.is(i, "metal"))) return;
        const size_t end = type_at(i, start);
        if (end == 0 || start != i || t_.is(i, "typename") || !t_[end].identifier() || is_keyword(t_[end].text) ||
            !t_.is(end + 1, "("))
            return;
        const auto close = static_cast<size_t>(t_[end + 1].match);
        if (close == end + 2 || !t_.is(close + 1, ";")) return;
        std::string type = t_.text(start, end);
        t_.replace(end + 1, " = metalsim::make<" + type + ">(");
    }
    size_t open_angle(size_t close) const {
        int depth = 0;
        for (size_t i = close; i > 0; --i) {
            if (t_.is(i, ")") || t_.is(i, "]"))
                i = static_cast<size_t>(t_[i].match);
            else if (t_.is(i, ">"))
                ++depth;
            else if (t_.is(i, "<") && --depth == 0)
                return i;
            else if (t_.is(i, ";") || t_.is(i, "{") || t_.is(i, "}"))
                return 0;
        }
        return 0;
    }

    Tokens& t_;
    const Structure& s_;
};

}  // namespace

void rewrite_casts(Tokens& tokens, const Structure& structure) {
    Casts(tokens, structure).run();
}

}  // namespace metalsim::msl
