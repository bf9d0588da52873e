#include "msl/structure.h"

#include <algorithm>

namespace metalsim::msl {

bool is_address_space(std::string_view word) noexcept {
    return word == "device" || word == "constant" || word == "threadgroup" || word == "thread" ||
           word == "threadgroup_imageblock" || word == "ray_data" || word == "object_data";
}

bool is_keyword(std::string_view word) noexcept {
    static const std::unordered_set<std::string_view> words = {
        "return",  "else",    "case",      "do",       "if",    "while",   "for",     "switch",
        "sizeof",  "alignof", "constexpr", "typename", "new",   "delete",  "throw",   "goto",
        "default", "break",   "continue",  "template", "using", "typedef", "operator"};
    return words.contains(word);
}

std::vector<Range> split_list(const Tokens& tokens, size_t begin, size_t end) {
    std::vector<Range> parts;
    size_t start = begin;
    for (size_t i = begin; i < end; ++i) {
        const Token& t = tokens[i];
        if (t.is("(") || t.is("[") || t.is("{")) {
            i = static_cast<size_t>(t.match);
        } else if (t.is("<") && i > begin && tokens[i - 1].identifier()) {
            if (const size_t after = tokens.close_angle(i); after != 0 && after <= end) i = after - 1;
        } else if (t.is(",")) {
            parts.push_back({start, i});
            start = i + 1;
        }
    }
    if (start < end) parts.push_back({start, end});
    return parts;
}

namespace {

class Reader {
  public:
    explicit Reader(const Tokens& tokens) : t_(tokens) {}

    Structure run() {
        collect_type_names();
        scope(0, t_.size() - 1, SIZE_MAX);
        return std::move(out_);
    }

  private:
    // `using X = ...`, `typedef ... X`, `typename X` and `class X` of template parameters: wherever they are.
    void collect_type_names() {
        for (size_t i = 0; i + 1 < t_.size(); ++i) {
            if (t_.is(i, "using") && t_[i + 1].identifier() && (t_.is(i + 2, "=") || t_.attribute_end(i + 2)))
                out_.type_names.insert(t_[i + 1].text);
            if (t_.is(i, "typedef")) {
                const size_t end = statement_end(i);
                size_t last = end - 1;
                while (last > i && !t_[last].identifier()) {
                    if (t_.is(last, "]") || t_.is(last, ")")) last = static_cast<size_t>(t_[last].match);
                    --last;
                    // typedef R (name)(...), typedef R (*name)(...)
                    if (t_.is(last, ")") && t_[last - 1].identifier()) --last;
                }
                if (t_[last].identifier()) out_.type_names.insert(t_[last].text);
            }
            if (t_.is(i, "template") && t_.is(i + 1, "<")) {
                const size_t end = t_.close_angle(i + 1);
                for (size_t j = i + 2; j + 1 < end; ++j)
                    if ((t_.is(j, "typename") || t_.is(j, "class")) && t_[j + 1].identifier() && !t_.is(j + 2, "::"))
                        out_.type_names.insert(t_[j + 1].text);
            }
        }
    }

    // After the `;` that ends the statement at i.
    size_t statement_end(size_t i) const {
        for (; i + 1 < t_.size(); ++i) {
            if (t_.is(i, "(") || t_.is(i, "[") || t_.is(i, "{"))
                i = static_cast<size_t>(t_[i].match);
            else if (t_.is(i, ";"))
                return i + 1;
        }
        return i;
    }

    TemplateHead head_at(size_t i) const {
        TemplateHead head{i, t_.close_angle(i + 1), {}};
        if (head.end == 0) fail(t_, i, "cannot read this template's parameters");
        for (const Range& part : split_list(t_, i + 2, head.end - 1)) {
            size_t name = 0;
            bool pack = false;
            for (size_t j = part.begin; j < part.end && !t_.is(j, "="); ++j) {
                if (t_.is(j, "...")) pack = true;
                if (t_.is(j, "(") && t_.is(j + 1, "*") && t_[j + 2].identifier()) {  // a pointer to a function
                    name = j + 2;
                    break;
                }
                if (t_.is(j, "<"))
                    j = t_.close_angle(j) - 1;
                else if (t_.is(j, "("))
                    j = static_cast<size_t>(t_[j].match);
                else if (t_[j].identifier())
                    name = j;
            }
            std::string text(name != 0 ? t_[name].text : "");
            head.arguments.push_back(pack ? text + "..." : text);
        }
        return head;
    }

    void scope(size_t i, size_t end, size_t class_index) {
        while (i < end) i = declaration(i, end, class_index);
    }

