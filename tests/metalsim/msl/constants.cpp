#include <map>
#include <utility>

#include "msl/translate.h"

namespace metalsim::msl {

namespace {

struct Type {
    uint32_t bytes = 0, alignment = 0;
};
// Types that MTLFunctionConstantValues can set.
Type type_of(const std::string& name) {
    static const std::map<std::string, uint32_t, std::less<>> scalars = {
        {"bool", 1},     {"char", 1},     {"uchar", 1}, {"int8_t", 1}, {"uint8_t", 1}, {"short", 2},   {"ushort", 2},
        {"int16_t", 2},  {"uint16_t", 2}, {"half", 2},  {"bfloat", 2}, {"int", 4},     {"uint", 4},    {"int32_t", 4},
        {"uint32_t", 4}, {"float", 4},    {"long", 8},  {"ulong", 8},  {"int64_t", 8}, {"uint64_t", 8}};
    if (const auto found = scalars.find(name); found != scalars.end()) return {found->second, found->second};
    const uint32_t count = name.empty() ? 0 : static_cast<uint32_t>(name.back() - '0');
    if (count < 2 || count > 4) return {};
    const auto found = scalars.find(name.substr(0, name.size() - 1));
    if (found == scalars.end()) return {};
    const uint32_t padded = count == 3 ? 4 : count;
    if (name.starts_with("bool")) return {count, 1};
    return {found->second * padded, found->second * padded};
}

class Rewriter {
  public:
    Rewriter(Tokens& tokens, const Structure& structure) : t_(tokens), s_(structure) {}

    Constants run() {
        for (const Variable& v : s_.variables) declaration(v);
        if (out_.entries.empty()) return std::move(out_);
        for (Constants::Entry& e : out_.entries) {
            e.defined = out_.bytes++;
            read_[e.name] = "metalsim::function_constant<" + e.type + ", " + std::to_string(e.offset) + ">()";
        }
        for (const Variable& v : s_.variables) derived(v);
        find_shadows();
        for (size_t i = 0; i + 1 < t_.size(); ++i) use(i);
        return std::move(out_);
    }

  private:
    // constant T name [[function_constant(n)]];
    void declaration(const Variable& v) {
        for (size_t i = v.begin; i < v.end; ++i) {
            const size_t after = t_.attribute_end(i);
            if (after == 0) continue;
            for (const Range& a : split_list(t_, i + 2, after - 2))
                if (t_.is(a.begin, "function_constant") && t_.is(a.begin + 1, "(")) add(v, i, {a.begin + 2, a.end - 1});
            i = after - 1;
        }
    }
    void add(const Variable& v, size_t attribute, const Range& index) {
        Constants::Entry e;
        const size_t name = attribute - 1;
        bool constant = false;
        for (size_t i = v.begin; i < name; ++i) {
            if (t_.is(i, "constant"))
                constant = true;
            else if (!t_.is(i, "const") && !t_.is(i, "constexpr") && !t_.is(i, "static") && !t_.is(i, "metal") &&
                     !t_.is(i, "::"))
                e.type += t_[i].text;
        }
        e.name = t_[name].text;
        if (!constant) fail(t_, v.begin, "a function constant must be in the constant address space");
        e.index = t_.text(index.begin, index.end);
        const Type type = type_of(e.type);
        if (type.bytes == 0) fail(t_, v.begin, "a function constant cannot be of type '" + e.type + "'");
        e.bytes = type.bytes;
        e.offset = (out_.bytes + type.alignment - 1) / type.alignment * type.alignment;
        out_.bytes = e.offset + e.bytes;
        out_.entries.push_back(e);
        t_.drop(v.begin, v.end);
    }

