#include "msl/translate.h"

#include <algorithm>

namespace metalsim::msl {

namespace {

// constexpr constant T x = ...; in a function is static storage.
void local_constants(Tokens& t, const Structure& s) {
    for (const Routine& f : s.functions) {
        if (f.body == 0) continue;
        for (size_t i = f.body + 1; i < f.end; ++i) {
            if (!t.is(i, "constant")) continue;
            size_t begin = i;
            while (t.is(begin - 1, "const") || t.is(begin - 1, "constexpr") || t.is(begin - 1, "static")) --begin;
            if (!t.is(begin - 1, ";") && !t.is(begin - 1, "{") && !t.is(begin - 1, "}")) continue;
            bool pointer = false, is_static = false;
            size_t end = begin;
            for (; end < f.end && !t.is(end, "=") && !t.is(end, ";") && !t.is(end, "{") && !t.is(end, "["); ++end) {
                pointer = pointer || t.is(end, "*") || t.is(end, "&");
                is_static = is_static || t.is(end, "static");
            }
            if (!pointer && !is_static) t.insert_before(begin, "static ");
        }
    }
}

// constant T x[2] as a parameter is a pointer, which clang does not say of one in an address space.
void array_parameters(Tokens& t, const Structure& s) {
    for (const Routine& f : s.functions) {
        for (const Range& p : split_list(t, f.open + 1, f.close)) {
            bool space = false;
            for (size_t i = p.begin; i < p.end; ++i) {
                if (t.attribute_end(i) || t.is(i, "=") || t.is(i, "(")) break;
                space = space || is_address_space(t[i].text);
                if (!space || !t.is(i, "[") || !t[i - 1].identifier()) continue;
                const auto close = static_cast<size_t>(t[i].match);
                const bool more = t.is(close + 1, "[") && !t.attribute_end(close + 1);
                t.insert_before(i - 1, more ? "(*" : "*");
                t.drop(i, close + 1);
                if (more) t.replace(close, ")");
                break;
            }
        }
    }
}

// constant C name(arguments); of a class: C++ cannot construct it in an address space, so it is an ordinary constant.
void constant_objects(Tokens& t, const Structure& s) {
    for (const Routine& f : s.functions) {
        if (f.body != 0 || f.class_index != SIZE_MAX) continue;
        for (size_t i = f.name; i-- > f.begin;)
            if (t.is(i, "constant") && !t.is(f.name - 1, "*") && !t.is(f.name - 1, "&") &&
                s.class_names.contains(t[f.name - 1].text))
                t.replace(i, "const");
            else if (t.is(i, "constexpr") && t[i + 1].replaced)
                t.drop(i, i + 1);
    }
}

// A string is in the constant address space.
void strings(Tokens& t) {
    std::vector<size_t> open;
    for (size_t i = 1; i + 1 < t.size(); ++i) {
        if (t.is(i, "(")) open.push_back(i);
        while (!open.empty() && i > static_cast<size_t>(t[open.back()].match)) open.pop_back();
        if (t[i].kind != TokenKind::string || t[i].text[0] != '"' || open.empty()) continue;
        const size_t call = open.back() - 1;
        if ((!t.is(i - 1, "(") && !t.is(i - 1, ",")) || t.is(call, "static_assert") || t.is(call, "(") ||
            t.is(call, "host_name") || t.is(call, "section"))
            continue;
        t.insert_before(i, "metalsim::literal(");
        t.insert_after(i, ")");
    }
}

// f({a, b, c}): the parameter may be a vector.
void brace_arguments(Tokens& t) {
    std::vector<size_t> open;
    for (size_t i = 1; i + 1 < t.size(); ++i) {
        while (!open.empty() && i > static_cast<size_t>(t[open.back()].match)) open.pop_back();
        const bool call =
            !open.empty() && t.is(open.back(), "(") && (t[open.back() - 1].identifier() || t.is(open.back() - 1, ">"));
        if (t.is(i, "(") || t.is(i, "{") || t.is(i, "[")) open.push_back(i);
        if (!call || !t.is(i, "{") || (!t.is(i - 1, "(") && !t.is(i - 1, ","))) continue;
        const auto close = static_cast<size_t>(t[i].match);
        const size_t parts = split_list(t, i + 1, close).size();
        if (parts < 2 || parts > 4) continue;
        t.replace(i, "metalsim::braces(");
        t.replace(close, ")");
    }
}

// Without wishes about unrolling: on a processor they cost far more time to compile than they bring.
std::string without_unrolling(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        const size_t end = std::min(text.find('\n'), text.size() - 1) + 1;
        const std::string_view line = text.substr(0, end);
        if (line.find("#pragma") != std::string_view::npos && line.find("unroll") != std::string_view::npos)
            out += '\n';
        else
            out += line;
        text.remove_prefix(end);
    }
    return out;
}

}  // namespace

std::string translate(std::string_view preprocessed, uint32_t version, bool lenient) {
    const std::string source = without_unrolling(preprocessed);
    Tokens tokens(source);
    const Structure structure = read_structure(tokens);
    check_rules(tokens, structure, version);
    rewrite_casts(tokens, structure);
    const Constants constants = rewrite_constants(tokens, structure);
    rewrite_classes(tokens, structure, lenient);
    local_constants(tokens, structure);
    array_parameters(tokens, structure);
    constant_objects(tokens, structure);
    strings(tokens);
    brace_arguments(tokens);
    const std::string functions = rewrite_kernels(tokens, structure, constants);
    std::string out = tokens.str();
    out += "\n# 1 \"metalsim_table\"\n" + functions + constants.table();
    out += "enum { metalsim_constant_count = " + std::to_string(constants.entries.size()) +
           ", metalsim_constants_bytes = " + std::to_string(constants.bytes) + " };\n";
    out += "#include \"metalsim/library.inc\"\n";
    return out;
}

}  // namespace metalsim::msl