    size_t declaration(size_t i, size_t end, size_t class_index) {
        const Token& t = t_[i];
        if (t.is(";") || t.is("}")) return i + 1;
        if ((t.is("public") || t.is("private") || t.is("protected")) && t_.is(i + 1, ":")) return i + 2;
        if (t.is("inline") && t_.is(i + 1, "namespace")) return i + 1;
        if (t.is("namespace") || (t.is("extern") && t_[i + 1].kind == TokenKind::string)) {
            size_t j = i;
            while (j < end && !t_.is(j, "{") && !t_.is(j, ";")) ++j;
            if (t_.is(j, "{")) {
                scope(j + 1, static_cast<size_t>(t_[j].match), class_index);
                return static_cast<size_t>(t_[j].match) + 1;
            }
            return t.is("extern") ? i + 2 : j + 1;
        }
        if (t.is("using") || t.is("static_assert") || t.is("friend")) return statement_end(i);
        TemplateHead head;
        if (t.is("template")) {
            if (!t_.is(i + 1, "<")) {
                const size_t stop = statement_end(i);
                out_.instantiations.push_back({i, stop});
                return stop;
            }
            do {
                head = head_at(i);
                i = head.end;
            } while (t_.is(i, "template") && t_.is(i + 1, "<"));
            if (t_.is(i, "using") || t_.is(i, "friend")) return statement_end(i);
        }
        return entity(i, end, class_index, head);
    }

    // A class, function or variable, from its first specifier.
    size_t entity(size_t begin, size_t end, size_t class_index, const TemplateHead& head) {
        size_t key = SIZE_MAX;
        for (size_t i = begin; i < end; ++i) {
            if (const size_t after = t_.attribute_end(i)) {
                i = after - 1;
            } else if (t_.is(i, "struct") || t_.is(i, "class") || t_.is(i, "union") || t_.is(i, "enum")) {
                if (key == SIZE_MAX) key = i;
            } else if (t_.is(i, "<") && i > begin && t_[i - 1].identifier()) {
                if (const size_t close = t_.close_angle(i)) i = close - 1;
            } else if (t_.is(i, "alignas") || t_.is(i, "__attribute__") || t_.is(i, "decltype")) {
                if (t_.is(i + 1, "(")) i = static_cast<size_t>(t_[i + 1].match);
            } else if (t_.is(i, ";")) {
                if (!t_.is(begin, "typedef") && (key == SIZE_MAX || i > key + 2))
                    variable(begin, i + 1, class_index, head);
                return i + 1;
            } else if (t_.is(i, "=")) {
                variable(begin, statement_end(i), class_index, head);
                return statement_end(i);
            } else if (t_.is(i, "{")) {
                if (key != SIZE_MAX) return class_body(key, i);
                variable(begin, statement_end(i), class_index, head);  // T x{...};
                return statement_end(i);
            } else if (t_.is(i, "operator")) {
                while (!t_.is(i + 1, "(") || (t_.is(i, "operator") && t_.is(i + 2, ")") && t_.is(i + 3, "("))) ++i;
                return function(begin, i, i + 1, class_index, head);
            } else if (t_.is(i, "(")) {
                return function(begin, i - 1, i, class_index, head);
            }
        }
        return end;
    }

    void variable(size_t begin, size_t end, size_t class_index, const TemplateHead& head) {
        out_.variables.push_back({begin, end, class_index, head});
    }

    size_t class_body(size_t key, size_t open) {
        const auto close = static_cast<size_t>(t_[open].match);
        if (!t_.is(key, "enum")) {
            Class c;
            c.key = key;
            c.body = open;
            for (size_t i = key + 1; i < open && c.name.empty(); ++i) {
                if (const size_t after = t_.attribute_end(i))
                    i = after - 1;
                else if ((t_.is(i, "alignas") || t_.is(i, "__attribute__")) && t_.is(i + 1, "("))
                    i = static_cast<size_t>(t_[i + 1].match);
                else if (t_.is(i, ":"))
                    break;
                else if (t_[i].identifier() && !t_.is(i + 1, "::"))
                    c.name = t_[i].text;
            }
            if (!c.name.empty()) {
                for (size_t i = key + 1; i < open; ++i)
                    if (t_[i].text == c.name) out_.class_names.insert(t_[i].text);
            }
            out_.classes.push_back(c);
            scope(open + 1, close, out_.classes.size() - 1);
        }
        return statement_end(close + 1);
    }

    // `name` is before the `(` of the parameters.
    size_t function(size_t begin, size_t name, size_t open, size_t class_index, const TemplateHead& head) {
        Routine f;
        f.begin = begin;
        f.name = name;
        f.open = open;
        f.close = static_cast<size_t>(t_[open].match);
        f.class_index = class_index;
        f.head = head;
        size_t i = f.close + 1;
        bool initialisers = false;
        for (; i + 1 < t_.size(); ++i) {
            if (t_.is(i, ";")) break;
            if (t_.is(i, ":")) initialisers = true;
            if (t_.is(i, "(") || t_.is(i, "[")) i = static_cast<size_t>(t_[i].match);
            if (!t_.is(i, "{")) continue;
            // In `: a(1), b{2} {` a brace after a name initialises a member.
            const bool member = initialisers && (t_[i - 1].identifier() || t_.is(i - 1, ">"));
            if (!member) break;
            i = static_cast<size_t>(t_[i].match);
        }
        if (t_.is(i, "{")) {
            f.body = i;
            f.end = static_cast<size_t>(t_[i].match) + 1;
        } else {
            f.end = i + 1;
        }
        out_.functions.push_back(f);
        return f.end;
    }

    const Tokens& t_;
    Structure out_;
};

}  // namespace

Structure read_structure(const Tokens& tokens) {
    return Reader(tokens).run();
}

}  // namespace metalsim::msl