    // constant T name = ... of function constants: known when a kernel runs, so a function.
    void derived(const Variable& v) {
        if (v.class_index != SIZE_MAX) return;
        size_t equals = v.begin;
        while (equals < v.end && !t_.is(equals, "=")) ++equals;
        if (equals == v.end || t_[v.begin].replaced) return;
        bool depends = false;
        for (size_t i = equals; i < v.end; ++i)
            depends = depends || (t_[i].identifier() && read_.contains(std::string(t_[i].text)));
        if (!depends) return;
        const size_t name = equals - 1;
        if (!t_[name].identifier()) fail(t_, name, "an array cannot be initialised from function constants");
        const std::string function = "metalsim_constant_" + std::string(t_[name].text);
        for (size_t i = v.begin; i < name; ++i)
            if (t_.is(i, "constant") || t_.is(i, "constexpr") || t_.is(i, "static") || t_.is(i, "const"))
                t_.drop(i, i + 1);
        t_.insert_before(v.begin, "METAL_FUNC static ");
        read_[std::string(t_[name].text)] = function + "()";
        t_.replace(name, function);
        t_.replace(equals, "() { return");
        t_.replace(v.end - 1, "; }");
    }

    // `int name` in a function: until the end of its block it is that variable.
    void find_shadows() {
        std::vector<size_t> blocks;
        for (size_t i = 0; i + 1 < t_.size(); ++i) {
            if (t_.is(i, "{")) blocks.push_back(static_cast<size_t>(t_[i].match));
            while (!blocks.empty() && i >= blocks.back()) blocks.pop_back();
            if (i == 0 || t_[i].replaced || !t_[i].identifier() || !read_.contains(std::string(t_[i].text))) continue;
            size_t end = blocks.empty() ? i : blocks.back();
            bool parameter = false;
            for (const Routine& f : s_.functions)
                if (f.open < i && i < f.close && (t_.is(i + 1, ",") || i + 1 == f.close || t_.is(i + 1, "["))) {
                    end = f.end;
                    parameter = true;
                }
            if (!parameter && (!t_[i - 1].identifier() || is_keyword(t_[i - 1].text))) continue;
            shadows_.push_back({t_[i].text, i, end});
        }
    }

    void use(size_t i) {
        const Token& t = t_[i];
        if (!t.identifier() || t.replaced) return;
        for (const Shadow& s : shadows_)
            if (s.name == t.text && s.begin <= i && i < s.end) return;
        if (t.is("is_function_constant_defined") && t_.is(i + 1, "(")) {
            const size_t name = static_cast<size_t>(t_[i + 1].match) - 1;
            for (Constants::Entry& e : out_.entries) {
                if (!t_.is(name, e.name)) continue;
                e.asked = true;
                t_.replace(i, "metalsim::function_constant<bool, " + std::to_string(e.defined) + ">");
                t_.drop(i + 2, name + 1);
                return;
            }
            fail(t_, name, "'" + std::string(t_[name].text) + "' is not a function constant");
        }
        const auto found = read_.find(std::string(t.text));
        if (found == read_.end() || (i > 0 && (t_.is(i - 1, ".") || t_.is(i - 1, "->")))) return;
        if (i > 1 && t_.is(i - 1, "(") && t_.is(i - 2, "function_constant")) return;
        t_.replace(i, found->second);
    }

    struct Shadow {
        std::string_view name;
        size_t begin, end;
    };
    Tokens& t_;
    const Structure& s_;
    Constants out_;
    std::vector<Shadow> shadows_;
    std::map<std::string, std::string, std::less<>> read_;
};

}  // namespace

const Constants::Entry* Constants::find(std::string_view name) const noexcept {
    for (const Entry& e : entries)
        if (e.name == name) return &e;
    return nullptr;
}

std::string Constants::table() const {
    std::string out = "static const MetalsimConstantInfo metalsim_constants[] = {";
    for (const Entry& e : entries)
        out += "{\"" + e.name + "\", \"" + e.type + "\", " + "(" + e.index + "), " + std::to_string(e.offset) + ", " +
               std::to_string(e.defined) + ", " + std::to_string(e.bytes) + ", " + (e.asked ? "0" : "1") + "}, ";
    return out + "{\"\", \"\", 0, 0, 0, 0, 0}};\n";
}

Constants rewrite_constants(Tokens& tokens, const Structure& structure) {
    return Rewriter(tokens, structure).run();
}

}  // namespace metalsim::msl
